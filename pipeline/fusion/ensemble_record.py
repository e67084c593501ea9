"""``ensemble.json`` beside the predictions of a dataset: the members and functions that they were fused with.

Its fingerprint tells whether existing predictions are those that would be made now.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any

from ... import __version__
from ...datasets.class_set import CITYSCAPES19, ClassSet
from ...errors import StoreError, first_few
from ..config.class_set_field import describe_classes
from ..config.manifest import FusionFunctions
from ..config.member import Member
from ..storage.filesystem import read_bytes
from ..store.identity import StoreIdentity
from .fuse import STANDARDISED

RECORD = "ensemble.json"
_MEMBER = {"name", "weight", "temperature", "store"}


def make_record(
    functions: FusionFunctions,
    members: Sequence[tuple[Member, StoreIdentity | None]],
    before: dict[str, Any],
    classes: ClassSet = CITYSCAPES19,
) -> dict[str, Any]:
    """Make the record of an ensemble, with its fingerprint.

    Args:
        functions: functions of the label and of the confidence.
        members: each with the identity of its store, None if it has no store.
        before: the existing record, which knows the fingerprints of stores that are gone.
        classes: of the manifest; their names stand in the record unless they are the default.
    """
    known = _stores(before)
    described = {
        "label": functions.label,
        "confidence": functions.confidence,
        "members": [
            {
                "name": member.name,
                "weight": member.weight,
                "temperature": member.temperature,
                "store": known.get(member.name) if identity is None else _fingerprint(identity),
                **_calibration(member),
                **_max_logits(member, functions),
            }
            for member, identity in members
        ],
    }
    if not classes.is_default:
        described["classes"] = list(classes.names)
    return {"fingerprint": _digest(described), "version": __version__, **described}


def require_recorded_classes(folder: Path, classes: ClassSet) -> None:
    """Raise StoreError if the predictions in ``folder`` were made of other classes than the manifest's."""
    record = read_record(folder)
    names = record.get("classes", list(CITYSCAPES19.names))
    if record and names != list(classes.names):
        raise StoreError(
            f"{folder}: holds predictions of other classes ({describe_classes(names)}) than the manifest's "
            f"({classes}); choose the manifest's 'classes', or another --output"
        )


def _stores(record: dict[str, Any]) -> dict[str, str]:
    return {m["name"]: m["store"] for m in record.get("members", []) if m["store"]}


def _calibration(member: Member) -> dict[str, str]:
    """Name a member's calibration by its numbers; without one there is no entry, as before there were any."""
    return {"calibration": _digest(member.calibration[0].resolved())} if member.calibration else {}


def _max_logits(member: Member, functions: FusionFunctions) -> dict[str, Any]:
    """The statistics that a member's max logits are standardised by; no entry where nothing is."""
    is_used = functions.confidence == STANDARDISED and member.max_logits is not None
    return {"max_logits": member.max_logits.resolved()} if is_used and member.max_logits else {}


def _fingerprint(identity: StoreIdentity) -> str:
    fields = identity.as_json()
    # A checkpoint of another name is the same if its sha256 is.
    fields.pop("checkpoint")
    return _digest(fields)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Read the record of the predictions in ``folder``; empty if there is none, StoreError if it cannot be read."""
    path = folder / RECORD
    try:
        value = json.loads(read_bytes(path))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, OSError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); make the predictions again with --overwrite") from error
    if not _is_record(value):
        raise StoreError(f"{path}: is no record of predictions; make them again with --overwrite")
    return value


def _is_record(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("members"), list)
        and all(isinstance(m, dict) and m.keys() >= _MEMBER and isinstance(m["name"], str) for m in value["members"])
        and isinstance(value.get("partial"), dict)
    )


def changes(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    """Describe for people how two records differ; None if both are of the same fusion of the stores that both know.

    A store may come or go: a member without one took part in no image, as the list of partial images says.
    """
    known = _stores(before).keys() & _stores(now).keys()
    if _work(before, known) == _work(now, known):
        return None
    changed = [
        f"{name} {before.get(name)} there, {now[name]} now"
        for name in ("label", "confidence")
        if before.get(name) != now[name]
    ]
    old, new = ({m["name"]: m for m in record["members"]} for record in (before, now))
    if list(old) != list(new):
        changed.append(f"members {', '.join(old)} there, {', '.join(new)} now")
    for name in [name for name in old if name in new]:
        for what in ("weight", "temperature", "store"):
            if old[name].get(what) != new[name][what]:
                detail = "" if what == "store" else f" {old[name].get(what)} there, {new[name][what]} now"
                changed.append(f"{what} of {name}{detail or ' made with other settings'}")
        if old[name].get("calibration") != new[name].get("calibration"):
            changed.append(f"calibration of {name} {_there(old[name])} there, {_there(new[name])} now")
        both = [record[name].get("max_logits") for record in (old, new)]
        if None not in both and both[0] != both[1]:
            changed.append(f"other max_logits of {name}")
    return first_few(changed, 3) or "another version"


def _there(member: dict[str, Any]) -> str:
    return f"{member['calibration'][:8]}..." if "calibration" in member else "none"


def _work(record: dict[str, Any], known: Set[str]) -> dict[str, Any]:
    members = [m if m["name"] in known else {**m, "store": None} for m in record["members"]]
    return {"label": record.get("label"), "confidence": record.get("confidence"), "members": members}
