"""The logit store: the only package that knows Zarr."""

from .identity import Identity, ImageEntry, Photograph
from .logit_store import DamagedShardError, LogitStore, ShardWriter

__all__ = ["DamagedShardError", "Identity", "ImageEntry", "LogitStore", "Photograph", "ShardWriter"]
