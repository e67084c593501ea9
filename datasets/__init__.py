"""Where images lie, what they hold, and drawn ones for those who have none at hand."""
