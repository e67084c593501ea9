"""The base of everything that manifests and recipes hold."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from .yaml_document import as_yaml


class FrozenModel(BaseModel):
    """A pydantic model that never changes and forbids unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    left_out: ClassVar[frozenset[str]] = frozenset()
    """Fields that are not written where they have their default, so that what was written before them stays equal."""

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found = write(self)
        for name in self.left_out:
            if getattr(self, name) == type(self).model_fields[name].default:
                found.pop(name, None)
        return found

    def resolved(self) -> dict[str, Any]:
        """Return every setting, defaults included, with absolute paths, in types that JSON and YAML can hold.

        Paths with a variable that is not set keep it as ``${NAME}``.
        """
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Write `resolved` as YAML; loaded from any folder it gives an equal manifest or recipe."""
        return as_yaml(self.resolved())
