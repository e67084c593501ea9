"""Calibration of members from stored logits and labels: `calibrate`."""
