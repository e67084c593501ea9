#!/usr/bin/env bash
# What zarrs makes of float16 arrays whose filter is one of numcodecs, written by zarr-python.
# guess: zarrs leaves to zarr-python what it cannot decode itself. So either filter can be read, at worst more slowly.
# seen: zarr 3.1.6, zarrs 0.2.3, numcodecs 0.16.6. With numcodecs.bitround, which zarrs does not know, it warns and
# seen: zarr-python reads. With numcodecs.fixedscaleoffset from float16 to int16, which zarrs knows for other types, every
# seen: read is a RuntimeError ("float16 / <f2 does not support the FixedScaleOffset codec"). zarr-python reads both.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q zarr==3.1.6 zarrs==0.2.3 numcodecs==0.16.6
cat > "$work/look.py" <<'PY'
import sys
import warnings

import numpy as np
import zarr
import zarr.codecs.numcodecs as numcodecs

warnings.simplefilter("ignore")
values = np.linspace(-8, 8, 64 * 64).reshape(64, 64).astype(np.float16)
filters = {
    "bitround": numcodecs.BitRound(keepbits=7),
    "fixedscaleoffset": numcodecs.FixedScaleOffset(offset=0, scale=64, dtype="<f2", astype="<i2"),
}
found = {}
for name, codec in filters.items():
    path = f"{sys.argv[1]}/{name}.zarr"
    zarr.create_array(path, data=values, chunks=(32, 64), filters=[codec])
    expected = zarr.open_array(path, mode="r")[:]
    assert np.abs(expected - values).max() < 0.1
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        try:
            equal = np.array_equal(zarr.open_array(path, mode="r")[:], expected)
            found[name] = "equal" if equal else "other values"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    print(f"{name}: {found[name]}")
if found["bitround"] != "equal" or "does not support the FixedScaleOffset codec" not in found["fixedscaleoffset"]:
    sys.exit("changed")
PY
"$work/venv/bin/python" "$work/look.py" "$work"
echo "as seen: zarrs falls back for a codec that it does not know, and not for one that it knows for other types"
