"""A member's network as a file that other programs run: export."""
