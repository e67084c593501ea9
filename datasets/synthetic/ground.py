"""Sky and ground, computed for every pixel: what everything else stands before and on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from .canvas import FAR, LABEL, Canvas, Points, noise
from .street_plan import LANE, Street
from .style import Style

Floats = NDArray[np.floating]

_TILE = 512  # samples along a side of the noise that is laid out on the ground


def paint_sky(canvas: Canvas, rng: np.random.Generator, style: Style) -> None:
    """Paint the sky over the whole canvas: darker far up, with clouds that get flatter towards the horizon.

    Args:
        canvas, rng, style: see `Brush`.
    """
    rows = np.clip(np.arange(canvas.height) / canvas.horizon, 0, 1).astype(np.float32)
    zenith, haze = (np.array(c, dtype=np.float32) for c in (style.zenith, style.haze))
    sky = (zenith + (haze - zenith) * (rows**1.4)[:, None])[:, None, :]
    cover = sum(
        noise(rng, canvas.height, canvas.width, cells, 2.4) * weight
        for cells, weight in ((3, 0.5), (7, 0.3), (17, 0.2))
    )
    # Half of the noise lies above zero: with no clouds almost nothing passes, with all clouds everything.
    clouds = np.clip((cover * 1.6 + style.clouds * 1.5 - 0.7) * 2.2, 0, 1) * (1 - rows[:, None] ** 3 * 0.7)
    bright = haze + (255 - haze) * 0.55 if style.sun > 0.5 else haze * 1.03
    sky = sky + (bright - sky) * (clouds * 0.85)[..., None]
    canvas.rgb = Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8))
    canvas.bind()


class Ground:
    """The ground below the horizon: classes and colours from where on the ground each pixel looks."""

    def __init__(self, canvas: Canvas, street: Street) -> None:
        self._canvas, self._street = canvas, street
        self.top = int(np.ceil(canvas.horizon + 1))
        rows = np.arange(self.top, canvas.height, dtype=np.float32) + 0.5
        self.z: Floats = (canvas.focal * canvas.camera.height / (rows - canvas.horizon))[:, None]
        columns = np.arange(canvas.width, dtype=np.float32)[None, :] + 0.5 - canvas.width / 2
        self.x: Floats = columns * self.z / np.float32(canvas.focal) - np.float32(street.bend) * self.z**2
        self._shadow = Image.new("L", (canvas.width, canvas.height))
        self._shadow_draw = ImageDraw.Draw(self._shadow)

    def shadow(self, points: Points, strength: float = 1.0) -> None:
        """Darken a polygon of the ground."""
        screen = self._canvas.project(points)
        if len(screen) > 2:
            self._shadow_draw.polygon(screen, round(255 * strength))

    def paint(self, rng: np.random.Generator, style: Style) -> None:
        """Paint what has been planned onto the canvas, with the shadows given until now."""
        ids = self._classes()
        colours = self._colours(rng, ids, style)
        if style.odd_road:
            odd = self._unseen_colours(rng) if style.unseen_kind else self._odd_colours(rng)
            colours = np.where((ids == LABEL["road"])[..., None], odd, colours)
        soft = self._shadow.filter(ImageFilter.GaussianBlur(0.8 * self._canvas.scale))
        shadow = np.asarray(soft, dtype=np.float32)[self.top :, :, None] / 255
        colours = colours * (1 - shadow * (0.35 + 0.25 * style.sun))
        canvas = self._canvas
        for layer, values, kind in (
            (canvas.rgb, np.clip(colours, 0, 255), np.uint8),
            (canvas.ids, ids, np.int32),
            (canvas.depth, np.broadcast_to(np.minimum(self.z, FAR), ids.shape), np.float32),
        ):
            layer.paste(Image.fromarray(np.ascontiguousarray(values, dtype=kind)), (0, self.top))

    def _classes(self) -> NDArray[np.uint8]:
        street, x, z = self._street, self.x, self.z
        ids = np.full(x.shape, LABEL["sidewalk"], dtype=np.uint8)
        for side in (-1, 1):
            beyond = x * side > street.edge(side) * side
            grass = np.ones(z.shape, dtype=bool)
            for plot in street.plots:
                if plot.side == side and not plot.park:
                    grass &= ~((z >= plot.near) & (z < plot.far))
            ids[beyond & grass] = LABEL["terrain"]
        ids[(x > street.left) & (x < street.right)] = LABEL["road"]
        if street.crossing:
            near, far = street.crossing
            ids[np.broadcast_to((z > near) & (z < far), x.shape)] = LABEL["road"]
            # The pavement goes round the corner.
            walk = ((z > near - 2) & (z <= near)) | ((z >= far) & (z < far + 2))
            ids[walk & (ids == LABEL["terrain"])] = LABEL["sidewalk"]
        return ids

    def _colours(self, rng: np.random.Generator, ids: NDArray[np.uint8], style: Style) -> Floats:
        street, x, z = self._street, self.x, self.z
        patches = self._texture(rng, 0.9)
        near = np.clip(1.3 - z / 40, 0, 1)  # what is fine melts into an even tone far away
        asphalt = np.array([112, 112, 115]) * rng.uniform(0.82, 1.18) + rng.normal(0, 2.5, 3)
        slabs = np.array([168, 163, 155]) * rng.uniform(0.85, 1.1) + rng.normal(0, 4, 3)
        earth = np.array([150, 122, 92])
        asphalt, slabs = (tone + (earth * shade - tone) * style.dirt for tone, shade in ((asphalt, 1), (slabs, 1.1)))
        grass = np.array([98, 124, 58]) * rng.uniform(0.8, 1.1) + rng.normal(0, 6, 3)
        table = np.zeros((20, 3), dtype=np.float32)
        table[LABEL["road"]], table[LABEL["sidewalk"]], table[LABEL["terrain"]] = asphalt, slabs, grass
        colours = table[ids] * (1 + 0.07 * patches * (1 + 1.6 * (ids == LABEL["terrain"])))[..., None]
        # Wheels polish two tracks per lane.
        in_lane = np.abs((x - street.middle) % LANE - LANE / 2)
        tracks = np.exp(-(((in_lane - 0.75) / 0.25) ** 2)) * (ids == LABEL["road"])
        colours *= (1 - 0.06 * tracks)[..., None]
        joints = ((x % 0.8 < 0.035) | ((z % 0.8) < 0.05)) & (ids == LABEL["sidewalk"])
        colours *= (1 - 0.16 * joints * near)[..., None]
        if not street.is_crossed(float(z.max())):
            for side in (-1, 1):
                kerb = np.abs(x - street.kerb(side) - side * 0.08) < 0.09
                colours = np.where((kerb & self._along())[..., None], slabs * 1.12, colours)
        white = (ids == LABEL["road"]) & self._markings(rng)
        paint = np.array([226, 225, 218]) * (1 - 0.22 * np.abs(patches))[..., None]
        colours = np.where(white[..., None], colours + (paint - colours) * 0.85 * (1 - style.dirt), colours)
        if style.snow:
            lies = np.array([0.15, 0.8, 0.95], dtype=np.float32)  # on road, pavement and grass
            cover = np.zeros(20, dtype=np.float32)
            cover[[LABEL["road"], LABEL["sidewalk"], LABEL["terrain"]]] = lies
            melted = 0.5 * tracks + 0.25 * self._texture(rng, 0.7)
            white_share = np.clip(cover[ids] * (0.55 + style.snow) - melted + 0.2 * style.snow, 0, 0.95)
            colours = colours + (np.array([231, 234, 240]) - colours) * white_share[..., None]
        if style.wet:
            colours = colours * (1 - 0.3 * style.wet)
        return colours.astype(np.float32)

    def _along(self) -> NDArray[np.bool_]:
        """Where the street's own kerbs and lines run, and no street crosses."""
        crossing = self._street.crossing
        if crossing is None:
            return np.ones(self.z.shape, dtype=bool)
        return (self.z < crossing[0]) | (self.z > crossing[1])

    def _markings(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        street, x, z = self._street, self.x, self.z
        dashed = (z + rng.uniform(0, 9)) % 9 < 4
        lines = np.abs(x - street.middle) < 0.08
        if rng.random() < 0.75:
            lines = lines & dashed
        for side in (-1, 1):
            inner = street.kerb(side) - side * (2.1 if street.parking[side > 0] else 0.3)
            across = street.middle + side * LANE
            while (inner - across) * side > 0.5:
                lines = lines | ((np.abs(x - across) < 0.07) & dashed)
                across += side * LANE
            lines = lines | ((np.abs(x - inner) < 0.06) & (z % 6 < 5 if street.parking[side > 0] else z > 0))
        lines = lines & self._along()
        if street.crossing:
            near = street.crossing[0]
            stripes = (z > near - 5) & (z < near - 1.6) & ((x - street.left) % 1.1 < 0.55)
            stop = (z > near - 6.6) & (z < near - 6.1) & (x > street.middle)
            lines = (lines & (z < near - 6.6)) | (lines & (z > near)) | stripes | stop
        return lines

    def _texture(self, rng: np.random.Generator, hill: float) -> Floats:
        """Noise in -1 to 1 that lies on the ground, with hills of ``hill`` metres, and finer ones within."""
        tile = _seamless(rng, _TILE, 16) * 0.6 + _seamless(rng, _TILE, 64) * 0.4
        cell = hill * 16 / _TILE  # metres per sample of the tile
        across = (self.x / cell).astype(np.int32) % _TILE
        ahead = (self.z / cell).astype(np.int32) % _TILE
        return tile[ahead, across] * np.clip(1.4 - self.z / 60, 0.15, 1)

    def _odd_colours(self, rng: np.random.Generator) -> Floats:
        """Two colours of any hue in one of five patterns: patches, stripes, dots, rings or bricks."""
        x, z, kind = self.x, self.z, int(rng.integers(5))
        waves, size = self._texture(rng, rng.uniform(0.8, 3.0)), rng.uniform(0.6, 2.2)
        first, second = rng.uniform(20, 245, (2, 3))
        if kind == 0:
            share = np.clip(waves * rng.uniform(1, 8) + 0.5, 0, 1)
        elif kind == 1:
            slant = rng.uniform(-1, 1)
            share = (x + slant * z + 0.5 * waves) % size < size * rng.uniform(0.25, 0.75)
        elif kind == 2:
            share = (x % size - size / 2) ** 2 + (z % size - size / 2) ** 2 < (0.33 * size) ** 2
        elif kind == 3:
            share = np.hypot(x - rng.uniform(-4, 4), z - rng.uniform(6, 20)) % size < size * 0.5
        else:
            row = np.floor(z / size)
            share = ((z % size) < 0.16 * size) | (((x + 0.5 * size * (row % 2)) % size) < 0.12 * size)
        colours = first + (second - first) * np.asarray(share, dtype=np.float32)[..., None]
        return (colours * (1 + 0.12 * waves[..., None])).astype(np.float32)

    def _unseen_colours(self, rng: np.random.Generator) -> Floats:
        """Water, lava, planks or a chequered floor in place of asphalt."""
        x, z, kind = self.x, self.z, int(rng.integers(4))
        waves = self._texture(rng, 1.6)
        if kind == 0:
            swell = np.sin(z * 1.9 + 3 * waves + 0.4 * np.sin(x)) * np.clip(1.3 - z / 50, 0.1, 1)
            foam = np.clip(swell * 2.4 - 1.5, 0, 1)[..., None]
            water = np.array([26, 146, 152]) + np.array([26, 44, 40]) * (swell * 0.5 + waves * 0.7)[..., None]
            return (water + (np.array([232, 246, 244]) - water) * foam).astype(np.float32)
        if kind == 1:
            glow = np.clip(1 - np.abs(waves) * 3.2, 0, 1)[..., None]
            rock = np.array([44, 30, 28])
            return (rock + (np.array([255, 132, 24]) - rock) * glow).astype(np.float32)
        if kind == 2:
            planks = 1 - 0.55 * (z % 1.2 < 0.06) + 0.12 * np.sin(np.floor(z / 1.2) * 12.9898) + 0.16 * waves
            return (np.array([168, 112, 62]) * planks[..., None]).astype(np.float32)
        fields = (np.floor(x / 1.1) + np.floor(z / 1.1)) % 2
        dark = np.array([48, 46, 58])
        tiles = dark + (np.array([232, 226, 214]) - dark) * fields[..., None]
        return (tiles * (1 + 0.05 * waves[..., None])).astype(np.float32)


def _seamless(rng: np.random.Generator, size: int, cells: int) -> Floats:
    """Value noise (size, size) that goes on where it ends, with ``cells`` hills along each side."""
    rim, step = 2, size // cells
    values = np.pad(rng.uniform(-1, 1, (cells, cells)).astype(np.float32), rim, mode="wrap")
    whole = (cells + 2 * rim) * step
    smooth = np.asarray(Image.fromarray(values).resize((whole, whole), Image.Resampling.BICUBIC))
    return smooth[rim * step : -rim * step, rim * step : -rim * step]
