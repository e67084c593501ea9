"""Detection of what is out of distribution, and of wrong pixels: by several confidences, components and images."""
