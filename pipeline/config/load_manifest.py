"""Finds and loads a manifest, a file or one that comes with the package, with the command line's changes to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import ManifestError, reason
from ...models.registry import CODE
from .manifest import Manifest, select
from .member import Member
from .member_inference import MemberInference, with_samples
from .path_variables import PathContext, expand_home, refuse_unused
from .yaml_document import Document, FieldError, read_document, validate

SHIPPED = Path(__file__).parents[2] / "manifests"


def shipped_manifests(folder: Path = SHIPPED) -> list[str]:
    """List the names of the manifests that come with the package, without ``.yaml``."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_manifest(source: str | Path, shipped: Path = SHIPPED) -> Path:
    """Find a manifest: a file, or the bare name of one in the folder ``shipped``, with or without ``.yaml``.

    The file wins. Returns the absolute path; ManifestError if there is neither.
    """
    path = expand_home(str(source))
    shown, bare = str(source) or "''", str(source).removesuffix(".yaml")
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise ManifestError(f"{shown}: cannot be read: {reason(error)}") from None
    if bare in shipped_manifests(shipped) and (folder or not exists):
        return shipped / f"{bare}.yaml"
    if folder:
        raise ManifestError(f"{shown}: is a folder; name the YAML file in it")
    if not exists:
        known = ", ".join(shipped_manifests(shipped))
        raise ManifestError(f"{shown}: no such manifest; the package ships {known}")
    return path.absolute()


def load_manifest(
    source: str | Path,
    *,
    output: str | Path | None = None,
    data_root: Path | None = None,
    assets: Path | None = None,
    models: Sequence[str] | None = None,
    datasets: Sequence[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Manifest:
    """Read, check and resolve a manifest; checkpoints and images need not exist.

    Args:
        source: what `find_manifest` takes.
        output: wins over the manifest's ``output``; relative to the current folder.
        data_root: wins over the environment variable HMSA_DATA_ROOT.
        assets: wins over HMSA_ASSETS.
        models, datasets: names of those to keep, all if None or empty; the manifest's order stays.
        overrides: settings that win over the manifest's, as a tree of its shape, for example
            ``{"inference": {"precision": "fp32"}}``; a None in it changes nothing.

    Raises:
        ManifestError: the manifest or an argument is wrong; everything that is wrong is named in one line.
    """
    path = find_manifest(source)
    name = path.name if path.parent == SHIPPED else str(source)
    document = read_document(path, name).override(overrides or {})
    if output is not None:
        document = document.override({"output": str(output)})
    refuse_unused(document, data_root, assets)
    manifest = validate(Manifest, document, PathContext.of(path.parent, data_root, assets))
    members = _members(manifest, document, (overrides or {}).get("inference") or {})
    return manifest.model_copy(
        update={
            "models": select("model", members, models or [m.name for m in members]),
            "datasets": select("dataset", manifest.datasets, datasets or [d.name for d in manifest.datasets]),
        }
    )


def _members(manifest: Manifest, document: Document, flags: Mapping[str, Any]) -> Sequence[Member]:
    """List all members of a manifest; what the command line says of all wins over what a model says of itself."""
    try:
        members = with_samples(manifest)
    except FieldError as error:
        raise document.error([(error.place, str(error))]) from None
    given = {
        name: None for name, value in flags.items() if value is not None and name in MemberInference.model_fields
    }
    if not given:
        return members
    return [
        member
        if member.inference is None
        else member.model_copy(update={"inference": member.inference.model_copy(update=given)})
        for member in members
    ]


def trust_models(manifest: Manifest) -> Manifest:
    """Return a manifest whose models that are code may be loaded.

    Raises:
        ManifestError: none of them is code.
    """
    if not any(member.arch in CODE for member in manifest.models):
        raise ManifestError(f"--trust: changes nothing, no model is of arch {' or '.join(CODE)}; leave it out")
    models = tuple(member.trusting() if member.arch in CODE else member for member in manifest.models)
    return manifest.model_copy(update={"models": models})
