"""Networks of other libraries through the command line: what they make, and what is refused before any work."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hmsa_pipeline.datasets.decode.tensors import decode_image, normalise
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.models.adapters.load import load_member
from hmsa_pipeline.models.adapters.settings import AdapterSettings
from hmsa_pipeline.pipeline.store.logit_store import LogitStore
from torch.nn import functional

from ..models.adapters.tiny import hf, save
from .bench import Bench, attributes, run


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Two networks that transformers saved, two photographs of odd sizes; tests take a copy."""
    bench = Bench(
        tmp_path_factory.mktemp("members"),
        {
            "version": 1,
            "inference": {"scales": [1.0], "precision": "fp32"},
            "models": [
                {"name": "segformer", "arch": "transformers", "checkpoint": "segformer"},
                {"name": "mask2former", "arch": "transformers", "checkpoint": "mask2former"},
            ],
            "datasets": [{"name": "garden", "type": "folder", "root": "photos/garden"}],
        },
    )
    for family in ("segformer", "mask2former"):
        save(family, bench.root / family)
    bench.photo("garden/a.png", 64, 96, seed=1)
    bench.photo("garden/b.png", 61, 83, seed=2)
    return bench.save()


@pytest.fixture
def bench(saved: Bench, tmp_path: Path) -> Bench:
    return saved.copy(tmp_path / "bench")


def changed(bench: Bench, **values: Any) -> Bench:
    """The manifest with the SegFormer alone, changed."""
    bench.tree["models"] = [bench.tree["models"][0] | values]
    return bench.save()


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_folders_of_three_lines_are_dumped_and_fused(bench: Bench) -> None:
    checked = run("manifest", "check", "--manifest", str(bench.manifest))
    assert checked.code == 0, checked
    assert "ok      model    segformer" in checked.out
    assert "instead of its processor's resizing to 512x512 the view decides" in checked.out
    for command in ("dump", "ensemble"):
        result = bench.run(command)
        assert result.code == 0, result
    for name, kind in (("segformer", "logits"), ("mask2former", "scores")):
        network = load_member(AdapterSettings("transformers", bench.root / name, CLASS_NAMES))
        store = LogitStore.open(bench.store("garden", name))
        for entry in store.images:
            pixels = normalise(decode_image(bench.root / "photos/garden" / entry.path)[None])
            wanted = network.predict(pixels, [1.0])[0]
            found = torch.from_numpy(store.read(store.index[entry.path])).float()
            torch.testing.assert_close(found, wanted, atol=2e-2, rtol=2e-3)
        said = attributes(bench.store("garden", name))
        assert (said["architecture"], said["preprocessing"]["kind"]) == ("transformers", kind)
        assert said["preprocessing"]["view"] == "whole"
    assert len(list(bench.predictions.rglob("*_pred.png"))) == 2


def test_what_changes_logits_stands_in_the_store_and_starts_it_over(bench: Bench) -> None:
    assert changed(bench).run("dump").code == 0
    view = {"window": [32, 64], "stride": [24, 48]}
    refused = changed(bench, view=view).run("dump").refusal()
    assert "preprocessing" in refused
    assert bench.run("dump", "--overwrite").code == 0
    assert attributes(bench.store("garden", "segformer"))["preprocessing"]["view"] == view
    assert run("manifest", "show", "--manifest", str(bench.manifest)).out.count("view:") == 1


def test_the_sha256_of_a_folder_is_that_of_the_list_of_its_files(bench: Bench) -> None:
    folder = bench.root / "segformer"
    (folder / "README.md").write_text("does not count")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
    done = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True)
    digest = hashlib.sha256(done.stdout).hexdigest()
    checked = run("manifest", "check", "--manifest", str(changed(bench, sha256=digest).manifest))
    assert "its sha256 is that of the manifest" in checked.out
    edit(folder / "preprocessor_config.json", rescale_factor=0.5)
    assert "its sha256 is" in bench.run("dump").refusal()


OTHERS = {"classes": [*CLASS_NAMES[:11], *["other"] * 8]}


