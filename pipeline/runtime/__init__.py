"""The device, progress, signals, streams and threads of a long run."""
