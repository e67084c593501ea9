"""The picture that opens a report: one photograph, what each member makes of it, the ensemble, and its errors.

The photograph is chosen by a rule, which the page states:

==========================================  ===========================================================
there are                                   the photograph
==========================================  ===========================================================
labels of classes and two members or more   with the largest gain over the member that is best there
labels of classes                           in the middle, by the share of wrong pixels
two members or more                         about which they disagree most, by mutual information
neither                                     of which the ensemble is least sure
==========================================  ===========================================================
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...datasets.class_set import ClassSet
from ...datasets.taxonomy import IGNORE
from ...files import write_bytes, write_json
from ..fusion.member_stores import ENSEMBLE, predict_from_stores
from ..pictures.colours import class_colours, wrong_over_grey
from ..pictures.sheet import member_sheet
from ..text import percent, plural
from .image_pictures import FOREIGN, UNKNOWN, class_legend, write_ids
from .records import PICTURES, DatasetSetup, DatasetSummary, GalleryEntry

STORY = "story"
SHEET = f"{STORY}/sheet.png"
_RECORD, _ERRORS = "story.json", "errors.jpg"
_LABELS = "labels"
_FORMAT = 1
_WIDTH = 480  # of a picture on the sheet, and of a member's


@dataclass(frozen=True)
class StoryChoice:
    """The chosen photograph.

    Attributes:
        number: of its dataset.
        image: its path in the dataset.
        rule: how it was chosen, in words.
    """

    number: int
    image: str
    rule: str


@dataclass(frozen=True)
class Tile:
    """One picture of the story.

    Attributes:
        title: what it shows.
        note: a figure that belongs to it; empty for none.
        file: relative to the report.
        kind: ``photograph``, ``classes``, ``confidence``, ``errors``, ``foreign`` or ``disagreement``.
        best: whether it is of the member with fewest wrong pixels.
    """

    title: str
    note: str
    file: str
    kind: str
    best: bool = False


@dataclass(frozen=True)
class Story:
    """The pictures of the chosen photograph.

    Attributes:
        choice: the photograph.
        dataset: its name.
        entry: its entry in the gallery.
        above: the photograph, the ensemble, its confidence, and what is wrong or disputed.
        below: the labels if there are some, and each member alone; empty if there are not two members.
    """

    choice: StoryChoice
    dataset: str
    entry: GalleryEntry
    above: tuple[Tile, ...]
    below: tuple[Tile, ...]

    def as_json(self) -> dict[str, str]:
        """Where the photograph is, and how it was chosen."""
        return {"dataset": self.dataset, "image": self.choice.image, "rule": self.choice.rule}


def choose_story(summaries: Sequence[DatasetSummary]) -> StoryChoice | None:
    """Choose the photograph by the rule of this module; None if there is no image at all."""
    images = [(i, image, entry) for i, one in enumerate(summaries) for image, entry in one.gallery.items()]
    gains = [
        (one.gains[image], i, image) for i, one in enumerate(summaries) for image in one.gallery if image in one.gains
    ]
    if gains:
        best, number, image = max(gains, key=lambda found: found[0].share)
        shares = sorted(gain.share for gain, _, _ in gains)
        ahead = sum(share > 0 for share in shares)
        rule = (
            f"Of {plural(len(gains), 'photograph')} with labels of classes, the one on which the ensemble gains most "
            f"over the member that is best there ({best.best}): {_signed(best.share)} of the pixels. "
            f"This is the best case. The median gain is {_signed(shares[len(shares) // 2])}, the lowest "
            f"{_signed(shares[0])}; the ensemble is ahead of all its members on {ahead} of {len(gains)}."
        )
        return StoryChoice(number, image, rule)
    labelled = [(entry.wrong, i, image) for i, image, entry in images if entry.wrong is not None and not entry.ood]
    if labelled:
        labelled.sort(key=lambda found: found[0])
        _, number, image = labelled[len(labelled) // 2]
        words = plural(len(labelled), "photograph")
        return StoryChoice(
            number, image, f"Of {words} with labels of classes, the median by its share of wrong pixels."
        )
    disputed = [(entry.information, i, image) for i, image, entry in images if entry.information is not None]
    if disputed:
        most, number, image = max(disputed, key=lambda found: found[0])
        rule = (
            f"Of {plural(len(disputed), 'photograph')}, the one about which the members disagree most: mean mutual "
            f"information {most:.3f} nats."
        )
        return StoryChoice(number, image, rule)
    if not images:
        return None
    number, image, _ = min(images, key=lambda found: found[2].confidence)
    rule = f"Of {plural(len(images), 'photograph')}, the one of which the ensemble is least sure."
    return StoryChoice(number, image, rule)


def _signed(share: float) -> str:
    return f"{100 * share:+z.1f} %"


def draw_story(
    setup: DatasetSetup, summary: DatasetSummary, choice: StoryChoice, wrong: Mapping[str, float]
) -> Story:
    """Draw what each member makes of the photograph, unless that is there, and a sheet of all.

    Args:
        setup: of the photograph's dataset.
        summary: of it.
        choice: the photograph.
        wrong: share of wrong labelled pixels of the ensemble and of each member; empty if there are no labels of
            classes.

    Raises:
        StoreError: logits are missing or damaged.
        OSError: a file cannot be written.
    """
    entry = summary.gallery[choice.image]
    own = f"{PICTURES}/{entry.key}"
    members = setup.members if len(setup.members) > 1 else ()
    notes = {name: f"{percent(share)} wrong" for name, share in wrong.items()}
    above = [
        Tile("photograph", "", f"{own}/photograph.jpg", "photograph"),
        Tile(ENSEMBLE, notes.get(ENSEMBLE, ""), f"{own}/prediction.png", "classes"),
        Tile("confidence", f"mean {entry.confidence:.2f}", f"{own}/confidence.jpg", "confidence"),
    ]
    below = []
    if "errors" in entry.layers:
        above.append(Tile("errors of the ensemble", "", f"{STORY}/{_ERRORS}", "errors"))
        (below if members else above).append(Tile(_LABELS, "", f"{own}/labels.png", "classes"))
    elif "disagreement" in entry.layers:
        note = f"mean {entry.information:.3f} nats"
        above.append(Tile("disagreement of members", note, f"{own}/disagreement.jpg", "disagreement"))
    if "foreign" in entry.layers:
        above.append(Tile("out of distribution", "in the labels", f"{own}/foreign.png", "foreign"))
    least = min((wrong[member.name] for member, _ in members if member.name in wrong), default=None)
    for number, (member, _) in enumerate(members):
        best = least is not None and wrong[member.name] == least
        below.append(Tile(member.name, notes.get(member.name, ""), f"{STORY}/member-{number}.png", "classes", best))
    story = Story(choice, setup.dataset, entry, tuple(above), tuple(below))
    _draw(setup, story)
    return story


def _draw(setup: DatasetSetup, story: Story) -> None:
    """Write the files of the story's folder, unless they are of the same pictures."""
    folder = setup.folder / STORY
    tiles = [*story.above, *story.below]
    made_of = [_FORMAT, story.entry.key, [(tile.title, tile.note, tile.file) for tile in tiles]]
    record = json.loads(json.dumps(made_of))
    wanted = [setup.folder / tile.file for tile in tiles] + [setup.folder / SHEET]
    try:
        if json.loads((folder / _RECORD).read_text(encoding="utf-8")) == record and all(p.is_file() for p in wanted):
            return
    except (OSError, ValueError):
        pass
    (folder / _RECORD).unlink(missing_ok=True)
    own = setup.folder / PICTURES / story.entry.key
    if "errors" in story.entry.layers:
        # 0 is wrong and 1 has no label, see `draw_pictures`.
        ids = _ids(own / "errors.png")
        _write_jpeg(folder / _ERRORS, wrong_over_grey(_rgb(own / "photograph.jpg"), ids == 0, ids == 1))
    if story.below:
        subjects = {member.name: (number,) for number, (member, _) in enumerate(setup.members)}
        alone = predict_from_stores(setup.members, story.choice.image, subjects, setup.functions)
        width = min(_WIDTH, setup.width, story.entry.size[1])
        for number, (label, _) in enumerate(alone.values()):
            write_ids(folder / f"member-{number}.png", label, setup.classes.colours, width)
    sheet = member_sheet(
        [(_caption(tile), _pixels(setup.folder / tile.file, tile.kind, setup.classes)) for tile in _in_order(story)],
        min(_WIDTH, setup.width, story.entry.size[1]),
        setup.classes,
    )
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    write_bytes(setup.folder / SHEET, file.getvalue())
    write_json(folder / _RECORD, record)


