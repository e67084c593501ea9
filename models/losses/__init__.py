"""Losses on class scores and label maps; start at `composite.training_loss`."""
