"""Loads a recipe: the file, the command line's changes to it, and the initial weights."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...datasets.dataset_specs import NAMES
from ...errors import ManifestError, nearest
from .load_manifest import find_manifest
from .overrides import SetOption
from .path_variables import PathContext, expand_home, is_url, refuse_unused
from .recipe import RANDOM, RECIPES, Recipe
from .yaml_document import Document, read_document, validate

_NO_INIT: Mapping[str, Any] = {"checkpoint": [], "fresh": [], "unused": [], "prefix": ""}


def recipe_of(dataset: str) -> str:
    """Locate the shipped recipe of a dataset, for `load_recipe`; `ManifestError` if there is none."""
    if dataset not in NAMES:
        known = f"known: {', '.join(NAMES)}"
        meant = nearest(dataset, NAMES)
        hint = known if meant == known else f"{meant} {known}"
        raise ManifestError(f"--dataset {dataset}: is not known; {hint}")
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
    """Read, check and resolve a recipe; images and checkpoints need not exist.

    Args:
        source: a file, or the bare name of a shipped recipe.
        output: wins over the recipe's; relative to the current folder, as are all paths that follow.
        data_root, assets: see `load_manifest`.
        root, cache: win over the recipe's ``data.root`` and ``data.cache``; a recipe with several sources has no one
            root.
        init: a checkpoint that wins over the recipe's, or `RANDOM`. The recipe's fresh layers apply to it too, unless
            the architecture is not the recipe's: then the recipe's ``init`` is ignored.
        overrides: settings that win over the recipe's, as a tree of its shape; a None in it changes nothing. Those of
            ``data`` are for every source.
        settings: further settings, each ``section.key=value`` with a value in YAML; null too.

    Raises:
        ManifestError: the recipe or an argument is wrong; everything that is wrong is named in one line.
    """
    path = find_manifest(source, RECIPES)
    name = f"train/{path.name}" if path.parent == RECIPES else str(source)
    document = read_document(path, name)
    given = [SetOption.parse(setting) for setting in settings]

    def changed(document: Document) -> Document:
        document = document.override({key: value for key, value in (overrides or {}).items() if key != "data"})
        for i in range(_number_of_sources(document)):
            document = _with_source(document, i, (overrides or {}).get("data", {}))
        return functools.reduce(lambda found, one: one.over(found), given, document)

    document, notes = _with_initial_weights(document, changed(document).tree, init)
    document = changed(document)
    if output is not None:
        document = document.override({"output": _from_here(output)})
    if root is not None and _number_of_sources(document) > 1:
        raise ManifestError(
            f"--root: {document.name} learns from {_number_of_sources(document)} sources; give --set data.0.root=... "
            "for each, or --data-root"
        )
    for place, folder in (("root", root), ("cache", cache)):
        if folder is not None:
            document = _with_source(document, 0, {place: _from_here(folder)})
    refuse_unused(document, data_root, assets)
    recipe = validate(Recipe, document, PathContext.of(path.parent, data_root, assets))
    recipe._notes = notes
    return recipe


def parse_size(text: str, flag: str, example: str) -> tuple[int, int]:
    """Read ``HEIGHTxWIDTH`` as (height, width); ManifestError if the text is something else.

    Args:
        text: what the user wrote.
        flag: the option it was given to, for messages.
        example: a size that suits the option, for messages.
    """
    found = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text.strip())
    if not found:
        raise ManifestError(f"{flag} {text}: write HEIGHTxWIDTH, such as {example}")
    return int(found[1]), int(found[2])


def _number_of_sources(document: Document) -> int:
    data = document.tree.get("data")
    return len(data) if isinstance(data, list) else 1


def _with_source(document: Document, place: int, values: Mapping[str, Any]) -> Document:
    """Replace settings of one source, where ``data`` is a list or the only one; a None changes nothing."""
    data = document.tree.get("data")
    if not isinstance(data, list):
        return document.override({"data": values} if values else {})
    given = {key: value for key, value in values.items() if value is not None}
    if not given or place >= len(data) or not isinstance(data[place], dict):
        return document  # what is wrong with an entry is said when the recipe is checked
    sources = [{**source, **given} if i == place else source for i, source in enumerate(data)]
    places = {("data", place, key) for key in given}
    return replace(document, tree=document.tree | {"data": sources}, overridden=document.overridden | places)


def _from_here(path: str | Path) -> str:
    # Unlike the paths in a recipe, those of a flag are relative to the current folder.
    return str(path) if is_url(str(path)) else str(Path.cwd() / expand_home(str(path)))


def _with_initial_weights(
    document: Document, wanted: Mapping[str, Any], init: str | None
) -> tuple[Document, tuple[str, ...]]:
    """Put the initial weights that ``init`` names into the recipe, and list notes about them for the user.

    ``document`` is the recipe as it was written, ``wanted`` its tree with the command line's changes.
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
