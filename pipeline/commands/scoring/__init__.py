"""Commands that compare predictions and logits with labels: evaluate, calibrate, search."""
