"""Members whose outputs other programs made: files of logits become stores."""
