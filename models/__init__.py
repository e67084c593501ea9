"""Segmentation networks and their checkpoints; start at `registry.build`."""
