"""Manifests and recipes: the files that people write, checked and resolved."""
