"""Which of two tables of labels the masks of a dataset hold, by the file that its authors put beside them.

Mapillary Vistas has 66 labels in v1.2 and 124 in v2.0, whose masks look alike; ``config.json`` lists the labels.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...errors import DatasetError, cannot_read
from ..dataset_specs import SEE, DatasetSpec, MaskRule


def encoding_of(root: Path, facts: DatasetSpec, rule: MaskRule, folder: str) -> str:
    """How masks are encoded that lie where ``rule`` says: as it says, or as a file of the dataset tells.

    Args:
        root, facts: the dataset's folder, and which dataset it is.
        rule: where its `MaskRule.told_by` names files, the one that is there is read.
        folder: which holds such masks, relative to the root; for errors.

    Raises:
        DatasetError: none or several of the files are there, or it lists the labels of no table that is known.
    """
    if not rule.told_by:
        return rule.encoding
    there = [name for name in rule.told_by if (root / name).is_file()]
    if not there:
        raise DatasetError(
            f"{root / rule.told_by[0]}: is not there, which says of which version the masks in {folder}/ are; "
            f"unpack it from the archive as well; {SEE}"
        )
    if len(there) > 1 and rule.told_by[0] not in there:
        raise DatasetError(
            f"{root}: {' and '.join(there)} are there, so nothing says of which version the masks in {folder}/ are; "
            f"keep the one that belongs to them, or put the masks where the archive has them; {SEE}"
        )
    path = root / there[0]
    try:
        content = json.loads(path.read_bytes())
        names = [str(label["name"]) for label in content["labels"]]
    except OSError as error:
        raise DatasetError(cannot_read(path, error)) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DatasetError(f"{path}: is no list of labels ({reason}); unpack it again") from error
    for encoding, labels in (("ids", facts.labels), ("ids_v2", facts.labels_v2)):
        if labels and len(names) == len(labels):
            return encoding
    known = " or ".join(str(len(labels)) for labels in (facts.labels, facts.labels_v2) if labels)
    raise DatasetError(f"{path}: lists {len(names)} labels, but {facts.title} has {known}; is it of another release?")
