"""The logit store, one Zarr v3 group per dataset and model; the only package that knows Zarr."""

from .identity import StoreIdentity
from .image_table import ImageEntry, Photograph
from .logit_store import LogitStore
from .shard_writer import ShardWriter
from .zarr_backend import DamagedShardError

__all__ = [
    "DamagedShardError",
    "ImageEntry",
    "LogitStore",
    "Photograph",
    "ShardWriter",
    "StoreIdentity",
]
