"""Files as trainers leave them: what is found in them, what is left out, and what is refused all the same."""

from __future__ import annotations

import argparse
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.errors import CheckpointError
from hmsa_pipeline.models.checkpoint import check_weights, load_weights, read_weights, save_checkpoint
from hmsa_pipeline.models.partial_weights import check_initial, load_initial
from hmsa_pipeline.models.registry import build
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

ARCH = "hrnet_tiny_ocr_mscale"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(3)
    return build(ARCH)


@pytest.fixture(scope="module")
def state(network: nn.Module) -> State:
    return dict(network.state_dict())


def other(state: State) -> State:
    """Weights of the same network that are not the ones that are meant."""
    return {key: value + 1 for key, value in state.items()}


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def lightning(state: State) -> dict[str, Any]:
    return {
        "epoch": 3,
        "global_step": 99,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(under("net.", state) | {"criterion.weight": torch.ones(19)}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'iou'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "root": Path("data"), "args": argparse.Namespace(lr=0.1)},
    }


LAYOUTS: dict[str, tuple[Callable[[State], Any], str | None]] = {
    "as it is": (lambda s: s, None),
    "parallel": (lambda s: {"state_dict": under("module.", s)}, None),
    "compiled": (lambda s: under("_orig_mod.", s), "weights '_orig_mod.' taken off the keys"),
    "compiled, then parallel": (
        lambda s: {"state_dict": under("module._orig_mod.", s)},
        "weights 'module._orig_mod.' taken off the keys",
    ),
    "parallel, then compiled": (
        lambda s: under("_orig_mod.module.", s),
        "weights '_orig_mod.module.' taken off the keys",
    ),
    "a part compiled": (
        lambda s: {re.sub("^backbone", "backbone._orig_mod", key): value for key, value in s.items()},
        "weights '_orig_mod.' taken off the keys",
    ),
    "below model": (lambda s: under("model.", s), "weights 'model.' taken off the keys"),
    "below a name of its own": (lambda s: under("segmentor.", s), "weights 'segmentor.' taken off the keys"),
    "lightning": (lightning, "weights 'net.' taken off the keys; 1 left out (criterion.weight)"),
    "key model": (lambda s: {"model": s, "epoch": 3}, "weights taken from 'model'"),
    "key model_state_dict": (
        lambda s: {"model_state_dict": s, "optimizer_state_dict": {}, "loss": torch.tensor(0.5)},
        "weights taken from 'model_state_dict'",
    ),
    "moments named as the weights": (
        lambda s: {"state_dict": s, "optimizer": {"exp_avg": other(s), "exp_avg_sq": other(s)}},
        None,
    ),
    "an entry of an entry": (lambda s: {"checkpoint": {"model": s}}, "weights taken from 'checkpoint.model'"),
    "timm": (
        lambda s: {
            "epoch": 1,
            "arch": "x",
            "state_dict": other(s),
            "optimizer": {},
            "version": 2,
            "args": argparse.Namespace(lr=0.1, output=Path("x")),
            "state_dict_ema": s,
            "metric": np.float64(0.5),
        },
        "weights taken from 'state_dict_ema', which is averaged, not from state_dict",
    ),
    "an average alone": (lambda s: {"model_ema": s}, "weights taken from 'model_ema'"),
    "an average without statistics": (
        lambda s: {"params": s, "params_ema": {k: v + 1 for k, v in s.items() if "running" not in k}},
        "weights taken from 'params'",
    ),
    "an average beside, in one state dict": (
        lambda s: under("online_model.", other(s))
        | under("ema_model.", s)
        | {"initted": torch.tensor(True), "step": torch.tensor(3)},
        "weights taken from 'ema_model', which is averaged, not from online_model; 'ema_model.' taken off the keys; "
        "2 left out (initted, step)",
    ),
    "scalars beside": (
        lambda s: s | {"best": np.float32(0.5), "seen": np.int64(3), "who": "me", "epoch": 3},
        "weights 4 left out (best, seen, who, epoch)",
    ),
    "arrays beside": (
        lambda s: {"state_dict": s, "confusion": np.zeros((19, 19), np.int64), "names": np.array(["road", "car"])},
        None,
    ),
    "arrays as weights": (lambda s: {key: value.numpy() for key, value in s.items()}, None),
    "arrays of other orders": (
        lambda s: {key: value.numpy().astype(value.numpy().dtype.newbyteorder(">"), order="F")
                   for key, value in s.items()},
        None,
    ),
    "without counters": (
        lambda s: {key: value for key, value in s.items() if not key.endswith("num_batches_tracked")},
        "weights COUNT num_batches_tracked are not there, set to 0",
    ),
    "criterion": (
        lambda s: under("module.", s | {"criterion.weight": torch.ones(19), "loss_fn.ce.weight": torch.ones(19)}),
        "weights 2 left out (module.criterion.weight, module.loss_fn.ce.weight)",
    ),
    "criterion beside": (
        lambda s: under("model.", s) | {"criterion.weight": torch.ones(19)},
        "weights 'model.' taken off the keys; 1 left out (criterion.weight)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "note"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_trainers_file_loads(
    tmp_path: Path, state: State, make: Callable[[State], Any], note: str | None
) -> None:
    torch.save(make(state), tmp_path / "w.pth")
    demand_loaded(tmp_path / "w.pth", state, note)


@pytest.mark.parametrize("name", ["lightning", "timm", "arrays as weights"])
def test_trainers_files_from_before_the_zip_format_load(tmp_path: Path, state: State, name: str) -> None:
    make, note = LAYOUTS[name]
    torch.save(make(state), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    demand_loaded(tmp_path / "w.pth", state, note)


@pytest.mark.parametrize("name", ["compiled", "below model", "criterion", "without counters"])
def test_safetensors_of_trainers_load(tmp_path: Path, state: State, name: str) -> None:
    make, note = LAYOUTS[name]
    save_file(make(state), tmp_path / "w.safetensors")
    demand_loaded(tmp_path / "w.safetensors", state, note)


def demand_loaded(path: Path, state: State, note: str | None) -> None:
    """All of the weights are loaded and nothing else, for inference and for training."""
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    note = note and note.replace("COUNT", str(len(counters)))
    expected = state | {key: torch.zeros_like(state[key]) for key in counters if note and "not there" in note}
    models = build(ARCH), build(ARCH)
    assert check_weights(path, ARCH) == load_weights(models[0], path, ARCH) == note
    assert check_initial(path, ARCH) == note
    assert load_initial(models[1], path, ARCH) == []
    for model in models:
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())


def test_models_that_torch_averages_load(tmp_path: Path, network: nn.Module, state: State) -> None:
    torch.save(AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.9)).state_dict(), tmp_path / "w.pth")
    demand_loaded(tmp_path / "w.pth", state, "weights 1 left out (n_averaged)")
    torch.save({"state_dict": AveragedModel(nn.DataParallel(network)).state_dict()}, tmp_path / "w.pth")
    demand_loaded(tmp_path / "w.pth", state, "weights 'module.module.' taken off the keys; 1 left out (n_averaged)")


