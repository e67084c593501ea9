"""Light, air and lens: from what stands in a street to what a camera in that weather takes of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .canvas import LABEL, Camera, Point, noise
from .style import Style

Floats = NDArray[np.floating]

_LAMPLIGHT = np.array([1.0, 0.74, 0.44], dtype=np.float32)
_HEADLIGHT = np.array([0.95, 0.93, 0.84], dtype=np.float32)
# How rough a class looks, as a share of its brightness.
_ROUGH = {"vegetation": 0.2, "terrain": 0.14, "building": 0.045, "wall": 0.06, "road": 0.035, "sidewalk": 0.04}
_GRAIN = np.zeros(256, dtype=np.float32)
_GRAIN[[LABEL[name] for name in _ROUGH]] = [*_ROUGH.values()]


@dataclass(frozen=True, slots=True)
class Exposure:
    """The layers of a `Canvas` at the size of the picture."""

    rgb: Floats
    """(H, W, 3), 0 to 255, in plain daylight."""
    ids: NDArray[np.uint8]
    """(H, W) train ids."""
    depth: Floats
    """(H, W) metres."""
    glow: Floats
    """(H, W, 3), 0 to 255: what shines by itself."""


def take(
    exposure: Exposure, camera: Camera, lamps: Sequence[Point], style: Style, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Take the photograph (H, W, 3) uint8, RGB.

    Args:
        exposure, camera: the painted layers, and what takes them.
        lamps: places of lights (x, y, z), metres.
        style, rng: see `Brush`.
    """
    height, width = exposure.ids.shape
    texture = 0.6 * noise(rng, height, width, width / 3) + 0.4 * noise(rng, height, width, width / 9)
    image = exposure.rgb * (1 + _GRAIN[exposure.ids] * texture * 1.6)[..., None]
    image = image * _illumination(exposure, camera, lamps, style)
    image = image + exposure.glow * (1.0 if style.night else 0.35)
    if style.wet:
        image = _mirrored(image, exposure.ids, camera, style, rng)
    clear = np.exp(-style.fog * exposure.depth)[..., None]
    brightness = 0.25 if style.night else np.array(style.light, dtype=np.float32) ** 0.5
    air = np.array(style.haze, dtype=np.float32) * brightness
    # The sky is painted as it is seen through the air, but thick fog hides its clouds too.
    clear = np.where((exposure.ids == LABEL["sky"])[..., None], 1 - min(1.0, style.fog * 30), clear)
    image = image * clear + air * (1 - clear)
    image = image + _bloom(exposure.glow, 0.5 if style.night else 0.12)
    if style.rain:
        image = _streaks(image, style.rain, rng)
    if style.flakes:
        image = _flakes(image, style.flakes, rng)
    if style.lens == "flare":
        image = _flare(image, rng)
    elif style.lens == "drops":
        image = _drops(image, rng)
    return _develop(image, style, rng)


def _illumination(exposure: Exposure, camera: Camera, lamps: Sequence[Point], style: Style) -> Floats:
    """Factor of each pixel's colour: daylight, or the lamps of a street at night."""
    light = np.broadcast_to(np.array(style.light, dtype=np.float32), exposure.rgb.shape)
    if not style.night:
        return light
    height, width = exposure.ids.shape
    z = exposure.depth
    x = (np.arange(width, dtype=np.float32)[None, :] - width / 2) * z / (camera.focal * width)
    pool = np.zeros_like(z)
    for lamp_x, _, lamp_z in lamps:
        pool += np.exp(-((x - lamp_x) ** 2 + 0.5 * (z - lamp_z) ** 2) / 55)
    beam = np.exp(-((x / (1.6 + 0.13 * z)) ** 2) - z / 17) * 0.85
    # Lamps shine downwards: what stands high above the horizon gets little of their light.
    rows = (np.arange(height, dtype=np.float32)[:, None] / height - camera.horizon) * z
    low = 1 / (1 + np.exp(-np.clip(rows + 2.2, -20, 20) * 1.4))
    lit = pool[..., None] * 0.8 * _LAMPLIGHT + beam[..., None] * _HEADLIGHT
    lit = lit * (0.15 + 0.85 * low[..., None])
    return np.where((exposure.ids == LABEL["sky"])[..., None], 1.0, light + lit).astype(np.float32)


