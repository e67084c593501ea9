"""Softmax and sums over the members of an ensemble: compiled, and by PyTorch to the same bits."""