def test_what_became_no_class_is_recorded_image_by_image_and_shown(bench: Bench) -> None:
    changed(bench, **OTHERS)
    assert bench.run("dump", "--limit", "1").code == 0
    said = bench.run("dump")
    shares = json.loads((bench.output / "other/garden/segformer.json").read_text())
    network = load_member(AdapterSettings("transformers", bench.root / "segformer", CLASS_NAMES))
    for image in ("a.png", "b.png"):  # the second run keeps what the first one found
        pixels = decode_image(bench.root / "photos/garden" / image)[None] / 255
        height, width = pixels.shape[-2:]
        padded = functional.pad(pixels, (0, 96 - width, 0, 64 - height), mode="replicate")
        with torch.no_grad():
            small = network.body(padded).softmax(1)[:, 11:].sum(1, keepdim=True)
        share = functional.interpolate(small, (64, 96), mode="bilinear")[..., :height, :width].mean().item()
        assert shares[image] == pytest.approx(share, abs=2e-6)
    assert f"; probability of other classes: segformer {100 * shares['b.png']:.2f} %" in said.out
    assert bench.run("ensemble").code == 0
    assert bench.run("report", "--write", str(bench.root / "report")).code == 0
    (row,) = json.loads((bench.root / "report/report.json").read_text())["members"]
    assert row["other"] == f"{50 * (shares['a.png'] + shares['b.png']):.2f} %"
    assert f"<td>{row['other']}</td>" in (bench.root / "report/index.html").read_text()
    changed(bench, classes=[*CLASS_NAMES[:5], *["other"] * 14])
    assert bench.run("dump", "--overwrite", "--limit", "1").code == 0
    (again,) = json.loads((bench.output / "other/garden/segformer.json").read_text()).values()
    assert again > shares["a.png"]
    assert changed(bench, classes=None).run("dump", "--overwrite").code == 0
    assert not (bench.output / "other/garden/segformer.json").exists()


def test_predict_records_what_became_no_class_of_the_members_that_it_keeps(bench: Bench) -> None:
    bench.tree["models"][0] |= OTHERS
    bench.save()
    assert bench.run("dump", "--models", "segformer").code == 0
    wanted = (bench.output / "other/garden/segformer.json").read_bytes()
    other = bench.root / "other-run"
    said = bench.run("predict", "--keep", "segformer", "--output", str(other), "--json", "-")
    assert (other / "other/garden/segformer.json").read_bytes() == wanted
    assert list(said.figures[0]["other"]) == ["segformer"]
    assert not (other / "other/garden/mask2former.json").exists()


def smp_folder(bench: Bench) -> None:
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    channels = (16, 8, 8, 8, 8)
    network = smp.Unet("tu-mobilenetv3_small_050", encoder_weights=None, classes=19, decoder_channels=channels)
    network.save_pretrained(bench.root / "unet")


SMP = {"arch": "smp", "checkpoint": "unet", "classes": list(CLASS_NAMES)}


def test_a_folder_of_smp_is_dumped_and_its_numbers_stand_in_the_store(bench: Bench) -> None:
    smp_folder(bench)
    numbers = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    assert changed(bench, **SMP, **numbers).run("dump").code == 0
    said = attributes(bench.store("garden", "segformer"))["preprocessing"]
    assert {name: said[name] for name in numbers} == numbers
    assert (said["kind"], said["network"]) == ("logits", "Unet with tu-mobilenetv3_small_050")
    refused = changed(bench, mean=None, std=None).run("dump").refusal()
    assert "preprocessing" in refused


def no_config(bench: Bench) -> None:
    (bench.root / "segformer/config.json").unlink()


def no_processor(bench: Bench) -> None:
    (bench.root / "segformer/preprocessor_config.json").unlink()


def classifier(bench: Bench) -> None:
    edit(bench.root / "segformer/config.json", architectures=["SegformerForImageClassification"])


def weights_of_a_classifier(bench: Bench) -> None:
    config = hf.SegformerConfig.from_pretrained(bench.root / "segformer")
    hf.SegformerForImageClassification(config).save_pretrained(bench.root / "classifier")
    shutil.copy(bench.root / "classifier/model.safetensors", bench.root / "segformer/model.safetensors")


