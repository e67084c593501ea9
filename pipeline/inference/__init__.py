"""Photographs to logits: dump, predict and import."""
