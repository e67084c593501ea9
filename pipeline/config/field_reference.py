"""The reference of all fields of a manifest, in Markdown, made from the models that check manifests."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ...datasets.layout.find_images import LAYOUTS
from ...models.registry import KNOWN
from .manifest import Manifest
from .member import EXTERNAL

_TYPES = {
    "array": "list",
    "boolean": "true or false",
    "number": "number",
    "integer": "whole number",
    "string": "text",
    "object": "mapping",
}
# Names that a schema cannot list, because installed packages bring some.
_NAMES: Mapping[tuple[str, str], Collection[str]] = {
    ("Member", "arch"): (*KNOWN, EXTERNAL),
    ("DatasetEntry", "type"): LAYOUTS,
}


def manifest_fields() -> str:
    """Write a heading and a table for every part of a manifest, in the order in which the parts stand in it."""
    schema = Manifest.model_json_schema()
    return "\n".join(_part("the manifest", schema, schema["$defs"], {}))


def _part(heading: str, model: Mapping[str, Any], parts: Mapping[str, Any], shown: dict[str, str]) -> Iterator[str]:
    """Write a part and those below it, each once; ``shown`` has the headings by the titles of the parts' models."""
    shown[model["title"]] = heading
    yield f"## {heading[0].upper()}{heading[1:]}\n\n{model['description']}\n"
    yield "| field | value | default | meaning |\n|---|---|---|---|"
    below: list[tuple[str, Mapping[str, Any]]] = []
    for name, field in model["properties"].items():
        kind, of = _kind(field, parts)
        if of is not None:
            below.append((f"`{name}`", of))
        if names := _NAMES.get((model["title"], name)):
            kind = _one_of(names)
        default = "**required**" if name in model.get("required", ()) else _default(field)
        meaning = field.get("description") or (of or {}).get("description", "")
        yield f"| `{name}` | {kind} | {default} | {meaning} |"
    yield ""
    for of, part in below:
        if part["title"] not in shown:
            yield from _part(f"{of} of {heading}" if of in shown.values() else of, part, parts, shown)


def _kind(field: Mapping[str, Any], parts: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    """Describe the values that a field takes, and give the schema of the part that it holds, if it holds one."""
    if "anyOf" in field:
        found = [_kind(one, parts) for one in field["anyOf"] if one.get("type") != "null"]
        names = ", ".join(kind for kind, _ in found)
        return (f"{names}, or null" if len(found) < len(field["anyOf"]) else f"({names})"), found[0][1]
    if "$ref" in field or "allOf" in field:
        return "see below", _referred(field, parts)
    if "enum" in field:
        return _one_of(field["enum"]), None
    if "const" in field:
        return f"`{field['const']}`", None
    if field.get("type") == "array":
        items = field.get("items", {})
        if "$ref" in items:
            return "list, see below", _referred(items, parts)
        kinds = [_kind(item, parts)[0] for item in field.get("prefixItems", [items])]
        return f"list: {', '.join(kinds)}" + ("" if "prefixItems" in field else ", ..."), None
    return _TYPES.get(field.get("type", ""), "text"), None


def _referred(field: Mapping[str, Any], parts: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = field.get("$ref") or field["allOf"][0]["$ref"]
    return parts[reference.rsplit("/", 1)[1]]


def _one_of(names: Collection[object]) -> str:
    return " ".join(f"`{name}`" for name in names)


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    return "see below" if isinstance(value, dict) else f"`{json.dumps(value)}`"
