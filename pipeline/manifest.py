"""The manifest: which models look at which images, how, and where the results go.

A manifest is a YAML file (see ``manifests/bravo.yaml``). `load_manifest` reads and checks it, resolves
its paths, and says everything that is wrong with it in one line, with the file, the line and the field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    model_validator,
)

from ..datasets.layouts import LAYOUTS
from ..errors import ManifestError, nearest
from ..models.registry import KNOWN
from .documents import MisplacedError, as_yaml, describe, one_line, read_document, validate
from .fields import (
    Count,
    Either,
    InputPath,
    Name,
    Natural,
    NotNegative,
    OutputPath,
    Positive,
    Sha256,
    Text,
    at_least_one,
    check_mapping,
    one_of,
)
from .paths import Surroundings, at_home, refuse_unused, resolved_path

Precision = Literal["fp16", "bf16", "fp32"]
Compile = Literal["off", "default", "max-autotune-no-cudagraphs"]
Encoding = Literal["lossless", "compact"]
Orientation = Literal["stored", "exif"]
Label = Literal["mean-softmax", "max-softmax", "min-softmax", "mean-logit"]
Confidence = Literal["mean-softmax", "mean-logit", "min-softmax", "entropy", "energy", "rba"]

EXTERNAL = "external"
SHIPPED = Path(__file__).parent.parent / "manifests"

Entry = TypeVar("Entry", "Member", "DatasetEntry")


def _check_scales(scales: tuple[float, ...]) -> tuple[float, ...]:
    for i, scale in enumerate(scales):
        if scale in scales[:i]:
            raise MisplacedError(f"{scale:g} stands twice; remove one", i)
    if 1.0 not in scales:
        raise ValueError("must contain 1.0, the photograph's own size, as in [0.5, 1.0, 2.0]")
    return scales


def _check_version(value: object) -> object:
    if type(value) is not int or value != 1:
        raise ValueError(f"this release reads version 1, not {describe(value)}")
    return value


class Settings(BaseModel):
    """What all parts of a manifest share: they never change, and know their keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Scales = Annotated[tuple[Positive, ...], AfterValidator(_check_scales)]
Version = Annotated[Literal[1], BeforeValidator(_check_version)]


class Tile(Settings):
    """Overlapping pieces of an image that does not fit into the device's memory as a whole."""

    size: tuple[Count, Count] = Field(description="Height and width of a tile in pixels.")
    overlap: Natural = Field(
        default=128, description="Pixels that neighbours share, in which one fades into the other."
    )

    @model_validator(mode="after")
    def _overlaps_less(self) -> Tile:
        if self.overlap >= min(self.size):
            message = f"must be below both sides of the tile, not {self.overlap}; give a smaller one"
            raise MisplacedError(message, "overlap")
        return self


class Inference(Settings):
    """How every model looks at an image."""

    scales: Scales = Field(
        default=(0.5, 1.0, 2.0),
        description="Sizes at which an image is seen, relative to its own; must contain 1.0.",
    )
    flip: Annotated[bool, Strict()] = Field(
        default=False, description="Average with the mirrored image; doubles the time."
    )
    precision: Precision = Field(
        default="fp16",
        description="Arithmetic of the forward pass on a GPU; on a CPU fp16 means fp32.",
    )
    tile: Tile | None = Field(
        default=None,
        description="Tiles for images that fit into the GPU's memory in no other way; without, such an image fails.",
    )
    cuda_graphs: Annotated[bool, Strict()] = Field(
        default=False,
        description="On a GPU, from the second image of a size on, launch all kernels at once. Same logits to the "
        "bit; the memory of one forward pass stays taken.",
    )
    compile: Compile = Field(
        default="off",
        description="Mode of torch.compile on a GPU, again for each image size, which takes minutes; needs a C++ "
        "compiler. The last digits of logits change, so stores tell it.",
    )


class StoreSettings(Settings):
    """How logits are written."""

    encoding: Encoding = Field(
        default="lossless",
        description=(
            "lossless: float16 as computed, readable by plain zarr-python. compact: multiples of 1/64, about a fifth "
            "of the size; probabilities change by 0.004 at most, and readers need this package."
        ),
    )


class Fusion(Settings):
    """How the logits of several models become one class map and one confidence."""

    label: Label = Field(
        default="mean-softmax",
        description=("Argmax over classes of the models' mean, maximum or minimum softmax, or of their mean logits."),
    )
    confidence: Confidence = Field(
        default="mean-softmax",
        description=(
            "The maximum over classes of the models' mean softmax, of the softmax of their mean logits, or "
            "of their minimum softmax; 1 - normalised entropy of the mean softmax; energy or RbA of the "
            "mean logits."
        ),
    )


