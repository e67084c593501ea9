#!/usr/bin/env bash
# Which readers turn a photograph as EXIF asks, and which do not: shapes of one picture in three formats.
# guess: OpenCV 4 turns JPEG alone and OpenCV 5 all three; IMREAD_UNCHANGED turns none; a PNG whose chunk eXIf comes
# guess: after the pixels is turned by neither; Pillow turns none when it opens them.
# seen: OpenCV 4.14.0 and 5.0.0 both turn JPEG, PNG and WebP, in colour and in grey (masks read so lose their image's
# seen: shape), also where eXIf comes after the pixels; IMREAD_UNCHANGED turns none, so image and mask of one folder
# seen: can come out with different shapes. Pillow 13.0.0 turns only in ImageOps.exif_transpose.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/look.py" <<'PY'
import struct
import sys

import cv2
import numpy as np
from PIL import Image, ImageOps

exif = Image.Exif()
exif[0x0112] = 6
picture = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
for name in ("a.jpg", "a.png", "a.webp"):
    picture.save(name, exif=exif)
data = open("a.png", "rb").read()
start = data.index(b"eXIf") - 4
length = struct.unpack(">I", data[start : start + 4])[0] + 12
chunk, rest = data[start : start + length], data[:start] + data[start + length :]
end = rest.index(b"IEND") - 4
open("late.png", "wb").write(rest[:end] + chunk + rest[end:])

found = {}
for name in ("a.jpg", "a.png", "a.webp", "late.png"):
    with Image.open(name) as image:
        pillow, asked = image.size[::-1], ImageOps.exif_transpose(image).size[::-1]
    shapes = [cv2.imread(name, flag).shape[:2] for flag in (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE, cv2.IMREAD_UNCHANGED)]
    found[name] = [pillow, asked, *shapes]
    print(cv2.__version__, name, "Pillow", pillow, "exif_transpose", asked, "colour, grey, unchanged", *shapes)
stored, turned = (4, 8), (8, 4)
if any(shapes != [stored, turned, turned, turned, stored] for shapes in found.values()):
    sys.exit(f"changed: {found}")
PY
for version in 4.14.0.94 5.0.0.93; do
  python3 -m venv "$work/$version"
  "$work/$version/bin/pip" install -q opencv-python-headless==$version pillow==13.0.0
done
cd "$work"
for version in 4.14.0.94 5.0.0.93; do
  "$work/$version/bin/python" look.py
done
echo "as seen: OpenCV 4.14 turns as much as 5.0, grey masks too, and finds eXIf behind the pixels; UNCHANGED turns none"
