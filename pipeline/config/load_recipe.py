"""Reads a recipe: the file, the command line's settings, the initial weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...datasets.dataset_specs import NAMES
from ...errors import ManifestError, nearest, one_line
from .load_manifest import find_manifest, shipped_manifests
from .overrides import SetOption, apply_overrides
from .path_variables import PathContext, expand_home, is_url, refuse_unused
from .recipe import RANDOM, RECIPES, Recipe
from .yaml_document import Document, read_document, validate

_NO_INIT: Mapping[str, Any] = {"checkpoint": [], "fresh": [], "unused": [], "prefix": ""}


def shipped_recipes() -> list[str]:
    """The names of the recipes that come with the package, without ``.yaml``."""
    return shipped_manifests(RECIPES)


def recipe_of(dataset: str) -> str:
    """The shipped recipe of a dataset, for `load_recipe`.

    Raises:
        ManifestError: there is none.
    """
    if dataset not in NAMES:
        known = f"known: {', '.join(NAMES)}"
        meant = nearest(dataset, NAMES)
        hint = known if meant == known else f"{meant} {known}"
        raise ManifestError(one_line(f"--dataset {dataset}: is not known; {hint}"))
    return str(RECIPES / f"{dataset}.yaml")


def load_recipe(
    source: str | Path,
    *,
    output: str | Path | None = None,
    data_root: Path | None = None,
    assets: Path | None = None,
    root: Path | None = None,
    cache: Path | None = None,
    init: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Recipe:
    """Read, check and resolve a recipe; no image or checkpoint needs to be there.

    Args:
        source: a file, or the bare name of a shipped recipe.
        output: wins over the recipe's; relative to the current folder, as all that follow.
        data_root: wins over the environment variable HMSA_DATA_ROOT.
        assets: wins over HMSA_ASSETS.
        root: wins over the recipe's ``data.root``.
        cache: wins over the recipe's ``data.cache``.
        init: a checkpoint that wins over the recipe's, or `RANDOM`. The recipe's fresh layers hold for it too, unless
            the architecture is another one than the recipe's, whose ``init`` is then passed over.
        overrides: settings that win over the recipe's, as a tree like it; a None in it changes nothing.
        settings: more of them, each ``section.key=value`` with a value in YAML; null too.

    Raises:
        ManifestError: anything wrong with any of these, in one line.
    """
    path = find_manifest(source, RECIPES)
    name = f"train/{path.name}" if path.parent == RECIPES else str(source)
    document = read_document(path, name)
    given = [SetOption.parse(setting) for setting in settings]
    document, notes = _with_initial_weights(document, apply_overrides(document, overrides or {}, given).tree, init)
    document = apply_overrides(document, overrides or {}, given)
    for place, folder in ((("output",), output), (("data", "root"), root), (("data", "cache"), cache)):
        if folder is not None:
            tree: Any = _from_here(folder)
            for key in reversed(place):
                tree = {key: tree}
            document = document.override(tree)
    refuse_unused(document, data_root, assets)
    recipe = validate(Recipe, document, PathContext.of(path, data_root, assets))
    recipe._notes = notes
    return recipe


def parse_size(text: str) -> list[int]:
    """``HxW`` as [height, width].

    Raises:
        ManifestError: it is something else.
    """
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if not found:
        raise ManifestError(one_line(f"--crop-size {text}: write HEIGHTxWIDTH, such as 1052x1914"))
    return [int(found[1]), int(found[2])]


def _from_here(path: str | Path) -> str:
    # Unlike the paths in a recipe, those of a flag start where the command runs.
    return str(path) if is_url(str(path)) else str(Path.cwd() / expand_home(str(path)))


def _with_initial_weights(
    document: Document, wanted: Mapping[str, Any], init: str | None
) -> tuple[Document, tuple[str, ...]]:
    """The recipe with what ``init`` says of the initial weights, and what the user should know of it.

    Args:
        document: the recipe as it was written.
        wanted: its tree with all that the command line says.
        init: see `load_recipe`.
    """
    default = Recipe.model_fields["arch"].default
    of_recipe = document.tree.get("arch", default)
    other = wanted.get("arch", default) != of_recipe
    notes: tuple[str, ...] = ()
    if init is None:
        section = document.tree.get("init")
        if not (other and isinstance(section, dict) and section.get("checkpoint")):
            return document, notes
        init = RANDOM
        notes = (
            f"init: random weights, since the recipe's checkpoint is one of {of_recipe}; name another by --init FILE",
        )
    if not init.strip():
        raise ManifestError(f"--init: an empty name is no file; name one, or {RANDOM}")
    if init == RANDOM:
        return document.override({"init": _NO_INIT}), notes
    return document.override({"init": {**(_NO_INIT if other else {}), "checkpoint": _from_here(init)}}), notes
