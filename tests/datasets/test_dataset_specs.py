"""The facts about the seven datasets against those that the published members were trained with."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from string import Formatter

import numpy as np
import pytest
import yaml
from hmsa_pipeline.datasets import taxonomy
from hmsa_pipeline.datasets.dataset_specs import ENCODINGS, EVALUATED, FACTS, NAMES, TOTAL, UNKNOWN, dataset_spec
from hmsa_pipeline.datasets.layout import splits
from hmsa_pipeline.datasets.layout.outlier_sets import OUTLIERS
from hmsa_pipeline.errors import DatasetError

ROOT = Path(__file__).parents[2]
GOLDEN = yaml.safe_load((ROOT / "tests/data/label_maps.yaml").read_text(encoding="utf-8"))
FILES = ROOT / "datasets/specs"


def test_there_are_seven():
    assert list(GOLDEN["datasets"]) == list(NAMES) == [*dict.fromkeys(NAMES)] and len(NAMES) == 7
    assert {path.name for path in FILES.iterdir()} == {f"{name}.yaml" for name in (*NAMES, *EVALUATED)}


def test_classes_and_colours():
    assert list(taxonomy.CLASS_NAMES) == GOLDEN["class_names"]
    assert [list(colour) for colour in taxonomy.PALETTE] == GOLDEN["palette_rgb"]


@pytest.mark.parametrize("name", NAMES)
def test_every_table_is_the_one_that_the_members_learnt(name):
    golden = GOLDEN["datasets"][name]["raw_to_train_id"]
    if golden is not None:
        golden = {raw: tuple(meaning) for raw, meaning in golden.items()}
    if name == "cityscapes":
        assert golden.pop(-1) == (-1, "license plate")
        golden[-1] = (255, "license plate")  # which the network could not be asked for
    if name == "gta5":
        golden[34] = (255, "license plate")  # the members' table named it as one of the others, which are ignored
    assert dataset_spec(name).labels == golden
    assert dataset_spec(name).folder == GOLDEN["datasets"][name]["folder"]
    removed = GOLDEN["datasets"][name].get("removed_ids", [])
    assert dataset_spec(name).layout.left_out_stems == {str(number) for number in removed}


@pytest.mark.parametrize("name", NAMES)
def test_a_lookup_is_its_table_and_nothing_else(name):
    facts = dataset_spec(name)
    for rule in facts.masks:
        table = facts.lookup(rule.encoding)
        assert table.shape == (256,) and table.dtype == np.uint8
        meant = {n: n for n in [*range(19), 255]}
        if rule.encoding != "train_ids":
            meant = {raw % 256: train for raw, (train, _) in (facts.labels or {}).items()}
        if rule.encoding == "ids_v2":
            meant = {raw: meant[old] for raw, (old, _) in (facts.labels_v2 or {}).items()}
        assert {raw: int(train) for raw, train in enumerate(table) if train != UNKNOWN} == meant


def test_there_are_no_raw_ids_where_masks_hold_train_ids():
    with pytest.raises(ValueError, match="bdd100k has no raw ids"):
        dataset_spec("bdd100k").lookup("ids")


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(DatasetError, match=r"unknown dataset 'gta'; did you mean 'gta5'\?"):
        dataset_spec("gta")
    with pytest.raises(DatasetError, match="known: cityscapes, bdd100k, idd, mapillary, wilddash, gta5, shift"):
        dataset_spec("nothing of the kind")


@pytest.mark.parametrize("name", NAMES)
def test_the_files_say_what_they_must_and_nothing_that_is_not_read(name):
    text = (FILES / f"{name}.yaml").read_text(encoding="utf-8")
    facts = yaml.safe_load(text)
    needed = {
        "title",
        "folder",
        "homepage",
        "paper",
        "download",
        "sources",
        "archives",
        "tree",
        "splits",
        "default",
        "masks",
        "labels",
    }
    optional = {"joined", "members", "left_out", "unlabelled", "stem_ending", "split_folders", "resize_masks"}
    optional |= {"average", "counts", "more", "parts", "unsure", "variants", "labels_v2", "mappings", "remarks"}
    optional |= {"apart", "class_sets"}
    assert needed <= set(facts) <= needed | optional
    assert set(facts["archives"]) == {"images", "masks"}
    assert facts["tree"].startswith(f"{facts['folder']}/\n")
    assert facts["homepage"].startswith("http") and facts["paper"].startswith("https://")
    assert re.match(r"# .*\n#\n# .*(Layout|layout)", text), "the head of the file says where its facts come from"
    assert len(facts["labels"] or {}) + len(facts.get("labels_v2", {})) == len(
        re.findall(r"^  -?\d+: \[", text, re.M)
    ), "no id stands there twice"


# An address, or the name, the place and the year of a publication.
CITED = re.compile(
    r"https?://[a-z0-9.-]+\.[a-z]{2,}(/|\b)|\b[A-Z][a-z]+ et al\., [A-Z]+ (19|20)\d\d|arXiv \d{4}\.\d{5}"
)


@pytest.mark.parametrize("name", [*NAMES, *EVALUATED])
def test_each_fact_has_its_source(name):
    facts = dataset_spec(name)
    expected = {*FACTS, *(["parts"] if facts.parts else [])}
    assert set(facts.sources) == expected
    for kind, text in facts.sources.items():
        assert CITED.search(text), (kind, text)
    numbers = {*facts.counts.values()} if "_" not in "".join(facts.counts) else set()
    assert all(str(number) in facts.sources["counts"] for number in numbers), "each number stands with its source"
    for part in facts.parts.values():
        assert all(str(number) in facts.sources["parts"] for number in part.values())
    if not facts.counts:
        assert facts.sources["counts"].startswith("none: ")
    archives = " ".join(
        (facts.image_archive, facts.mask_archive, *(name for both in facts.apart.values() for name in both))
    )
    for archive in re.findall(r"[\w.-]+\.(?:zip|tar\.gz)", archives):
        assert archive in facts.download or re.match(r"\d\d_", archive) or name == "shift", archive
        assert archive in facts.sources["archives"] or name in ("cityscapes", "gta5"), archive
    # What is not sure is one of the numbers.
    assert facts.unsure <= {*facts.counts, *facts.parts}


def test_sets_that_are_out_of_distribution_have_a_source_for_their_numbers():
    for name, one in OUTLIERS.items():
        assert one.counts and CITED.search(one.source), name
    assert [name for name, one in OUTLIERS.items() if one.unsure] == ["validation_dataset"]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_facts_refer_to_is_there(name):
    facts, layout = dataset_spec(name), dataset_spec(name).layout
    assert layout.default == "val" and {"train", "val"} <= set(facts.labelled) <= set(layout.split_names)
    assert set(facts.unlabelled) <= set(layout.split_names)
    assert set(facts.split_folders) == set(layout.splits)
    assert layout.members in splits._RULES
    assert all(part in layout.splits for parts in layout.joined.values() for part in parts)
    assert all(0 <= train < 19 or train == 255 for train, _ in (facts.labels or {}).values())
    for rule in facts.masks:
        assert rule.encoding in ENCODINGS
        fields = [field for _, field, _, _ in Formatter().parse(rule.path) if field]
        assert set(fields) <= {"part", "split", "below", "stem"} and {"below", "stem"} <= set(fields)
    for split, folders in layout.splits.items():
        assert split in layout.variants or all(Path(folder).name in facts.tree for folder in folders)
    assert set(facts.counts) <= {*layout.splits, TOTAL}
    assert all(count > 0 for count in facts.counts.values())


def test_facts_travel_to_other_processes():
    for name in NAMES:
        data = pickle.dumps(dataset_spec(name))
        assert pickle.loads(data) == dataset_spec(name) and len(data) < 16384


def test_nothing_is_read_or_waited_for_at_import():
    code = (
        "import sys; from hmsa_pipeline.datasets import dataset_specs;"
        "from hmsa_pipeline.datasets.layout import find_images, image_mask_pairs;"
        "list(find_images.LAYOUTS), 'gta5' in find_images.LAYOUTS;"
        "read = dataset_specs.dataset_spec.cache_info().misses;"
        "print(read, *{'torch', 'numpy', 'scipy', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
