"""Which members together: every subset of them scored on labelled images, chosen and judged on different ones."""