def _mirrored(
    image: Floats, ids: NDArray[np.uint8], camera: Camera, style: Style, rng: np.random.Generator
) -> Floats:
    """The ground, with what is above the horizon in it, as water lies on it."""
    height, width = ids.shape
    horizon = int(camera.horizon * height)
    above = np.arange(horizon, height)
    source = np.clip(2 * horizon - above, 0, height - 1)
    smeared = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(height / 90))
    mirror = np.asarray(smeared, dtype=np.float32)[source]
    # Smeared once more, and only up and down, as ripples do.
    tall = np.asarray(
        Image.fromarray(mirror.astype(np.uint8))
        .resize((width, max(2, (height - horizon) // 12)), Image.Resampling.BOX)
        .resize((width, height - horizon), Image.Resampling.BICUBIC),
        dtype=np.float32,
    )
    puddles = np.clip(noise(rng, height - horizon, width, 7) * 1.5 + 0.35, 0.15, 1)
    flat = np.isin(ids[horizon:], (LABEL["road"], LABEL["sidewalk"]))
    share = (flat * puddles * style.wet * 0.62)[..., None]
    out = image.copy()
    out[horizon:] = image[horizon:] * (1 - share) + (tall if style.night else tall * 0.92) * share
    if style.night:
        out[horizon:] += tall * share * 0.8
    return out


def _bloom(glow: Floats, strength: float) -> Floats:
    """Light that spreads around what shines."""
    height, width = glow.shape[:2]
    half = (max(1, width // 2), max(1, height // 2))
    small = Image.fromarray(np.clip(glow, 0, 255).astype(np.uint8)).resize(half, Image.Resampling.BOX)
    total = np.zeros_like(glow)
    for radius, weight in ((height / 150, 1.4), (height / 50, 2.0), (height / 18, 2.4)):
        spread = small.filter(ImageFilter.GaussianBlur(radius / 2)).resize((width, height), Image.Resampling.BILINEAR)
        total += np.asarray(spread, dtype=np.float32) * weight
    return total * strength


def _streaks(image: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """Rain that falls while the shutter is open."""
    height, width = image.shape[:2]
    layer = Image.new("L", (width, height))
    draw = ImageDraw.Draw(layer)
    slant = rng.uniform(-0.25, 0.25)
    for _ in range(int(amount * width * 1.1)):
        x, y, near = rng.uniform(-0.1, 1.1) * width, rng.uniform(-0.1, 1) * height, rng.random() ** 2
        length = height * (0.02 + 0.07 * near)
        ends = [(x, y), (x + slant * length, y + length)]
        draw.line(ends, fill=int(50 + 70 * near), width=1 + int(near * height / 260))
    return image + (215 - image) * _veil(layer, 0.5) * 0.55


def _veil(layer: Image.Image, blur: float) -> Floats:
    return np.asarray(layer.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)[..., None] / 255


def _flakes(image: Floats, amount: float, rng: np.random.Generator) -> Floats:
    """Falling snow: many small flakes far away, and a few large and blurred ones."""
    height, width = image.shape[:2]
    for count, size, blur, strength in ((1.4, 0.0030, 0.4, 0.85), (0.28, 0.0065, 0.9, 0.75), (0.04, 0.015, 2.2, 0.5)):
        layer = Image.new("L", (width, height))
        draw = ImageDraw.Draw(layer)
        for _ in range(int(amount * count * width)):
            x, y, r = rng.uniform(0, width), rng.uniform(0, height), height * size * rng.uniform(0.6, 1.4)
            draw.ellipse((x - r, y - r * 1.2, x + r, y + r * 1.2), fill=255)
        image = image + (246 - image) * _veil(layer, blur * height / 256) * strength
    return image


def _flare(image: Floats, rng: np.random.Generator) -> Floats:
    """A low sun in the picture: it blinds, sends rays out and leaves ghosts along the line through the middle."""
    height, width = image.shape[:2]
    sun_x, sun_y = width * rng.uniform(0.15, 0.85), height * rng.uniform(0.08, 0.24)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    dx, dy = (columns - sun_x) / height, (rows - sun_y) / height
    away = np.sqrt(dx * dx + dy * dy)
    angle = np.arctan2(dy, dx)
    phases = rng.uniform(0, 2 * math.pi, 4)
    rays = sum(np.cos(angle * n + p) for n, p in zip((7, 11, 17, 29), phases, strict=True)) / 4
    core = np.exp(-((away / 0.055) ** 2)) * 2.4 + np.exp(-away / 0.1) * 1.1
    beams = np.clip(rays, 0, 1) ** 2 * np.exp(-away / 0.33) * 1.3
    veil = np.exp(-away / 0.75) * 0.42
    warm, pale = (np.array(colour, dtype=np.float32) for colour in ((255, 236, 172), (214, 206, 150)))
    out = image * 0.72 + warm * (core + beams)[..., None] + pale * veil[..., None]
    for share, size, colour in ((0.55, 0.05, (60, 120, 70)), (1.25, 0.09, (96, 76, 40)), (1.6, 0.04, (60, 96, 130))):
        x, y = sun_x + (width / 2 - sun_x) * 2 * share, sun_y + (height / 2 - sun_y) * 2 * share
        far = np.sqrt((columns - x) ** 2 + (rows - y) ** 2) / height
        inside = 1 / (1 + np.exp(np.clip((far - size) / (size * 0.06), -30, 30)))
        ghost = inside * (0.4 + 0.6 * np.clip(far / size, 0, 1))
        out = out + np.array(colour, dtype=np.float32) * ghost[..., None] * 0.55
    return out


def _drops(image: Floats, rng: np.random.Generator) -> Floats:
    """Drops on the lens; each shows the street small and upside down, and the rest is a little dull."""
    height, width = image.shape[:2]
    out = image * 0.9 + 20
    for _ in range(int(rng.integers(22, 34))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        wide, tall = height * rng.uniform(0.025, 0.065), height * rng.uniform(0.03, 0.09)
        top, bottom = max(0, int(y - tall)), min(height, int(y + tall) + 1)
        left, right = max(0, int(x - wide)), min(width, int(x + wide) + 1)
        rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32)
        dx, dy = (columns - x) / wide, (rows - y) / tall
        dx = dx + 0.22 * np.sin(dy * 2.6 + x)  # no drop is an ellipse
        away = dx * dx + dy * dy
        view_x = np.clip(x - dx * width * 0.16, 0, width - 1).astype(np.int32)
        view_y = np.clip(y - dy * height * 0.34, 0, height - 1).astype(np.int32)
        seen = image[view_y, view_x]
        rim = 1 - 0.5 * np.clip(away, 0, 1) ** 3
        shine = np.exp(-(((dx + 0.3) / 0.24) ** 2) - ((dy + 0.45) / 0.2) ** 2) * 105
        inside = np.clip((1 - away) * 5, 0, 1)[..., None]
        drop = seen * rim[..., None] * 1.06 + shine[..., None]
        part = out[top:bottom, left:right]
        out[top:bottom, left:right] = part + (drop - part) * inside
    return out


def _develop(image: Floats, style: Style, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Grain, darker corners, and whites that do not burn out at once."""
    height, width = image.shape[:2]
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    image = image * (1 - 0.13 * (0.6 * rows**2 + columns**2))[..., None]
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * (3.4 if style.night else 1.7)
    image = np.where(image > 215, 215 + 40 * np.tanh((image - 215) / 55), image)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
