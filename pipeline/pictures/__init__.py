"""Colours and sheets of pictures; no torch here."""
