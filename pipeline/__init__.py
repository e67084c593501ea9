"""From photographs to scores: a package a subject, as docs/architecture.md shows."""
