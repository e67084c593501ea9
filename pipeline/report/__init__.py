"""The HTML report and pictures of predictions."""
