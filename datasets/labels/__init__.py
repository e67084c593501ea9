"""Masks, polygons and panoptic images to train ids."""
