"""The `datasets` command: guide, check and drawn examples."""
