"""Class maps for training from stored logits: autolabel."""
