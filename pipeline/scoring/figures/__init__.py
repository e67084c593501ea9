"""Figures of class maps and confidences, from counts."""