def other_count(bench: Bench) -> None:
    names = {str(number): f"class {number}" for number in range(150)}
    edit(bench.root / "segformer/config.json", id2label=names, label2id={name: int(n) for n, name in names.items()})


def pickled(bench: Bench) -> None:
    (bench.root / "segformer/model.safetensors").rename(bench.root / "segformer/pytorch_model.bin")


def damaged(bench: Bench) -> None:
    path = bench.root / "segformer/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def no_number(bench: Bench) -> None:
    from safetensors.torch import load_file, save_file

    path = bench.root / "segformer/model.safetensors"
    weights = load_file(path)
    first = next(key for key in weights if key.endswith("weight"))
    save_file(weights | {first: weights[first] * float("nan")}, path, {"format": "pt"})


def named_backbone(bench: Bench) -> None:
    name = ["UperNetForSemanticSegmentation"]
    edit(bench.root / "segformer/config.json", architectures=name, backbone="microsoft/swin-tiny")


def without_names(bench: Bench) -> None:
    edit(bench.root / "segformer/config.json", id2label={str(n): f"LABEL_{n}" for n in range(19)}, label2id=None)


def no_class_of_smp(bench: Bench) -> None:
    smp_folder(bench)
    edit(bench.root / "unet/config.json", _model_class="Unit")


def resnet_of_smp(bench: Bench) -> None:
    smp_folder(bench)
    edit(bench.root / "unet/config.json", encoder_name="resnet18")


ONNX = {"arch": "onnx", "checkpoint": "net.onnx", "classes": list(CLASS_NAMES)}


def half_of_external_weights(bench: Bench) -> None:
    """The weights of a graph lie in a file beside it, of which the download stopped in the middle."""
    import onnx

    weight = onnx.numpy_helper.from_array(np.zeros((19, 3, 1, 1), np.float32), "weight")
    tensors = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, "h", "w"])
        for name, channels in (("image", 3), ("logits", 19))
    ]
    node = onnx.helper.make_node("Conv", ["image", "weight"], ["logits"])
    graph = onnx.helper.make_graph([node], "net", tensors[:1], tensors[1:], [weight])
    onnx.save_model(
        onnx.helper.make_model(graph),
        bench.root / "net.onnx",
        save_as_external_data=True,
        location="net.data",
        size_threshold=0,
    )
    (bench.root / "net.data").write_bytes(bytes(100))


NUMBERS = {"mean": [0, 0, 0], "std": [1, 1, 1]}


def nothing(bench: Bench) -> None:
    pass


