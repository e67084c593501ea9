"""One image of a report: its pictures, its figures, and what of both was made before.

How much members contradict one another is told in two ways. Pairwise disagreement is the share of pixels of which two
members say another class. Mutual information is H(sum w p) - sum w H(p), in nats, of each pixel: what is left of the
ensemble's entropy when that of the members is taken off (Smith and Gal, Understanding Measures of Uncertainty for
Adversarial Example Detection, UAI 2018, equation 3); 0 where they agree, log 2 where two camps are each sure.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import multiprocessing
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...datasets.dataset_specs import Source
from ...datasets.layout.folder_layout import located
from ...datasets.layout.image_mask_pairs import Pair
from ...datasets.taxonomy import CLASS_NAMES, IGNORE, PALETTE
from ...errors import DatasetError, DiskError, StoreError, disk_error
from ...files import atomic_path, write_bytes, write_text
from ..config.manifest import Fusion as Functions
from ..config.manifest import Member
from ..fusion.fuse import fuse, quantise
from ..fusion.member_stores import ENSEMBLE, Placed, opened
from ..fusion.prediction_files import prediction_names, read_photograph, read_prediction
from ..pictures.colours import heated, sureness
from ..scoring.ground_truth import Truth
from ..scoring.metrics import defined
from ..scoring.pixel_counts import CLASSES, Counts
from ..storage.filesystem import state
from ..store.logit_store import LogitStore

PICTURES = "pictures"
BINS = 64
"""Of the confidence histogram."""
TWO_CAMPS = math.log(2)
"""Mutual information from which on a pixel is painted as bright as can be."""
_FORMAT = 1
_DONE = "exhibit.npz"
_THUMB = 320
_VALUES = 160
_SHOWN = 0.0005
_WRONG, _UNKNOWN, _FOREIGN = (213, 94, 0), (0, 0, 0), (0, 114, 178)


@dataclass(frozen=True)
class Room:
    """One dataset, ready to be shown.

    Attributes:
        dataset: its name.
        root: the folder of the photographs.
        predictions: the folder of the predictions.
        truth: reads the labels; None if there are none.
        members: whose stores are looked at; none if they are left out.
        functions: of label and confidence.
        folder: of the report.
        width: to which pictures are reduced.
        exif: whether photographs are turned as EXIF says.
    """

    dataset: str
    root: Path
    predictions: Path
    truth: Truth | None
    members: tuple[Placed, ...]
    functions: Functions
    folder: Path
    width: int
    exif: bool = False


@dataclass
class Card:
    """What a page tells of one image.

    Attributes:
        key: the name of its folder of pictures; another one if anything changed that it is made of.
        size: (height, width).
        layers: which pictures there are besides the photograph.
        confidence: mean, 0 to 1.
        disagreement: mean over the pairs of members of the share of pixels they disagree about; None without pairs.
        information: mean mutual information in nats; None without pairs.
        classes: train ids that are predicted or labelled on at least 0.05 % of the pixels.
        ood: whether its labels say what is out of distribution.
        wrong: how bad the ensemble is here, 0 to 1: the share of labelled pixels that are wrong, or, if ``ood``, the
            false positives at 95 % true ones; None where nobody knows.
    """

    key: str
    size: tuple[int, int]
    layers: list[str]
    confidence: float
    disagreement: float | None
    information: float | None
    classes: list[int]
    ood: bool = False
    wrong: float | None = None

    @property
    def pixels(self) -> int:
        """How many it has."""
        return self.size[0] * self.size[1]


@dataclass
class Exhibit:
    """What is known of one image.

    Attributes:
        card: what is told of it.
        counts: by subject (the ensemble, members); empty without labels.
        histogram: (64,) int64 pixels by the ensemble's confidence.
        disputes: (M, M) int64: pixels of which two members say another class.
    """

    card: Card
    counts: dict[str, Counts] = field(default_factory=dict)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    disputes: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))


def _how_wrong(found: Counts) -> float | None:
    figures = defined(found.figures())
    if found.ood:
        return figures["fpr95"]
    return None if figures["accuracy"] is None else 1 - figures["accuracy"]


def made_before(room: Room, item: tuple[str, Pair | None]) -> Exhibit | None:
    """What was made of an image when nothing of it was different; None if there is nothing, or nothing whole."""
    try:
        return _load(room.folder / PICTURES / _key(room, *item))
    except OSError:
        return None


def show(rooms: Sequence[Room], item: tuple[int, tuple[str, Pair | None]]) -> Exhibit | str:
    """Look at one image and draw its pictures; or why it cannot be.

    Args:
        rooms: the datasets.
        item: which of them; the image's path in it, and which mask it has.

    Raises:
        DiskError: a picture cannot be written.
    """
    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # there are as many processes as cores
    room, (image, pair) = rooms[item[0]], item[1]
    try:
        folder = room.folder / PICTURES / _key(room, image, pair)
        try:
            return _made(room, image, pair, folder)
        except OSError as error:
            raise disk_error(folder, error) from error
    except (DatasetError, StoreError) as error:
        if isinstance(error, DiskError):
            raise
        return str(error)


def _key(room: Room, image: str, pair: Pair | None) -> str:
    """Another one if anything changed that the pictures and figures are made of."""
    sources = [located(room.root, image), *(room.predictions / name for name in prediction_names(image))]
    meaning: list[Any] = []
    if pair and room.truth:
        sources.append(room.truth.source(pair))
        facts: Source | None = getattr(room.truth.reader, "source", None)
        meaning = [pair.encoding, facts and facts.mapping]
    for _, path in room.members:
        store = opened(path)
        shard = store.shard_path(store.index[image])
        sources += [shard] if shard else []
    numbers = [(member.name, member.weight, member.temperature) for member, _ in room.members]
    functions = room.functions.model_dump(mode="json")
    said = [_FORMAT, room.dataset, image, room.width, numbers, functions, meaning]
    said += [(str(path), state(path)) for path in sources]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:20]


def _made(room: Room, image: str, pair: Pair | None, folder: Path) -> Exhibit:
    label, confidence = read_prediction(room.predictions, prediction_names(image))
    size = (label.shape[0], label.shape[1])
    photograph = read_photograph(located(room.root, image), label, room.exif)
    truth = room.truth.read(pair, size) if room.truth and pair else None
    seen = np.bincount(label.ravel(), minlength=256)
    if truth is not None and room.truth and not room.truth.ood:
        seen = np.maximum(seen, np.bincount(truth.ravel(), minlength=256))
    card = Card(
        folder.name,
        size,
        [],
        float(sureness(confidence).mean(dtype=np.float64)),
        None,
        None,
        np.flatnonzero(seen[:CLASSES] >= max(1, _SHOWN * label.size)).tolist(),
    )
    made = Exhibit(
        card,
        histogram=np.bincount((confidence.ravel() >> 10).astype(np.int64), minlength=BINS),
    )
    if truth is not None and room.truth:
        made.counts[ENSEMBLE] = room.truth.count(label, confidence, truth)
        card.ood, card.wrong = room.truth.ood, _how_wrong(made.counts[ENSEMBLE])
    information = _members(room, image, truth, made) if room.members else None
    _draw(room, folder, made, photograph, label, confidence, truth, information)
    _save(folder, made)
    return made


def _members(room: Room, image: str, truth: np.ndarray | None, made: Exhibit) -> np.ndarray | None:
    """Look at every member; mutual information (H, W) float32, None if there is one member."""
    stores = [opened(path) for _, path in room.members]
    rows = [store.index[image] for store in stores]
    entry = stores[0].images[rows[0]]
    if made.card.size != (entry.height, entry.width):
        raise DatasetError(
            f"{stores[0].path}: holds {image} as {entry.height}x{entry.width}, its prediction is "
            f"{made.card.size[0]}x{made.card.size[1]}; fuse it again"
        )
    members = [member for member, _ in room.members]
    strips = [_strip(stores, rows, members, room.functions, start, stop) for start, stop in stores[0].strips(rows[0])]
    labels = [np.concatenate([strip[0][i] for strip in strips]) for i in range(len(members))]
    confidences = [np.concatenate([strip[1][i] for strip in strips]) for i in range(len(members))]
    if truth is not None and room.truth:
        for member, label, confidence in zip(members, labels, confidences, strict=True):
            made.counts[member.name] = room.truth.count(label, confidence, truth)
    if len(members) < 2:
        return None
    disputes = np.zeros((len(members), len(members)), np.int64)
    for i, j in combinations(range(len(members)), 2):
        disputes[i, j] = disputes[j, i] = np.count_nonzero(labels[i] != labels[j])
    information = np.concatenate([strip[2] for strip in strips])
    pairs = len(members) * (len(members) - 1)
    made.disputes = disputes
    made.card.disagreement = float(disputes.sum() / pairs / labels[0].size)
    made.card.information = float(information.mean(dtype=np.float64))
    return information


def _strip(
    stores: Sequence[LogitStore],
    rows: Sequence[int],
    members: Sequence[Member],
    functions: Functions,
    start: int,
    stop: int,
) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Each member's class map and confidence, and the mutual information, of some rows."""
    labels, confidences = [], []
    total = sum(member.weight for member in members)
    mean: Tensor | None = None
    inner: Tensor | None = None
    for store, row, member in zip(stores, rows, members, strict=True):
        logits = torch.from_numpy(store.read(row, start, stop))
        alone = fuse(
            [logits],
            [1.0],
            [member.temperature],
            label=functions.label,
            confidence=functions.confidence,
        )
        labels.append(alone.label.numpy())
        confidences.append(quantise(alone.confidence).numpy())
        p = (logits.float() / member.temperature).softmax(0).mul_(member.weight / total)
        # The entropy of what is multiplied by w is w (H - log w).
        share = member.weight / total
        entropy = torch.special.entr(p).sum(0).add_(share * math.log(share))
        mean = p if mean is None else mean.add_(p)
        inner = entropy if inner is None else inner.add_(entropy)
    if mean is None or inner is None:
        raise ValueError("there is no member")
    return labels, confidences, (torch.special.entr(mean).sum(0) - inner).clamp_(min=0.0).numpy()


