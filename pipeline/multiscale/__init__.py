"""How a network of several scales blends them: its attention and each scale's own prediction, as pictures."""

SCALE_KINDS = ("attention", "scales")
"""Kinds of pictures that networks have to run for."""
