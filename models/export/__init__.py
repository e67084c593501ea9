"""Networks of this package as graphs that other programs run."""
