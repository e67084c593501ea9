"""Networks in ONNX files, run by ONNX Runtime: a format that holds no code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....errors import CheckpointError, ManifestError, first_few, reason
from ...export.write_graph import ANY_SIZE, NAMES
from ..settings import AdapterSettings
from .graph_body import LOGITS, GraphBody, demand_file, image_sides

EXTRA = "arch: onnx needs the extra 'members'; pip install 'hmsa-pipeline[members]'"
_FLOATS = {1: np.float32, 10: np.float16, 11: np.float64}
"""Types of ONNX's tensors of floats -> NumPy's."""
_BYTES = 2


class ONNXNetwork(GraphBody):
    """A network in ONNX Runtime; made by `load`.

    It is no module with weights: ONNX Runtime holds them, and computes in the precision of the file. On a GPU it
    runs there if ONNX Runtime has the provider, else on the CPU.

    Args:
        settings: of the member.
        model: content of its file.
        library: onnxruntime.
    """

    def __init__(self, settings: AdapterSettings, model: Any, library: Any) -> None:
        path = settings.path
        given = _only_input(path, model.graph)
        kind = given.type.tensor_type
        shape = [side.dim_value if side.HasField("dim_value") else None for side in kind.shape.dim]
        own = {entry.key: entry.value for entry in model.metadata_props}
        takes_bytes = kind.elem_type == _BYTES
        super().__init__(settings, image_sides(path, shape), takes_bytes=takes_bytes, any_size=ANY_SIZE in own)
        if NAMES in own:
            self.labels = dict(enumerate(json.loads(own[NAMES])))
        self._library, self._dtype = library, np.uint8 if takes_bytes else _FLOATS[kind.elem_type]
        self._input, self._output = given.name, _chosen_output(path, model.graph)
        self._sessions = {torch.device("cpu"): self._session(None)}
        if torch.cuda.is_available() and not self._has_cuda:
            self.notes = ("ONNX Runtime has no CUDA here, so it runs on the CPU; install onnxruntime-gpu",)

    @property
    def _has_cuda(self) -> bool:
        return "CUDAExecutionProvider" in self._library.get_available_providers()

    def _session(self, gpu: int | None) -> Any:
        options = self._library.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        # Threads that wait for the next image leave the processor to those that decode and write.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers: list[Any] = ["CPUExecutionProvider"]
        if gpu is not None:
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": gpu, "use_tf32": 0}))
        try:
            return self._library.InferenceSession(str(self._path), options, providers=providers)
        except Exception as error:  # of another library's parts there is no end
            raise CheckpointError(
                f"{self._path}: ONNX Runtime {self._library.__version__} cannot load it ({reason(error)[:300]}); "
                "export it again"
            ) from error

    def run(self, scaled: Tensor) -> Tensor:
        """Compute the output (1, K, h, w) on the CPU, as `GraphBody.run` says."""
        device = scaled.device
        if device.type != "cuda" or not self._has_cuda:
            device = torch.device("cpu")
        if device not in self._sessions:
            self._sessions[device] = self._session(device.index or 0)
        values = np.ascontiguousarray(scaled.cpu().numpy(), dtype=self._dtype)
        (found,) = self._sessions[device].run([self._output], {self._input: values})
        return torch.from_numpy(np.asarray(found, dtype=np.float32))

    def details(self) -> dict[str, Any]:
        return {"network": "ONNX", "output": self._output}


def load(settings: AdapterSettings) -> ONNXNetwork:
    """Read an ONNX file and try the network in it, on the CPU.

    Raises:
        CheckpointError: there is no such file, or it holds no network for classes of pixels.
        ManifestError: the libraries are not installed, or the manifest does not say what the file leaves out.
    """
    onnx, onnxruntime = _libraries()
    path = settings.path
    model = _read(onnx, path)
    for part in _external(onnx, path, model):
        if not part.is_file():
            raise CheckpointError(f"{path}: its weights are in {part.name}, which is not there; put it beside it")
    _demand_numbers(onnx, path, model)
    _demand_evaluation(onnx, path, model.graph)
    network = ONNXNetwork(settings, model, onnxruntime)
    network.find_out(settings)
    return network


def _libraries() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ManifestError(f"{EXTRA} ({reason(error)})") from error
    return onnx, onnxruntime


def external_parts(path: Path) -> list[Path]:
    """List the files beside an ONNX file that hold some of its weights.

    Raises:
        CheckpointError: the file cannot be read, or names a file outside of its folder.
        ManifestError: the library is not installed.
    """
    onnx, _ = _libraries()
    return _external(onnx, path, _read(onnx, path))


def _read(onnx: Any, path: Path) -> Any:
    demand_file(path)
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of a parser, whatever the file holds
        raise CheckpointError(f"{path}: is truncated, damaged or no ONNX file ({reason(error)[:100]})") from error
    if not model.graph.node:
        raise CheckpointError(f"{path}: is truncated, damaged or no ONNX file (it holds no operations)")
    return model


def _tensors(model: Any) -> Iterator[Any]:
    """Yield every tensor in a model: those of the graph, of its operations' attributes, and of graphs in these."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            continue
        for attribute in nodes.pop().attribute:
            graphs += [attribute.g] if attribute.HasField("g") else []
            graphs += attribute.graphs
            yield from [attribute.t] if attribute.HasField("t") else []
            yield from attribute.tensors
            for sparse in [
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ]:
                yield from (sparse.values, sparse.indices)


