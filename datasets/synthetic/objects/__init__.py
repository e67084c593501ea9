"""The things that stand in a synthetic street."""
