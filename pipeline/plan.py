"""From a manifest to the jobs of a dump: everything is checked before anything starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..datasets.images import MEAN, STD
from ..datasets.taxonomy import CLASS_NAMES
from ..errors import ManifestError
from .device import resolve_device, resolve_precision, resolve_speed
from .dump import Job, Plan
from .lock import require_free
from .manifest import DatasetEntry, Manifest, Member
from .member_check import check_member, digest
from .store import Identity, LogitStore
from .survey import remarks, store_path, survey

PREPROCESSING = {"colour": "RGB", "range": [0, 1], "mean": list(MEAN), "std": list(STD)}


def plan_dump(
    manifest: Manifest, *, device: str | torch.device = "auto", limit: int | None = None, overwrite: bool = False
) -> Plan:
    """Check everything that a dump needs, and list its jobs, member by member.

    Args:
        manifest: what is to be dumped.
        device: see `resolve_device`; or one that is known to be there, such as a worker's.
        limit: images per dataset, from the first; None for all.
        overwrite: whether stores that are there are started over.

    Raises:
        HmsaError: a device, checkpoint, dataset or store is not as it must be.
    """
    target = resolve_device(device) if isinstance(device, str) else device
    precision, note = resolve_precision(manifest.inference.precision, target)
    _, compile, speed_notes = resolve_speed(manifest.inference.cuda_graphs, manifest.inference.compile, target)
    notes = [*([note] if note else []), *speed_notes]
    members = [m for m in manifest.models if not m.external]
    notes += [
        f"model {m.name}: is external, filled by 'hmsa-pipeline import-logits'" for m in manifest.models if m.external
    ]
    if not members:
        raise ManifestError("no model to dump: all are external; fill them with 'hmsa-pipeline import-logits'")
    roots = [d.root_path() for d in manifest.datasets]
    for member in members:
        member.checkpoint_path()
    surveys = [survey(manifest, dataset, afresh=overwrite) for dataset in manifest.datasets]
    identities, said = identify(manifest, members, precision, compile)
    notes += [*said, *remarks(surveys)]
    jobs = tuple(
        Job(
            member=member,
            dataset=looked.dataset.name,
            root=root,
            store=store_path(manifest.output, looked.dataset.name, member.name),
            identity=identity_on(identity, looked.dataset),
            photographs=looked.photographs,
            limit=limit,
        )
        for member, identity in zip(members, identities, strict=True)
        for looked, root in zip(surveys, roots, strict=True)
    )
    for job in jobs:
        require_free(job.store)
    complete = tuple(0 if overwrite else len(complete_in(job)) for job in jobs)
    return Plan(manifest, jobs, complete, target, precision, tuple(notes), overwrite)


def identify(
    manifest: Manifest, members: Sequence[Member], precision: str, compile: str = "off"
) -> tuple[list[Identity], list[str]]:
    """What each member's logits are made with, and what to say of how its weights were found in their file.

    Raises:
        CheckpointError: a checkpoint does not fit the manifest.
    """
    identities, notes = [], []
    for member in members:
        identities.append(_identity_of(manifest, member, precision, compile, notes))
    return identities, notes


def _identity_of(manifest: Manifest, member: Member, precision: str, compile: str, notes: list[str]) -> Identity:
    path = member.checkpoint_path()
    if note := check_member(member, precision):
        notes.append(f"model {member.name}: {path.name}: {note}")
    return Identity(
        model=member.name,
        architecture=member.arch,
        checkpoint=path.name,
        sha256=digest(member),
        scales=tuple(sorted(manifest.inference.scales)),
        flip=manifest.inference.flip,
        precision=precision,
        classes=CLASS_NAMES,
        preprocessing=PREPROCESSING,
        encoding=manifest.store.encoding,
        compile=compile,
    )


def identity_on(identity: Identity, dataset: DatasetEntry) -> Identity:
    """What a member's logits over ``dataset`` are made with."""
    if not dataset.exif:
        return identity
    return replace(identity, preprocessing={**(identity.preprocessing or {}), "orientation": dataset.orientation})


def complete_in(job: Job) -> set[str]:
    """Wanted images that need no work; StoreError if the store is another work, or of other photographs."""
    if not LogitStore.exists(job.store):
        return set()
    store = LogitStore.open(job.store)
    store.require(job.identity)
    store.require_same(job.photographs)
    known = dict(zip((e.path for e in store.images), store.complete(), strict=True))
    return {photo.path for photo in job.wanted if known.get(photo.path)}
