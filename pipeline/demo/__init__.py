"""The demonstration: seven members look at a drawn test set, and are fused, scored, calibrated and shown."""
