"""Tables from other datasets' classes to ours that come with the package."""

from __future__ import annotations

import pytest
import torch
import yaml
from hmsa_pipeline.datasets.dataset_specs import dataset_spec
from hmsa_pipeline.datasets.taxonomy import CLASS_NAMES
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.models.adapters.class_table import SHIPPED, class_table, shipped_table
from hmsa_pipeline.models.registry import CLASS_TABLES

UNKNOWN = {"mapillary65": [], "ade20k150": ["rider", "train"], "cocostuff171": ["pole", "rider"]}
UNKNOWN["cocostuff182"] = UNKNOWN["cocostuff171"]
WITHOUT_ANNOTATIONS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}  # ids, as COCO-Stuff's labels.md lists them


def test_every_file_is_a_table_and_names_its_sources() -> None:
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == set(CLASS_TABLES)
    for name in CLASS_TABLES:
        said = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
        assert said["title"]
        assert said["sources"].keys() == {"names", "mapping"}
        rows = shipped_table(name)
        assert len(rows) == int(name.lstrip("abcdefghijklmnopqrstuvwxyz").removeprefix("20k"))
        assert {ours for ours, _ in rows} <= {*CLASS_NAMES, "other"}
        every = [one.lower() for _, names in rows for one in names]
        assert len(set(every)) == len(every)
        assert [one for one in CLASS_NAMES if one not in {ours for ours, _ in rows}] == UNKNOWN[name]


def test_mapillary_agrees_with_the_labels_that_are_trained_on() -> None:
    labels = dataset_spec("mapillary").labels
    assert labels
    differ = {}
    for channel, (ours, (_, name)) in enumerate(shipped_table("mapillary65")):
        train_id, spec_name = labels[channel]
        assert name == spec_name
        trained = "other" if train_id == 255 else CLASS_NAMES[train_id]
        if ours != trained:
            differ[name.rpartition("--")[2]] = (trained, ours)
    road = ("other", "road")
    assert differ == {
        "curb": ("other", "sidewalk"),
        **{"service-lane": road, "catch-basin": road, "manhole": road, "pothole": road},
    }


def test_the_171_classes_of_coco_are_those_of_the_182_that_have_annotations() -> None:
    full = shipped_table("cocostuff182")
    assert shipped_table("cocostuff171") == [
        row for number, row in enumerate(full, start=1) if number not in WITHOUT_ANNOTATIONS
    ]


@pytest.mark.parametrize(
    ("name", "channel", "known"),
    [
        ("mapillary65", 13, "Road"),
        ("mapillary65", 55, "Car"),
        ("ade20k150", 6, "road"),
        ("ade20k150", 12, "person"),
        ("ade20k150", 127, "bicycle"),
        ("ade20k150", 149, "flag"),
        ("cocostuff171", 148 - 11, "road"),
        ("cocostuff182", 148, "road"),
        ("cocostuff182", 168, "tree"),
    ],
)
def test_channels_are_where_published_networks_have_them(name: str, channel: int, known: str) -> None:
    assert shipped_table(name)[channel][1][0] == known


def test_probabilities_add_up_and_what_is_lost_is_listed() -> None:
    found = class_table("net", 150, None, "ade20k150", CLASS_NAMES)
    values = torch.rand(1, 150, 2, 3, generator=torch.Generator().manual_seed(0))
    belief = found.combine(found.take(values), "scores")
    rows = shipped_table("ade20k150")
    for number, name in enumerate(CLASS_NAMES):
        of = [channel for channel, (ours, _) in enumerate(rows) if ours == name]
        torch.testing.assert_close(belief[:, number], values[:, of].sum(1))
    said = found.as_json(CLASS_NAMES)
    assert said["classes"]["car"] == ["car", "van"]
    assert (said["classes"]["rider"], "ceiling" in said["other"]) == ([], True)
    logits = found.combine(found.take(values.log()), "logits").softmax(1)
    torch.testing.assert_close(logits, (belief / belief.sum(1, keepdim=True)), atol=1e-5, rtol=1e-4)


def test_names_of_the_network_have_to_agree() -> None:
    rows = shipped_table("ade20k150")
    labels = {channel: f"{names[0]} , {names[-1]}" for channel, (_, names) in enumerate(rows)}
    assert class_table("net", 150, labels, "ade20k150", CLASS_NAMES).names[1] == "building , edifice"
    assert class_table("net", 150, labels | {3: "ground floor"}, "ade20k150", CLASS_NAMES).sources  # is none of ours
    labels[6] = "river"
    with pytest.raises(ManifestError, match=r"net: channel 6 is 'river', in the table ade20k150 it is 'road'"):
        class_table("net", 150, labels, "ade20k150", CLASS_NAMES)
    with pytest.raises(ManifestError, match=r"'classes: mapillary65' is of 65 classes, the network has 66"):
        class_table("net", 66, None, "mapillary65", CLASS_NAMES)
