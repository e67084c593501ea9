"""Options and output that commands have in common."""
