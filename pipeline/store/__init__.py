"""The logit store, one Zarr v3 group per dataset and model; the only package that knows Zarr."""