class Member(Settings):
    """One model of the ensemble."""

    name: Name = Field(description="Unique ignoring case; also the name of its logit store.")
    source: Text | None = Field(default=None, description="The dataset it was trained on, for reports.")
    arch: Annotated[Text, one_of(Either(KNOWN, (EXTERNAL,)))] = Field(
        description="Architecture, ours or an installed package's; 'external' if its logits come from elsewhere by "
        "import-logits."
    )
    checkpoint: InputPath | None = Field(
        default=None,
        description="File of weights; needed unless external. ${NAME} is expanded, relative to the manifest.",
    )
    sha256: Sha256 | None = Field(
        default=None, description="SHA-256 that the checkpoint must have: 64 hexadecimal digits."
    )
    weight: NotNegative = Field(default=1.0, description="Its share in means; 0 leaves it out.")
    temperature: Positive = Field(
        default=1.0, description="Its logits are divided by this before fusion; above 1 makes it less sure."
    )

    @model_validator(mode="after")
    def _fits_arch(self) -> Member:
        if not self.external and self.checkpoint is None:
            raise MisplacedError(f"is missing; {self.arch!r} needs a file of weights", "checkpoint")
        for key in ("checkpoint", "sha256"):
            if self.external and getattr(self, key) is not None:
                raise MisplacedError("an external model has none: its logits are imported; remove this", key)
        return self

    @property
    def external(self) -> bool:
        """Whether its logits come from elsewhere, so that there is no checkpoint to run."""
        return self.arch == EXTERNAL

    def checkpoint_path(self) -> Path:
        """The absolute path of the checkpoint, which may not exist.

        Raises:
            ManifestError: an environment variable in it is not set, or the model is external.
        """
        if self.checkpoint is None:
            raise ManifestError(f"model '{self.name}' is external: fill its store with import-logits")
        return resolved_path(self.checkpoint, f"model '{self.name}': checkpoint {self.checkpoint}: ")


class DatasetEntry(Settings):
    """One dataset to run the models on."""

    name: Name = Field(description="Unique ignoring case; also the folder of its stores and predictions.")
    type: Annotated[Text, one_of(LAYOUTS)] = Field(
        description="How its images lie on disk: folder is any tree of images."
    )
    root: InputPath = Field(
        description="Folder of its images. ${NAME} is expanded, relative to the manifest.",
    )
    split: Text | None = Field(default=None, description="Part of it, where the type has splits.")
    orientation: Orientation = Field(
        default="stored",
        description="stored: pixels as the file holds them, which is what labels fit. exif, of type folder alone: "
        "photographs are turned as EXIF says and viewers show them.",
    )

    @model_validator(mode="after")
    def _turns_folders_alone(self) -> DatasetEntry:
        if self.exif and self.type != "folder":
            message = f"labels of type {self.type!r} fit the stored pixels; remove this, or use type 'folder'"
            raise MisplacedError(message, "orientation")
        return self

    @property
    def exif(self) -> bool:
        """Whether its photographs are turned as EXIF says."""
        return self.orientation == "exif"

    mapping: Text | None = Field(
        default=None, description="Which mapping of its ids to the 19 classes, where 'datasets list' names several."
    )
    without_masks: tuple[Text, ...] = Field(
        default=(), description="Images that have no mask and are left out of scores, by their paths below the root."
    )
    allow_unlabelled: bool = Field(
        default=False, description="Leave every image out of scores that has no mask; they are counted and named."
    )

    @model_validator(mode="after")
    def _knows_the_mapping(self) -> DatasetEntry:
        check_mapping(self.type, self.mapping)
        return self

    def root_path(self) -> Path:
        """The absolute path of the dataset's folder, which may not exist.

        Of ACDC as its authors distribute it BRAVO wants what lies in ``rgb_anon``, named from there.

        Raises:
            ManifestError: an environment variable in it is not set.
        """
        root = resolved_path(self.root, f"dataset '{self.name}': root {self.root}: ")
        if self.type != "bravo":
            return root
        inner = (root / name for name in ("rgb_anon", "rgb_anon_trainvaltest/rgb_anon"))
        return next((folder for folder in inner if folder.is_dir()), root)


