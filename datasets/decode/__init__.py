"""Image and mask files to arrays and tensors; nothing here knows a dataset."""
