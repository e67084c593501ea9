"""The manifest's ``cuda_graphs`` and ``compile``: off unless asked for, and only a GPU has them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions
from hmsa_pipeline.pipeline.inference.member_check import identities_of
from hmsa_pipeline.pipeline.inference.predictor import WITHOUT_COMPILE, Predictor, usable_members, usable_options
from hmsa_pipeline.pipeline.store.identity import StoreIdentity
from hmsa_pipeline.pipeline.workers.protocol import BlockResult
from torch import Tensor

from .bench import Bench, attributes, files

GARDEN = ("--datasets", "garden", "--models", "ant")
BOTH = {"cuda_graphs": True, "compile": "default"}
SAID = [
    "cuda_graphs: only GPUs have them, so it is left out",
    "compile: on a CPU nothing is compiled, default is left out (and written down as off)",
]


def switched_on(bench: Bench) -> Bench:
    bench.tree["inference"] = bench.tree["inference"] | BOTH
    return bench.save()


def test_both_are_off_by_default(fresh: Bench) -> None:
    inference = load_manifest(fresh.manifest).inference
    assert (inference.cuda_graphs, inference.compile) == (False, "off")
    used, _ = usable_options(inference, torch.device("cuda"))
    assert (used.cuda_graphs, used.compile) == (False, "off")


def test_a_gpu_gets_what_the_manifest_says_and_a_cpu_does_not() -> None:
    inference = InferenceOptions(cuda_graphs=True, compile="max-autotune-no-cudagraphs")
    assert usable_options(inference, torch.device("cuda")) == (inference, [])
    here, _ = usable_options(inference, torch.device("cpu"))
    assert (here.cuda_graphs, here.compile) == (False, "off")


def test_a_gpu_is_told_which_members_run_without_graphs(fresh: Bench) -> None:
    ours = load_manifest(fresh.manifest).member("ant")
    theirs = ours.model_copy(update={"name": "segformer", "arch": "transformers"})
    inference, gpu = InferenceOptions(cuda_graphs=True, precision="fp32"), torch.device("cuda")
    assert usable_members([ours, theirs], inference, gpu)[1] == [
        "cuda_graphs: networks of other libraries run without them (segformer)"
    ]
    assert usable_members([ours], inference, gpu)[1] == []
    assert usable_members([theirs], InferenceOptions(precision="fp32"), gpu)[1] == []
    assert usable_members([ours, theirs], inference, torch.device("cpu"))[1] == SAID[:1]


def test_a_dump_on_a_cpu_says_so_and_makes_the_same_bytes(empty: Bench, finished: Bench) -> None:
    result = switched_on(empty).run("dump", *GARDEN)
    assert (result.code, result.err.splitlines()) == (0, SAID)
    assert files(empty.store("garden", "ant")) == files(finished.store("garden", "ant"))


def test_predict_on_a_cpu_says_so_and_makes_the_same_bytes(empty: Bench, finished: Bench) -> None:
    result = switched_on(empty).run("predict", "--datasets", "garden")
    assert (result.code, result.err.splitlines()) == (0, SAID)
    assert files(empty.predictions / "garden") == files(finished.predictions / "garden")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("compile", "reduce-overhead", "known: off, default, max-autotune-no-cudagraphs"),
        ("cuda_graphs", "yes", "true or false is needed"),
    ],
)
def test_other_values_are_refused(empty: Bench, key: str, value: str, message: str) -> None:
    empty.tree["inference"][key] = value
    said = empty.save().run("dump", *GARDEN).refusal()
    assert f"inference.{key}" in said
    assert message in said


def test_what_was_compiled_is_another_work_and_what_was_not_looks_as_ever(finished: Bench) -> None:
    manifest = load_manifest(finished.manifest)
    options = manifest.inference.model_copy(update={"precision": "fp32"})
    (plain, *_), _ = identities_of(manifest.models, options, "lossless", manifest.class_set)
    compiling = options.model_copy(update={"compile": "default"})
    (compiled, *_), _ = identities_of(manifest.models, compiling, "lossless", manifest.class_set)
    assert "compile" not in plain.as_json()
    assert compiled.as_json() == plain.as_json() | {"compile": "default"}
    assert plain.differences(compiled) == ["compile off there, default now"]
    assert compiled.differences(plain) == ["compile default there, off now"]
    assert compiled.differences(replace(compiled)) == []
    for one in (plain, compiled):
        assert StoreIdentity.from_json(json.loads(json.dumps(one.as_json()))) == one
    assert StoreIdentity.from_json(attributes(finished.store("street", "ant"))) == plain


def test_a_store_of_compiled_logits_is_not_gone_on_with(full: Bench) -> None:
    path = full.store("garden", "ant") / "zarr.json"
    tree = json.loads(path.read_text())
    tree["attributes"]["compile"] = "default"
    path.write_text(json.dumps(tree))
    assert "(compile default there, off now)" in full.run("dump", *GARDEN).refusal()
    assert "store of ant made with other settings" in full.run("ensemble", "--datasets", "garden").refusal()


def test_what_the_networks_have_to_say_is_said_once_in_a_run(empty: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Predictor, "take_notes", lambda _: ["cuda_graphs: cannot be used (x)"])
    result = empty.run("dump")
    assert (result.code, result.err.splitlines()) == (0, ["cuda_graphs: cannot be used (x)"])
    assert BlockResult().notes == ()


def test_images_without_compile_are_counted_apart_from_those_made_in_parts(
    empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = Predictor.__call__

    def without(self: Predictor, image: Tensor) -> tuple[Tensor, str | None]:
        return call(self, image)[0], WITHOUT_COMPILE

    monkeypatch.setattr(Predictor, "__call__", without)
    result = empty.run("dump", *GARDEN)
    assert result.err.splitlines() == ["garden/ant: 2 images were made without compile; run.json lists them"]
    run = json.loads((empty.output / "run.json").read_text())["dump"]["garden/ant"]
    assert run["fallbacks"] == dict.fromkeys(("flower.png", "deep/tree.JPG"), WITHOUT_COMPILE)
