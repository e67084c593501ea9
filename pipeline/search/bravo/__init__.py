"""BRAVO's images in a search, counted by the challenge's protocol."""