def test_a_compiled_network_loads(tmp_path: Path, network: nn.Module, state: State) -> None:
    torch.save(torch.compile(network).state_dict(), tmp_path / "w.pth")  # pyright: ignore[reportAttributeAccessIssue]
    demand_loaded(tmp_path / "w.pth", state, "weights '_orig_mod.' taken off the keys")


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        check_weights(path, ARCH)
    with pytest.raises(CheckpointError, match=re.escape(str(caught.value))):
        load_weights(build(ARCH), path, ARCH)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def test_what_is_left_after_the_prefix_is_strict(tmp_path: Path, state: State) -> None:
    some = dict(list(state.items())[2:])
    path, gone = tmp_path / "w.pth", list(state)[:2]
    torch.save(under("_orig_mod.", some) | {"_orig_mod.head.weight": torch.ones(1)}, path)
    assert refusal(path) == (
        f"2 of {len(state)} keys are missing (first: {', '.join(gone)}); 1 unexpected (first: head.weight); "
        f"is it really a '{ARCH}'?"
    )
    torch.save(under("model.", state) | {"head.weight": torch.ones(1)}, path)
    assert refusal(path) == f"1 unexpected (first: head.weight); is it really a '{ARCH}'?"


def test_some_counters_missing_are_keys_missing(tmp_path: Path, state: State) -> None:
    key = next(key for key in state if key.endswith("num_batches_tracked"))
    torch.save({k: v for k, v in state.items() if k != key}, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").startswith(f"1 of {len(state)} keys are missing (first: {key})")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda s: {"first": s, "second": other(s)}, "holds several sets of weights (first, second)"),
        (lambda s: {"model_ema": s, "model_swa": other(s)}, "holds several sets of weights (model_ema, model_swa)"),
        (
            lambda s: under("student.", s) | under("teacher.", other(s)),
            "holds the network more than once (student., teacher.)",
        ),
        (lambda s: under("_orig_mod.", s) | s, "twice, with and without a wrapper"),
    ],
)
def test_weights_of_which_none_is_preferred_are_refused(
    tmp_path: Path, state: State, make: Callable[[State], Any], text: str
) -> None:
    torch.save(make(state), tmp_path / "w.pth")
    assert text in refusal(tmp_path / "w.pth")