def _in_order(story: Story) -> list[Tile]:
    """The photograph, the members, the ensemble and what belongs to it, the labels."""
    last = [tile for tile in story.below if tile.title == _LABELS]
    members = [tile for tile in story.below if tile not in last]
    return [story.above[0], *members, *story.above[1:], *last]


def _caption(tile: Tile) -> str:
    return f"{tile.title}, {tile.note}" if tile.note else tile.title


def _pixels(path: Path, kind: str, classes: ClassSet) -> np.ndarray:
    if kind == "classes":
        return class_colours(_ids(path), classes)
    if kind == "foreign":
        marked = np.array([FOREIGN, UNKNOWN, (235, 235, 235)], np.uint8)
        return marked[_ids(path).clip(0, 2)]
    return _rgb(path)


def _ids(path: Path) -> np.ndarray:
    """The ids of a palette image that `draw_pictures` wrote, 255 where a pixel is transparent."""
    with Image.open(path) as image:
        ids = np.array(image)
        none = image.info.get("transparency")
    return np.where(ids == none, IGNORE, ids).astype(np.uint8)


def _rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _write_jpeg(path: Path, pixels: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    write_bytes(path, file.getvalue())


def shown_story(story: Story | None, classes: ClassSet) -> dict[str, Any] | None:
    """The story as the page's template shows it; None for none. ``classes`` are the manifest's."""
    if story is None:
        return None
    return {
        "key": story.entry.key,
        "name": story.choice.image,
        "dataset": story.dataset,
        "rule": story.choice.rule,
        "above": story.above,
        "below": story.below,
        "colours": [class_legend(classes)[number] for number in story.entry.classes],
        "sheet": SHEET,
    }