WRONG = {
    "no config": (no_config, {}, "holds no config.json; transformers reads the folder that save_pretrained wrote"),
    "no processor": (no_processor, {}, "holds no preprocessor_config.json"),
    "a classifier": (classifier, {}, "SegformerForImageClassification is no segmentation network that can be"),
    "a classifier's weights": (weights_of_a_classifier, {}, "weights are missing (decode_head."),
    "150 classes": (other_count, {}, "2 weights are of another shape (decode_head.classifier.bias"),
    "a pickle": (pickled, {}, "holds only pytorch_model.bin, which may run code when read"),
    "damaged": (damaged, {}, "transformers cannot load it"),
    "no number": (no_number, {}, "holds NaN"),
    "a backbone's name": (named_backbone, {}, "names its backbone (microsoft/swin-tiny)"),
    "no names": (without_names, {}, "its 19 classes have no names; name them in their order"),
    "a hub name": (nothing, {"checkpoint": "nvidia/segformer-b0"}, "names on a hub are not fetched"),
    "a file": (nothing, {"checkpoint": "segformer/model.safetensors"}, "is a file; transformers reads the folder"),
    "classes": (nothing, {"classes": {"roads": "road"}}, "'roads', which the network does not know (did you mean"),
    "our classes": (nothing, {"classes": {"road": "rode"}}, "'rode' is none of our classes; did you mean 'road'?"),
    "too few": (nothing, {"classes": ["road"]}, "'classes' names 1 classes, the network has 19"),
    "a stride": (nothing, {"view": {"stride": [1, 1]}}, "view.stride: means nothing without 'window'"),
    "gaps": (nothing, {"view": {"window": [8, 8], "stride": [8, 9]}}, "9 leaves pixels out between windows of 8"),
    "both": (nothing, {"view": {"window": [8, 8], "longest": 9}}, "cannot be combined with 'window'"),
    "a word": (nothing, {"view": "all"}, "whole, {window: [h, w]} or {longest: n} is needed"),
    "no view": (nothing, {"view": {}}, "an empty mapping says nothing"),
    "no checkpoint": (nothing, {"checkpoint": None}, "needs the folder in which a network was saved"),
    "smp without names": (smp_folder, {"arch": "smp", "checkpoint": "unet"}, "its 19 classes have no names"),
    "smp by name": (nothing, {"arch": "smp", "checkpoint": "owner/unet"}, "names on a hub are not fetched"),
    "another's folder": (nothing, {"arch": "smp", **NUMBERS}, "was saved by transformers; say 'arch: transformers'"),
    "smp's folder": (smp_folder, {"checkpoint": "unet"}, "was saved by segmentation_models_pytorch; say 'arch: smp'"),
    "a class of nobody": (no_class_of_smp, {**SMP, **NUMBERS}, "names the class Unit, which smp does not have"),
    "external weights": (half_of_external_weights, {**ONNX, **NUMBERS}, "cannot be read"),
    "smp without numbers": (
        resnet_of_smp,
        SMP,
        "the mean and deviation of its pixels; give the 'mean'",
    ),
    "mean alone": (nothing, {"arch": "smp", "mean": [0, 0, 0]}, "std: is missing; 'mean' and 'std' go together"),
    "mean": (nothing, {"mean": [0, 0, 0], "std": [1, 1, 1]}, "means nothing to 'transformers', only to smp"),
    "postprocess": (
        nothing,
        {"postprocess": "library"},
        "changes Mask2FormerForUniversalSegmentation alone, not Seg",
    ),
    "the library": (nothing, {"postprocess": "ours"}, "postprocess: "),
    "a shipped table": (
        nothing,
        {"classes": "ade20k150"},
        "'classes: ade20k150' is of 150 classes, the network has 19",
    ),
    "no such table": (nothing, {"classes": "ade20k"}, "did you mean 'ade20k150'?"),
    "std": (nothing, {"arch": "smp", "mean": [0, 0, 0], "std": [1, 1, 0]}, "must be above 0, not 0"),
    "view of ours": (
        nothing,
        {"arch": "hrnet_ocr", "view": "whole"},
        "means nothing to 'hrnet_ocr', only to transformers, smp",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_refused_in_one_line_before_any_work(name: str, bench: Bench) -> None:
    spoil, values, message = WRONG[name]
    spoil(bench)
    refused = changed(bench, **values).run("dump").refusal()
    assert message in refused
    assert not bench.output.exists()


def test_names_can_be_given_or_done_without(bench: Bench) -> None:
    without_names(bench)
    names = [*CLASS_NAMES[:18], "other"]
    assert "have no names" in changed(bench).run("dump").refusal()
    result = changed(bench, classes=names).run("dump", "--limit", "1")
    assert (result.code, "it knows no bicycle" in result.err + result.out) == (0, True), result
    said = attributes(bench.store("garden", "segformer"))["preprocessing"]
    assert (said["classes"]["bicycle"], said["other"]) == ([], ["other"])


def test_without_the_library_its_extra_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'hmsa-pipeline[members]'" in bench.run("dump").refusal()


def test_other_members_do_not_load_the_library() -> None:
    code = "import sys, hmsa_pipeline.pipeline.inference.dump; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_the_librarys_way_over_a_square_can_be_asked_for(bench: Bench) -> None:
    bench.tree["models"] = [bench.tree["models"][1]]
    assert bench.save().run("dump").code == 0
    assert "preprocessing" in changed(bench, postprocess="library").run("dump").refusal()
    assert bench.run("dump", "--overwrite").code == 0
    assert attributes(bench.store("garden", "mask2former"))["preprocessing"]["postprocess"] == "library"
