"""The command line: one file a command, from options to printed lines."""
