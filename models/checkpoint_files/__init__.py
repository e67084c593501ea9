"""Files of weights read as NumPy arrays, without torch, whose import takes longer than a check of small weights."""
