"""Blocks of images to worker processes: the only package that knows Dask."""
