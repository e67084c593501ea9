"""The command line: one file a command, from its options through one call of the pipeline to printed lines."""
