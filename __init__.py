"""Multi-scale inference, fusion and training of HMSA segmentation ensembles."""

__version__ = "0.1.0"
