"""Files on a disk or in an object store, where outputs lie, locks and run records."""
