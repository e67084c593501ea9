"""Writes an `ImageGraph` to a file, for images of any size, and runs files to compare them with the network."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError, ManifestError, reason
from .image_graph import ImageGraph

FORMATS: Mapping[str, str] = {"onnx": ".onnx", "exported": ".pt2", "openvino": ".xml"}
"""Format -> how its files end; OpenVINO's weights stand beside them in a file that ends in `.bin`."""
INPUT = "image"
OPSET = 18
ANY_SIZE, NAMES = "hmsa_pipeline.any_size", "hmsa_pipeline.classes"
"""Keys of an ONNX file's metadata: there if images of every size are taken; the names of the classes as JSON."""
EXTRA = "--format {} needs the extra '{}'; pip install 'hmsa-pipeline[{}]'"
_EXAMPLE = (96, 160)


def require_libraries(kind: str) -> None:
    """Raise ManifestError if what a format needs is not installed."""
    if kind == "exported":
        return
    extra = "openvino" if kind == "openvino" else "export"
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        if kind == "openvino":
            import openvino  # noqa: F401  # pyright: ignore[reportMissingImports]
        else:
            import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ManifestError(f"{EXTRA.format(kind, extra, extra)} ({reason(error)})") from error


def files_of(path: Path, kind: str) -> list[Path]:
    """List the files of a graph, ``path`` last."""
    return [path.with_suffix(".bin"), path] if kind == "openvino" else [path]


def write_graph(graph: ImageGraph, files: Sequence[Path], kind: str, classes: Sequence[str]) -> None:
    """Write a graph that takes images of any height and width.

    Args:
        graph: what is written.
        files: as `files_of` lists them, of whatever names; they are written in place.
        kind: a key of `FORMATS`.
        classes: names of the classes.

    Raises:
        ManifestError: a library is not installed.
        CheckpointError: PyTorch cannot make the graph, or makes one for a single size.
    """
    require_libraries(kind)
    image = torch.zeros((1, 3, *_EXAMPLE), dtype=torch.uint8)
    free = torch.export.Dim.DYNAMIC
    with quiet_exporters():
        try:
            program = torch.export.export(graph, (image,), dynamic_shapes=({2: free, 3: free},), strict=False)
        except Exception as error:  # of whatever PyTorch's exporter meets
            raise CheckpointError(
                f"torch {torch.__version__} cannot make a graph of the network ({reason(error)[:300]})"
            ) from error
        if kind == "exported":
            with files[-1].open("wb") as file:  # a name that does not end in .pt2 would be warned of
                torch.export.save(program, file)
            return
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[INPUT],
            output_names=list(graph.outputs),
            opset_version=OPSET,
            verbose=False,
        )
        assert written is not None
        sides = written.model.graph.inputs[0].shape
        if sides is None or any(isinstance(side, int) for side in list(sides)[2:]):
            raise CheckpointError(f"torch {torch.__version__} made a graph for images of one size, {sides}")
        written.model.metadata_props.update({ANY_SIZE: "1", NAMES: json.dumps(list(classes))})
        if kind == "onnx":
            written.save(files[-1], external_data=False)
            return
        with TemporaryDirectory() as folder:
            _convert_to_openvino(written, Path(folder), files, classes)


def _convert_to_openvino(program: Any, folder: Path, files: Sequence[Path], classes: Sequence[str]) -> None:
    """Let OpenVINO make its own files of an ONNX program; it writes names of its choice, so they are copied."""
    import openvino

    program.save(folder / "graph.onnx", external_data=False)
    try:
        # Its function `convert_model` reports to the vendor; this one does not.
        model = openvino.Core().read_model(folder / "graph.onnx")
        model.set_rt_info(json.dumps(list(classes)), NAMES.split("."))
        openvino.save_model(model, folder / "graph.xml", compress_to_fp16=False)
    except RuntimeError as error:
        said = f"openvino {openvino.__version__} does not convert the graph ({reason(error)[:300]})"
        raise CheckpointError(said) from error
    for made, file in zip(files_of(folder / "graph.xml", "openvino"), files, strict=True):
        shutil.copyfile(made, file)


def open_graph(files: Sequence[Path], kind: str) -> Callable[[Tensor], list[Tensor]]:
    """Load the files that `write_graph` wrote; return what runs them: image (1, 3, H, W) uint8 to the outputs."""
    path = files[-1]
    if kind == "openvino":
        import openvino

        weights, graph = (file.read_bytes() for file in files)
        core = openvino.Core()
        # Where the processor can, OpenVINO would compute in bfloat16.
        hint = {"INFERENCE_PRECISION_HINT": "f32"}
        model = core.compile_model(core.read_model(graph, weights), "CPU", hint)

        def run_model(image: Tensor) -> list[Tensor]:
            return [torch.from_numpy(found.copy()) for found in model({INPUT: image.numpy()}).values()]

        return run_model
    if kind == "exported":
        with quiet_exporters(), path.open("rb") as file:
            module = torch.export.load(file).module()

        def run_program(image: Tensor) -> list[Tensor]:
            found = module(image)
            return list(found) if isinstance(found, tuple | list) else [found]

        return run_program
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run_session(image: Tensor) -> list[Tensor]:
        return [torch.from_numpy(one) for one in session.run(None, {INPUT: image.numpy()})]

    return run_session


@contextlib.contextmanager
def quiet_exporters() -> Iterator[None]:
    """Keep warnings and logs of PyTorch's exporters from the terminal: what matters is raised."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.onnx", "onnxscript", "onnx_ir")]
    before: list[Any] = [log.disabled for log in loggers]
    for log in loggers:
        log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, disabled in zip(loggers, before, strict=True):
            log.disabled = disabled
