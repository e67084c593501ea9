"""Street scenes drawn by rule, with their masks: for those who have no photographs at hand, and for tests."""
