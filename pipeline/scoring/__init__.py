"""Predictions against labels: figures and calibration."""