def _draw(
    room: Room,
    folder: Path,
    made: Exhibit,
    photograph: np.ndarray,
    label: np.ndarray,
    confidence: np.ndarray,
    truth: np.ndarray | None,
    information: np.ndarray | None,
) -> None:
    width = min(room.width, label.shape[1])
    sure = sureness(confidence)
    _picture(folder / "photograph.jpg", Image.fromarray(photograph), width)
    _picture(folder / "thumb.jpg", Image.fromarray(photograph), min(_THUMB, label.shape[1]))
    _picture(folder / "prediction.png", _indexed(label, PALETTE), width)
    _picture(folder / "confidence.jpg", Image.fromarray(heated(sure)), width)
    made.card.layers += ["prediction", "confidence"]
    if information is not None:
        _picture(folder / "disagreement.jpg", Image.fromarray(heated(information / TWO_CAMPS)), width)
        made.card.layers.append("disagreement")
    if truth is not None and room.truth and room.truth.ood:
        _picture(folder / "foreign.png", _indexed(_foreign(truth), (_FOREIGN, _UNKNOWN)), width)
        made.card.layers.append("foreign")
    elif truth is not None:
        _picture(folder / "errors.png", _indexed(_errors(label, truth), (_WRONG, _UNKNOWN)), width)
        _picture(folder / "labels.png", _indexed(truth, PALETTE), width)
        made.card.layers += ["errors", "labels"]
    values: dict[str, Any] = {"prediction": label, "confidence": np.rint(sure * 255).astype(np.uint8)}
    if information is not None:
        values["disagreement"] = np.rint(information.clip(0, 2.55) * 100).astype(np.uint8)
    if truth is not None:
        values["truth"] = truth
    write_text(folder / "values.js", _values(folder.name, values))


