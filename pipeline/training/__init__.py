"""Training a member from a recipe."""