def _external(onnx: Any, path: Path, model: Any) -> list[Path]:
    """List files of external weights, sorted; CheckpointError if one lies outside of the folder."""
    names = {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    folder = path.parent.resolve()
    for name in sorted(names):
        if not (folder / name).resolve().is_relative_to(folder):
            raise CheckpointError(
                f"{path}: names weights outside of its folder ({name}); put them beside it, and save it again with "
                "their bare name"
            )
    return [path.parent / name for name in sorted(names)]


def _demand_numbers(onnx: Any, path: Path, model: Any) -> None:
    """Raise CheckpointError where a weight is missing or not a number; infinity is one that masks are made of."""
    for tensor in model.graph.initializer:
        if tensor.data_type not in _FLOATS:
            continue
        try:
            values = onnx.numpy_helper.to_array(tensor, str(path.parent))
        except Exception as error:  # of a file that is shorter than its tensors, or of a strange shape
            raise CheckpointError(
                f"{path}: its weight {tensor.name} cannot be read ({reason(error)[:200]}); export the network again"
            ) from error
        if np.isnan(values).any():
            raise CheckpointError(
                f"{path}: weights hold values that no network can use (first: {tensor.name} holds NaN); the training "
                "that made it diverged, or the file was converted wrongly"
            )


def _demand_evaluation(onnx: Any, path: Path, graph: Any) -> None:
    """Raise CheckpointError if batch norms take the statistics of the image, or dropout is on.

    Two results for one image need not differ then: ONNX Runtime leaves out some dropout, and batch norms repeat.
    """
    values = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            values |= {node.output[0]: one.t for one in node.attribute[:1] if one.name == "value"}  # noqa: B035
    for node in graph.node:
        training = node.op_type == "BatchNormalization" and any(
            one.name == "training_mode" and one.i for one in node.attribute
        )
        if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2] in values:
            training = bool(onnx.numpy_helper.to_array(values[node.input[2]]).any())
        if training:
            raise CheckpointError(
                f"{path}: was exported in training mode ({node.op_type} {node.name}); call eval() before exporting it"
            )


def _only_input(path: Path, graph: Any) -> Any:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [one for one in graph.input if one.name not in weights]
    if len(inputs) != 1:
        names = first_few([one.name for one in inputs])
        raise CheckpointError(f"{path}: takes {len(inputs)} inputs ({names}), where one image is needed")
    (given,) = inputs
    if given.type.tensor_type.elem_type not in (*_FLOATS, _BYTES):
        raise CheckpointError(
            f"{path}: its input {given.name} takes neither floats nor bytes; export it without the conversion of "
            "pixels"
        )
    return given


def _chosen_output(path: Path, graph: Any) -> str:
    """Name the output that holds the logits: the only map of floats, or the one of that name."""
    maps = [
        one.name
        for one in graph.output
        if one.type.tensor_type.elem_type in _FLOATS and len(one.type.tensor_type.shape.dim) in (0, 4)
    ]
    if len(maps) == 1:
        return maps[0]
    for name in LOGITS:
        if name in maps:
            return name
    names = [one.name for one in graph.output]
    if not maps:
        raise CheckpointError(
            f"{path}: no output is a map of floats (it has {first_few(names)}); export the logits, not the classes"
        )
    raise CheckpointError(
        f"{path}: has {len(maps)} outputs that may be its logits ({first_few(maps)}); keep one with "
        f"onnx.utils.extract_model(old, new, [input], [output]), or call it '{LOGITS[0]}'"
    )