class Manifest(Settings):
    """Which models look at which images, how, and where the results go."""

    version: Version = Field(description="Version of this format: 1.")
    output: OutputPath = Field(
        description="Folder of all results, or a URL such as s3://bucket/run. ${NAME} is expanded; a folder is "
        "relative to where the command runs."
    )
    inference: Inference = Field(default=Inference(), description="How every model looks at an image.")
    store: StoreSettings = Field(default=StoreSettings(), description="How logits are written.")
    ensemble: Fusion = Field(default=Fusion(), description="How the models' logits become one answer.")
    models: Annotated[tuple[Member, ...], at_least_one] = Field(description="The members of the ensemble.")
    datasets: Annotated[tuple[DatasetEntry, ...], at_least_one] = Field(description="What they are run on.")

    _source_path: Path = PrivateAttr(default=Path())

    def model_post_init(self, context: Any, /) -> None:
        if context is not None:
            self._source_path = context.source

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        _check_unique("models", self.models)
        _check_unique("datasets", self.datasets)
        if not any(member.weight for member in self.models):
            raise MisplacedError("all weights are 0, which leaves no model", "models", 0, "weight")
        fusion = self.ensemble
        extremes = [
            f"{key} {name}"
            for key, name in (("label", fusion.label), ("confidence", fusion.confidence))
            if name in ("max-softmax", "min-softmax")
        ]
        for i, member in enumerate(self.models):
            if extremes and member.weight != 1:
                message = f"{member.weight:g} means nothing to ensemble.{extremes[0]}; use a mean, or weight 1.0"
                raise MisplacedError(message, "models", i, "weight")
        return self

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, whatever files they were read from."""
        return isinstance(other, Manifest) and self.resolved() == other.resolved()

    @property
    def source_path(self) -> Path:
        """The absolute path of the file it was read from."""
        return self._source_path

    def member(self, name: str) -> Member:
        """The model of that name; `ManifestError` if there is none."""
        return _selected("model", self.models, [name])[0]

    def dataset(self, name: str) -> DatasetEntry:
        """The dataset of that name; `ManifestError` if there is none."""
        return _selected("dataset", self.datasets, [name])[0]

    def resolved(self) -> dict[str, Any]:
        """Every setting, the defaults too, with absolute paths, as what JSON and YAML can hold.

        Paths with a variable that was not set keep it as ``${NAME}``.
        """
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """`resolved` as YAML; loaded from any folder it gives an equal manifest."""
        return as_yaml(self.resolved())


def _check_unique(key: str, entries: Sequence[Member | DatasetEntry]) -> None:
    first: dict[str, int] = {}
    for i, entry in enumerate(entries):
        earlier = first.setdefault(entry.name.lower(), i)
        if earlier != i:
            message = f"{entry.name!r} is also the name of {key}[{earlier}] (case does not count); rename one"
            raise MisplacedError(message, key, i, "name")


def _selected(kind: str, entries: Sequence[Entry], names: Iterable[str]) -> tuple[Entry, ...]:
    known = [entry.name for entry in entries]
    names = list(names)
    for name in names:
        if name not in known:
            raise ManifestError(one_line(f"no {kind} {name!r} in the manifest; {nearest(name, known)}"))
    return tuple(entry for entry in entries if entry.name in names)


def shipped_manifests(folder: Path = SHIPPED) -> list[str]:
    """The names of the manifests that come with the package, without ``.yaml``."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_manifest(source: str | Path, shipped: Path = SHIPPED) -> Path:
    """The absolute path of a manifest: a file, or the bare name of a shipped one, with or without ``.yaml``.

    A file wins over a shipped manifest of its name.

    Args:
        source: the file or the name.
        shipped: the folder of the package that holds the shipped ones.

    Raises:
        ManifestError: there is neither.
    """
    path = at_home(str(source))
    shown, bare = str(source) or "''", str(source).removesuffix(".yaml")
    try:
        exists, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ManifestError(one_line(f"{shown}: cannot be read: {reason}")) from None
    if bare in shipped_manifests(shipped) and (folder or not exists):
        return shipped / f"{bare}.yaml"
    if folder:
        raise ManifestError(one_line(f"{shown}: is a folder; name the YAML file in it"))
    if not exists:
        known = ", ".join(shipped_manifests(shipped))
        raise ManifestError(one_line(f"{shown}: no such manifest; the package ships {known}"))
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
    """Read, check and resolve a manifest; no checkpoint or image needs to be there.

    Args:
        source: what `find_manifest` takes.
        output: wins over the manifest's ``output``; relative to the current folder.
        data_root: wins over the environment variable HMSA_DATA_ROOT.
        assets: wins over HMSA_ASSETS.
        models: names of the models to keep, all if None or empty; the manifest's order stays.
        datasets: names of the datasets to keep, likewise.
        overrides: settings that win over the manifest's, as a tree like it, for example
            ``{"inference": {"precision": "fp32"}}``; a None in it changes nothing.

    Raises:
        ManifestError: anything wrong with any of these, in one line.
    """
    path = find_manifest(source)
    name = path.name if path.parent == SHIPPED else str(source)
    document = read_document(path, name).override(overrides or {})
    if output is not None:
        document = document.override({"output": str(output)})
    refuse_unused(document, data_root, assets)
    manifest = validate(Manifest, document, Surroundings.of(path, data_root, assets))
    return manifest.model_copy(
        update={
            "models": _selected("model", manifest.models, models or [m.name for m in manifest.models]),
            "datasets": _selected("dataset", manifest.datasets, datasets or [d.name for d in manifest.datasets]),
        }
    )
