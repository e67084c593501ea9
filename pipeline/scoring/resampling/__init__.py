"""Intervals and comparisons of figures by resampling images."""