def test_a_refusal_says_what_was_asked_for_and_how_to_save_again(tmp_path: Path, state: State) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": state, "config": re.compile("x")}, path)
    text = refusal(path)
    assert text.startswith("refused, it asks for 're._compile', which weights do not need")
    command = text.partition("who made it: ")[2]
    assert command == 'torch.save(torch.load("w.pth", weights_only=False)["state_dict"], "weights.pth")'
    exec(command.replace('"w.pth"', repr(str(path))).replace('"weights.pth"', repr(str(path))), {"torch": torch})
    demand_loaded(path, state, None)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_a_program_is_no_file_of_weights(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Identity(), torch.ones(1)), tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").startswith("is a TorchScript program, not weights; save them alone")


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()], dtype=object)[:0],
        np.array([{"a": 1}], dtype=object),
        np.zeros(2, dtype=[("a", "f4")]),
        np.zeros(2, dtype="datetime64[s]"),
        np.zeros(2, dtype=np.complex64),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_that_are_no_numbers_are_nobodys_weights(tmp_path: Path, state: State, array: Any) -> None:
    torch.save({"state_dict": state | {"ocr.cls_head.bias": array}}, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").startswith(f"1 of {len(state)} keys are missing (first: ocr.cls_head.bias)")


class _Crafted:
    """An array whose state says more than its bytes hold."""

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __reduce__(self) -> Any:
        return (*np.zeros(1).__reduce__()[:2], self.state)


@pytest.mark.parametrize("shape", [(10**6,), (-7,), ("a",), "x", None, (2**62, 4)], ids=repr)
def test_arrays_whose_bytes_do_not_fit_their_shape_are_damage(tmp_path: Path, state: State, shape: Any) -> None:
    crafted = _Crafted(1, shape, np.dtype("f4"), False, b"\0" * 76)
    torch.save(state | {"ocr.cls_head.bias": crafted}, tmp_path / "w.pth")
    assert refusal(tmp_path / "w.pth").startswith("is truncated, damaged or no checkpoint (ocr.cls_head.bias: ")


def test_an_array_runs_nothing_of_numpys(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a file says of a dtype never reaches NumPy: crafted ones make it read beyond its memory."""
    torch.save(
        {"state_dict": state, "x": _Crafted(1, (1,), np.dtype([("a", "f4")]), False, b"\0" * 4)}, tmp_path / "w"
    )
    monkeypatch.setattr(np, "dtype", lambda *_: pytest.fail("called"))
    assert list(read_weights(tmp_path / "w", state).tensors) == list(state)


def test_layouts_are_no_way_around_the_refusal_of_code(tmp_path: Path, state: State) -> None:
    class Path_(argparse.Namespace):  # noqa: N801
        def __reduce__(self) -> Any:
            return argparse.FileType("w"), (str(tmp_path / "mark"),)

    torch.save({"state_dict": state, "args": Path_()}, tmp_path / "w.pth")
    assert "asks for 'argparse.FileType'" in refusal(tmp_path / "w.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pth", weights_only=True)
    assert not (tmp_path / "mark").exists()


def broken(state: State, key: str, value: float, dtype: torch.dtype = torch.float32) -> State:
    changed = {k: v.to(dtype) if v.is_floating_point() else v.clone() for k, v in state.items()}
    changed[key] = changed[key].clone()
    changed[key].view(-1)[-1] = value
    return changed


VARIANCE, HEAD = "backbone.bn1.running_var", "ocr.cls_head.weight"
ADVICE = "the training that made it diverged"
HALF = "float16 holds nothing above 65504"


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize(
    ("key", "value", "dtype", "said", "why"),
    [
        (HEAD, float("nan"), torch.float32, "NaN", ADVICE),
        (HEAD, float("-inf"), torch.float32, "inf", ADVICE),
        (HEAD, float("nan"), torch.bfloat16, "NaN", ADVICE),
        (VARIANCE, 1e6, torch.float16, "inf", HALF),
        (VARIANCE, float("inf"), torch.float32, "inf", ADVICE),
        (VARIANCE, -0.5, torch.float32, "-0.5", ADVICE),
        ("backbone.bn1.running_mean", float("nan"), torch.float64, "NaN", ADVICE),
    ],
)
def test_values_that_are_no_numbers_are_refused(
    tmp_path: Path, state: State, ending: str, key: str, value: float, dtype: torch.dtype, said: str, why: str
) -> None:
    path = tmp_path / f"w.{ending}"
    (save_file if ending == "safetensors" else torch.save)(broken(state, key, value, dtype), path)
    text = refusal(path)
    assert text.startswith(
        f"1 of {len(state)} keys hold values that no network can use (first: {key} holds {said}); {why}"
    )
    with pytest.raises(CheckpointError, match=f"first: {key} holds {said}"):
        check_initial(path, ARCH)
    with pytest.raises(CheckpointError, match=re.escape(text)):
        load_initial(build(ARCH), path, ARCH)


def test_what_is_negative_or_large_elsewhere_is_sound(tmp_path: Path, state: State) -> None:
    save_checkpoint(tmp_path / "w.pth", broken(state, "backbone.bn1.running_mean", -1e9), arch=ARCH)
    assert check_weights(tmp_path / "w.pth", ARCH) is None


def test_a_layer_that_starts_afresh_may_hold_anything(tmp_path: Path, state: State) -> None:
    torch.save(under("model.", broken(state, HEAD, float("nan"))), tmp_path / "w.pth")
    assert check_initial(tmp_path / "w.pth", ARCH, fresh=["ocr.cls_head"]) == "weights 'model.' taken off the keys"


def test_a_trunk_below_a_prefix_goes_under_the_backbone(tmp_path: Path, state: State) -> None:
    trunk = {k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")}
    torch.save({"model": under("module.", trunk) | {"module.criterion.weight": torch.ones(3)}}, tmp_path / "w.pth")
    fresh = ("ocr", "scale_attn")
    note = "weights taken from 'model'; 1 left out (module.criterion.weight)"
    assert check_initial(tmp_path / "w.pth", ARCH, fresh=fresh, prefix="backbone.") == note
    # What a recipe names as unused is its own to leave out.
    unused = ("backbone.criterion",)
    note = check_initial(tmp_path / "w.pth", ARCH, fresh=fresh, unused=unused, prefix="backbone.")
    assert note == "weights taken from 'model'"
