"""Networks that torch.export saved: an archive that holds pickles, read without them, for those who trust it."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ....errors import CheckpointError, first_few, reason
from ...checkpoint import demand_numbers
from ...export.write_graph import quiet_exporters
from ..settings import AdapterSettings
from .graph_body import GraphBody, Sides, demand_file, image_sides, only_map

_SAMPLES = re.compile(r"data/sample_inputs/.+\.pt")
_PLAIN = re.compile(
    r"data/weights/weight_\d+|data/constants/tensor_\d+|data/(weights|constants)/\w+_config\.json|models/model\.json"
    r"|archive_format|archive_version|byteorder|version|\.data/\w+|\.format_version|\.storage_alignment"
)
_LEFT_OUT = re.compile(r"extra/.*")
_TRAINING = {"aten.dropout.default": 2, "aten.batch_norm.default": 5}
"""Operation -> place of the argument that says whether it is in training mode."""


class ExportedNetwork(GraphBody):
    """A network that torch.export saved; made by `load`.

    Args:
        settings: of the member.
        program: the loaded `torch.export.ExportedProgram`, on the CPU.
    """

    def __init__(self, settings: AdapterSettings, program: Any) -> None:
        path = settings.path
        shape, dtype = _input_of(path, program)
        plain = [side if isinstance(side, int) else None for side in shape]
        fixed, sides = image_sides(path, plain), [_sides(program, side) for side in shape[2:]]
        super().__init__(settings, fixed, *sides, takes_bytes=dtype == torch.uint8)
        self._program = program
        self._networks = {torch.device("cpu"): program.module()}

    def run(self, scaled: Tensor) -> Tensor:
        """Compute the output (1, K, h, w), as `GraphBody.run` says."""
        device = scaled.device
        if device not in self._networks:
            # Moving the module would leave behind what it makes while it runs.
            from torch.export.passes import move_to_device_pass

            self._networks[device] = move_to_device_pass(self._program, device).module()
        return only_map(self._path, self._networks[device](scaled))

    def details(self) -> dict[str, Any]:
        return {"network": "torch.export"}


def load(settings: AdapterSettings) -> ExportedNetwork:
    """Read an archive that torch.export.save wrote, without its pickles, and try the network in it, on the CPU.

    Raises:
        CheckpointError: there is no such file, it holds other pickles than the sample inputs, or no network for
            classes of pixels.
        ManifestError: the manifest does not say what the file leaves out.
    """
    path = settings.path
    demand_file(path)
    with tempfile.TemporaryFile() as clean:
        _copy_without_pickles(path, clean)
        clean.seek(0)
        with quiet_exporters():
            try:
                program = torch.export.load(clean)
            except Exception as error:  # of whatever the archive holds
                raise CheckpointError(
                    f"{path}: torch {torch.__version__} cannot load it ({type(error).__name__}: "
                    f"{reason(error)[:200]}); export it again with this version"
                ) from error
    demand_numbers(path, {key: one for key, one in program.state_dict.items() if one.is_floating_point()})
    _demand_evaluation(path, program)
    with quiet_exporters():
        body = ExportedNetwork(settings, program)
        body.find_out(settings)
    return body


def _copy_without_pickles(path: Path, target: IO[bytes]) -> None:
    """Copy an archive without its sample inputs; CheckpointError if it holds other pickles, or anything unknown."""
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as copy:
            entries = archive.infolist()
            roots = {entry.filename.partition("/")[0] for entry in entries}
            if len(roots) != 1 or not any(entry.filename.endswith("/models/model.json") for entry in entries):
                raise CheckpointError(f"{path}: is no archive of torch.export; save it with torch.export.save")
            unknown = []
            for entry in entries:
                name = entry.filename.partition("/")[2]
                if _SAMPLES.fullmatch(name):
                    copy.writestr(entry.filename, b"")
                elif _PLAIN.fullmatch(name):
                    if name.endswith("_config.json"):
                        _demand_raw(path, name, archive.read(entry))
                    with archive.open(entry) as source, copy.open(entry.filename, "w", force_zip64=True) as written:
                        while block := source.read(2**20):
                            written.write(block)
                elif not _LEFT_OUT.fullmatch(name):
                    unknown.append(name)
            if unknown:
                raise CheckpointError(
                    f"{path}: holds what may run code when it is read ({first_few(unknown, 3)}); export the network "
                    "without such objects"
                )
    except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise CheckpointError(f"{path}: is truncated, damaged or no archive of torch.export") from error


def _demand_raw(path: Path, name: str, content: bytes) -> None:
    """Raise CheckpointError if a list of weights says that some are pickled."""
    config = json.loads(content).get("config", {})
    pickled = [key for key, one in config.items() if not isinstance(one, dict) or one.get("use_pickle") is not False]
    if pickled:
        raise CheckpointError(
            f"{path}: {name} says that weights are pickled ({first_few(pickled, 3)}); save the network with plain "
            "dense tensors"
        )


def _input_of(path: Path, program: Any) -> tuple[list[Any], torch.dtype]:
    names = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    values = [node.meta.get("val") for node in nodes]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise CheckpointError(f"{path}: takes {len(values)} inputs ({first_few(names)}), where one image is needed")
    dtype = values[0].dtype
    if dtype not in (torch.float32, torch.uint8):
        raise CheckpointError(f"{path}: takes {dtype}, where float32 or uint8 is needed; export it so")
    return list(values[0].shape), dtype


def _sides(program: Any, side: Any) -> Sides:
    """Read the limits of a height or width; a multiple of something else is found by trying."""
    if isinstance(side, int):
        return Sides(side, side)
    limits = program.range_constraints.get(side.node.expr)
    if limits is None:
        return Sides()
    least, most = (int(end) if end.is_Integer else None for end in (limits.lower, limits.upper))
    return Sides(least or 1, most)


def _demand_evaluation(path: Path, program: Any) -> None:
    """Raise CheckpointError if training mode was exported, which ``eval()`` cannot change any more."""
    for node in program.graph.nodes:
        place = _TRAINING.get(str(node.target))
        if place is not None and node.args[place] is True:
            raise CheckpointError(
                f"{path}: was exported in training mode ({node.target}); call eval() before exporting it"
            )