def _errors(label: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """0 wrong, 1 not labelled, 255 right."""
    return np.where(truth == IGNORE, 1, np.where(label == truth, IGNORE, 0)).astype(np.uint8)


def _foreign(mask: np.ndarray) -> np.ndarray:
    """0 out of distribution, 1 unknown, 255 of the known world."""
    return np.where(mask == IGNORE, 1, np.where(mask == 1, 0, IGNORE)).astype(np.uint8)


def _indexed(ids: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """A palette image; transparent where an id has no colour."""
    picture = Image.fromarray(np.where(ids < len(colours), ids, len(colours)).astype(np.uint8), "P")
    picture.putpalette([*np.ravel(colours).tolist(), 0, 0, 0])
    picture.info["transparency"] = len(colours)
    return picture


def _picture(path: Path, picture: Image.Image, width: int) -> None:
    """Write a picture, reduced to ``width``: ids by their middle, all else by averaging."""
    if width < picture.width:
        size = (width, max(1, round(picture.height * width / picture.width)))
        mixing = Image.Resampling.NEAREST if picture.mode == "P" else Image.Resampling.LANCZOS
        information = dict(picture.info)
        picture = picture.resize(size, mixing)
        picture.info |= information
    file = io.BytesIO()
    if path.suffix == ".jpg":
        picture.save(file, "JPEG", quality=88)
    else:
        picture.save(file, "PNG", optimize=True)
    write_bytes(path, file.getvalue())


def _values(key: str, values: dict[str, np.ndarray]) -> str:
    """What stands at some points of the picture, as a call that a page opened from the disk may load."""
    height, width = next(iter(values.values())).shape
    columns = min(_VALUES, width)
    lines = max(1, round(height * columns / width))
    y = ((np.arange(lines) + 0.5) * height / lines).astype(np.int64)
    x = ((np.arange(columns) + 0.5) * width / columns).astype(np.int64)
    grids = {
        name: base64.b64encode(np.ascontiguousarray(grid[np.ix_(y, x)]).tobytes()).decode()
        for name, grid in values.items()
    }
    return f"hmsaValues({json.dumps(key)}, {json.dumps({'width': columns, 'height': lines, **grids})});\n"


def _save(folder: Path, made: Exhibit) -> None:
    """Written last: whoever finds it finds the pictures, too."""
    said = asdict(made.card)
    arrays: dict[str, Any] = {"histogram": made.histogram, "disputes": made.disputes}
    said["counts"] = {
        name: {"ood": one.ood, "images": one.images, "number": number}
        for number, (name, one) in enumerate(made.counts.items())
    }
    for number, one in enumerate(made.counts.values()):
        arrays |= {f"confusion{number}": one.confusion, f"levels{number}": one.levels.astype(np.uint32)}
    with atomic_path(folder / _DONE) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, said=np.array(json.dumps(said)), **arrays)


def _load(folder: Path) -> Exhibit | None:
    """What was made before; None if there is nothing, or nothing whole."""
    try:
        with np.load(folder / _DONE, allow_pickle=False) as arrays:
            said = json.loads(str(arrays["said"]))
            counts = {
                name: Counts(
                    one["ood"],
                    arrays[f"confusion{one['number']}"],
                    arrays[f"levels{one['number']}"].astype(np.int64),
                    one["images"],
                )
                for name, one in said.pop("counts").items()
            }
            said["size"] = tuple(said["size"])
            return Exhibit(Card(**said), counts, histogram=arrays["histogram"], disputes=arrays["disputes"])
    except (FileNotFoundError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        return None


CLASS_LEGEND = tuple(zip(CLASS_NAMES, (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in PALETTE), strict=True))
"""Name and colour of each class, by train id."""
