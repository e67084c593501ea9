"""Wrong manifests: each is refused in one line that names the file, the line, the field and the fix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.pipeline.config.load_manifest import load_manifest
from hmsa_pipeline.pipeline.config.manifest import DatasetEntry, FusionFunctions, Manifest, StoreSettings
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions
from hmsa_pipeline.pipeline.config.yaml_document import MAX_BYTES, PROBLEMS_SHOWN
from hypothesis import example, given, settings
from hypothesis import strategies as st

GOOD = """\
version: 1
output: out
inference:
  scales: [0.5, 1.0, 2.0]
  flip: false
  precision: fp16
store:
  encoding: lossless
ensemble:
  label: mean-softmax
  confidence: mean-softmax
models:
  - name: first
    source: somewhere
    arch: hrnet_ocr_mscale
    checkpoint: weights/first.pth
    sha256: null
    weight: 1.0
    temperature: 1.0
  - name: second
    arch: external
datasets:
  - name: photos
    type: folder
    root: photos
    split: null
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("HMSA_ASSETS", "HMSA_DATA_ROOT", "NOWHERE"):
        monkeypatch.delenv(name, raising=False)


def write(text: str, path: str = "m.yaml") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def replaced(line: int, text: str) -> str:
    """GOOD with another text in place of one line, counted from 1; its indent is kept."""
    lines: list[str] = [*GOOD.splitlines()]
    indent = lines[line - 1][: len(lines[line - 1]) - len(lines[line - 1].lstrip(" -"))]
    lines[line - 1] = indent + text
    return "\n".join(lines) + "\n"


def refusal(source: str | Path, **kwargs: Any) -> str:
    """The one line with which a manifest is refused."""
    with pytest.raises(ManifestError) as caught:
        load_manifest(source, **kwargs)
    assert str(caught.value).isprintable(), repr(str(caught.value))
    return str(caught.value)


# Each wrong line: its number in GOOD, what stands there instead, the field that the message names, what
# else it says, and the line it names where that is another one.
WRONG = {
    "version 2": (1, "version: 2", "version", "this release reads version 1, not the number 2"),
    "version as text": (1, "version: '1'", "version", "not the text '1'"),
    "version true": (1, "version: true", "version", "not true"),
    "no output": (2, "# none", "output", "is missing", 1),
    "output empty": (2, "output:", "output", "a path is needed, not nothing"),
    "output blank": (2, "output: ' '", "output", "a path is needed"),
    "output number": (2, "output: 7", "output", "a path is needed, not the number 7"),
    "output unset": (2, "output: ${NOWHERE}/x", "output", "NOWHERE is not set; set it"),
    "output unset root": (
        2,
        "output: ${HMSA_DATA_ROOT}",
        "output",
        "HMSA_DATA_ROOT is not set; set it or give --d",
    ),
    "output of a stranger": (2, "output: ~nobody-of-that-name/x", "output", "write it out"),
    "output with NUL": (2, 'output: "a\\0b"', "output", "UTF-8"),
    "output surrogate": (2, 'output: "a\\ud800b"', "output", "UTF-8"),
    "unknown key": (3, "inferense:", "inferense", "unknown key; did you mean 'inference'?"),
    "far key": (2, "xyzzy: 1\noutput: o", "xyzzy", "unknown key; known: version, output, classes"),
    "merge key": (2, "<<: {a: 1}\noutput: o", "<<", "unknown key"),
    "section empty": (7, "store:\nx: # ", "store", "is empty; fill it in or leave it out"),
    "section a text": (
        7,
        "store: lossless\nx: # ",
        "store",
        "a mapping (key: value) is needed, not the text",
    ),
    "scales without 1": (4, "scales: [0.5, 2.0]", "inference.scales", "must contain 1.0"),
    "scales empty": (4, "scales: []", "inference.scales", "must contain 1.0"),
    "scales null": (4, "scales:", "inference.scales", "a list is needed, not nothing"),
    "scales one number": (4, "scales: 1.0", "inference.scales", "a list is needed, not the number 1.0"),
    "scale zero": (4, "scales: [1.0, 0]", "inference.scales[1]", "must be above 0, not 0"),
    "scale negative": (4, "scales: [-0.5, 1.0]", "inference.scales[0]", "must be above 0, not -0.5"),
    "scale nan": (4, "scales: [1.0, .nan]", "inference.scales[1]", "a finite number is needed"),
    "scale inf": (4, "scales: [1.0, .inf]", "inference.scales[1]", "a finite number is needed"),
    "scale huge": (4, f"scales: [1, {'9' * 400}]", "inference.scales[1]", "a finite number is needed"),
    "scale true": (4, "scales: [0.5, true]", "inference.scales[1]", "a number is needed, not true"),
    "scale as text": (4, "scales: [1.0, 5e-1]", "inference.scales[1]", "not the text '5e-1'; write 0.5"),
    "scale twice": (4, "scales: [1, 2, 1.0]", "inference.scales[2]", "1 stands twice"),
    "output of no kind": (2, "output: cloud://b/run", "output", "a folder, or a URL such as s3://bucket/run"),
    "output without a bucket": (2, "output: s3://", "output", "names no bucket; write s3://bucket/folder"),
    "flip number": (5, "flip: 1", "inference.flip", "true or false is needed, not the number 1"),
    "flip text": (5, "flip: 'no'", "inference.flip", "true or false is needed, not the text 'no'"),
    "precision": (6, "precision: fp61", "inference.precision", "'fp61' is not known; did you mean 'fp16'?"),
    "precision number": (6, "precision: 99", "inference.precision", "known: fp16, bf16, fp32"),
    "tile a number": (6, "tile: 512", "inference.tile", "a mapping (key: value) is needed, not the number 512"),
    "tile without size": (6, "tile: {overlap: 8}", "inference.tile.size", "is missing"),
    "tile size a number": (6, "tile: {size: 512}", "inference.tile.size", "a list is needed, not the number 512"),
    "tile size short": (6, "tile: {size: [512]}", "inference.tile.size[1]", "is missing"),
    "tile size zero": (6, "tile: {size: [512, 0]}", "inference.tile.size[1]", "must be 1 or more, not 0"),
    "tile size a fraction": (6, "tile: {size: [0.5, 512]}", "inference.tile.size[0]", "a whole number is needed"),
    "tile overlap negative": (
        6,
        "tile: {size: [512, 512], overlap: -1}",
        "inference.tile.overlap",
        "must be 0 or more, not -1",
    ),
    "tile overlap of a side": (
        6,
        "tile: {size: [512, 64], overlap: 64}",
        "inference.tile.overlap",
        "must be below both sides of the tile, not 64; give a smaller one",
    ),
    "tile below the usual overlap": (
        6,
        "tile: {size: [64, 512]}",
        "inference.tile.overlap",
        "must be below both sides of the tile, not 128; give a smaller one",
    ),
    "tile key": (
        6,
        "tile: {size: [512, 512], overlapp: 8}",
        "inference.tile.overlapp",
        "did you mean 'overlap'?",
    ),
    "encoding": (8, "encoding: zip", "store.encoding", "known: lossless, small, compact"),
    "label": (10, "label: mean", "ensemble.label", "known: mean-softmax, max-softmax"),
    "label near": (10, "label: mean-logits", "ensemble.label", "did you mean 'mean-logit'?"),
    "label that confidence has": (10, "label: entropy", "ensemble.label", "known: mean-softmax"),
    "confidence": (11, "confidence: enntropy", "ensemble.confidence", "did you mean 'entropy'?"),
    "confidence that label has": (11, "confidence: max-softmax", "ensemble.confidence", "did you mean 'm"),
    "models missing": (12, "x: #", "models", "is missing", 1),
    "name missing": (
        13,
        "weight: 1.0\n    temperature: 1.0\n  - name: x\n    #",
        "models[0].name",
        "is missing",
    ),
    "name number": (13, "name: 7", "models[0].name", "text is needed, not the number 7; put it in quotes"),
    "name no": (13, "name: no", "models[0].name", "text is needed, not false; put it in quotes"),
    "name null": (13, "name:", "models[0].name", "text is needed, not nothing"),
    "name leaves": (13, "name: ../first", "models[0].name", "'../first' cannot name files; use letters"),
    "name absolute": (13, "name: /first", "models[0].name", "cannot name files"),
    "name hidden": (13, "name: .first", "models[0].name", "cannot name files"),
    "name with newline": (13, 'name: "first\\n"', "models[0].name", "cannot name files"),
    "name empty": (13, 'name: ""', "models[0].name", "cannot name files"),
    "name not ascii": (13, "name: café", "models[0].name", "cannot name files"),
    "name long": (13, f"name: {'n' * 101}", "models[0].name", "100 characters at most, not 101"),
    "name of a lock": (13, "name: a.lock", "models[0].name", "ends like the lock files"),
    "name surrogate": (13, 'name: "\\ud800"', "models[0].name", "is not Unicode"),
    "source surrogate": (14, 'source: "\\ud800"', "models[0].source", "is not Unicode"),
    "name taken": (
        20,
        "name: First",
        "models[1].name",
        "'First' is also the name of models[0] (case does not",
    ),
    "arch unknown": (15, "arch: hrnet_ocr_mscal", "models[0].arch", "did you mean 'hrnet_ocr_mscale'?"),
    "arch far": (15, "arch: vit", "models[0].arch", "known: hrnet_ocr_mscale, "),
    "arch missing": (15, "# none", "models[0].arch", "is missing", 13),
    "checkpoint missing": (
        16,
        "# none",
        "models[0].checkpoint",
        "'hrnet_ocr_mscale' needs a file of weights",
        13,
    ),
    "checkpoint null": (16, "checkpoint: null", "models[0].checkpoint", "needs a file of weights"),
    "checkpoint empty": (16, "checkpoint: ''", "models[0].checkpoint", "a path is needed"),
    "checkpoint list": (16, "checkpoint: [a]", "models[0].checkpoint", "a path is needed, not a list"),
    "checkpoint open": (16, "checkpoint: ${HMSA_ASSETS/a", "models[0].checkpoint", "'${' begins no variable"),
    "checkpoint blank": (16, "checkpoint: ${}/a", "models[0].checkpoint", "write ${NAME}"),
    "checkpoint default": (16, "checkpoint: ${A:-b}/a", "models[0].checkpoint", "write ${NAME}"),
    "checkpoint bare": (
        16,
        "checkpoint: $HMSA_ASSETS/a",
        "models[0].checkpoint",
        "write ${HMSA_ASSETS} with braces",
    ),
    "checkpoint misspelt": (16, "chekpoint: a", "models[0].chekpoint", "did you mean 'checkpoint'?"),
    "sha256 short": (17, f"sha256: {'a' * 63}", "models[0].sha256", "64 hexadecimal digits are needed"),
    "sha256 no hex": (17, f"sha256: {'g' * 64}", "models[0].sha256", "64 hexadecimal digits are needed"),
    "sha256 number": (17, f"sha256: {'1' * 64}", "models[0].sha256", "put it in quotes"),
    "weight negative": (18, "weight: -0.1", "models[0].weight", "must be 0 or more, not -0.1"),
    "weight nan": (18, "weight: .nan", "models[0].weight", "a finite number is needed"),
    "weight inf": (18, "weight: .inf", "models[0].weight", "a finite number is needed"),
    "weight true": (18, "weight: yes", "models[0].weight", "a number is needed, not true"),
    "weight null": (18, "weight:", "models[0].weight", "a number is needed, not nothing"),
    "temperature zero": (19, "temperature: 0", "models[0].temperature", "must be above 0, not 0"),
    "temperature inf": (19, "temperature: .inf", "models[0].temperature", "a finite number is needed"),
    "temperature text": (19, "temperature: '2'", "models[0].temperature", "not the text '2'; write 2.0"),
    "external with checkpoint": (
        21,
        "arch: external\n    checkpoint: a",
        "models[1].checkpoint",
        "remove this",
        22,
    ),
    "external with sha256": (
        21,
        f"arch: external\n    sha256: {'a' * 64}",
        "models[1].sha256",
        "remove this",
        22,
    ),
    "model a text": (
        20,
        "second\n  - name: b",
        "models[1]",
        "a mapping (key: value) is needed, not the text",
    ),
    "datasets a mapping": (22, "datasets: {name: a}\nx: # ", "datasets", "begin each entry with '- '"),
    "datasets empty": (22, "datasets: []\nx: # ", "datasets", "at least one is needed"),
    "type unknown": (24, "type: citiscapes", "datasets[0].type", "did you mean 'cityscapes'?"),
    "type far": (24, "type: zzz", "datasets[0].type", "known: "),
    "root missing": (25, "# none", "datasets[0].root", "is missing", 23),
    "root open": (25, "root: ${", "datasets[0].root", "'${' begins no variable"),
    "split number": (26, "split: 2017", "datasets[0].split", "put it in quotes"),
    "duplicate key": (
        6,
        "precision: fp16\n  flip: true",
        "inference.flip",
        "given twice, first on line 5",
        7,
    ),
    "duplicate key in a list": (14, "name: x", "models[0].name", "given twice, first on line 13"),
    "tag": (13, "name: !!python/object:os.system x", "models[0].name", "the tag"),
    "binary tag": (13, "name: !!binary aGk=", "models[0].name", "the tag"),
    "mapping tag": (3, "inference: !settings", "inference", "the tag !settings"),
    "not an int": (18, "weight: !!int x", "models[0].weight", "cannot read 'x' as int"),
    "too many digits": (18, f"weight: {'1' * 5000}", "models[0].weight", "cannot read '111"),
    "key a list": (2, "[a, b]: c", "", "a key must be one word"),
    "tab": (5, "\tflip: true", "", "indent with spaces, not tabs"),
    "no colon": (5, "flip", "", "begun on line 5: could not find expected ':'", 6),
    "variable in braces": (20, "{name: b, checkpoint: ${A}/b}", "", "put ${...} in quotes between braces"),
    "bracket": (4, "scales: [1.0", "", "not valid YAML: while parsing a flow sequence begun on line 4", 5),
    "anchor unknown": (4, "scales: *those", "", "not valid YAML: found undefined alias 'those'"),
    "control character": (2, "output: a\x07", "", "not valid YAML: the character #x0007 is not allowed"),
    "two documents": (22, "---\ndatasets:", "", "not valid YAML"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_is_refused_by_file_line_and_field(case: str) -> None:
    line, text, field, hint, *shown_at = WRONG[case]
    message = refusal(write(replaced(line, text)))
    assert message.startswith(f"m.yaml:{(shown_at or [line])[0]}: {field}{':' if field else ''}"), message
    assert hint in message, message
    assert len(message) < 400


PLACES = [
    (Manifest, 2, ""),
    (InferenceOptions, 4, "inference."),
    (StoreSettings, 8, "store."),
    (FusionFunctions, 10, "ensemble."),
    (Member, 14, "models[0]."),
    (DatasetEntry, 24, "datasets[0]."),
]


@pytest.mark.parametrize(
    ("line", "where", "key"),
    [(line, where, key) for model, line, where in PLACES for key in model.model_fields],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(line: int, where: str, key: str) -> None:
    lines: list[str] = [*GOOD.splitlines()]
    indent = " " * (len(lines[line - 1]) - len(lines[line - 1].lstrip()))
    lines.insert(line - 1, f"{indent}{key}x: 1")
    expected = f"m.yaml:{line}: {where}{key}x: unknown key; did you mean '{key}'?"
    assert refusal(write("\n".join(lines))) == expected


@pytest.mark.parametrize(
    ("ensemble", "ok"),
    [
        ({}, True),
        ({"label": "max-softmax"}, False),
        ({"label": "min-softmax"}, False),
        ({"label": "mean-logit"}, True),
        ({"confidence": "min-softmax"}, False),
        ({"confidence": "mean-logit"}, True),
        ({"confidence": "entropy"}, True),
        ({"confidence": "energy"}, True),
        ({"confidence": "rba"}, True),
    ],
)
def test_weights_are_refused_with_a_maximum_or_minimum(ensemble: dict[str, str], ok: bool) -> None:
    even = write(GOOD)
    uneven = write(GOOD.replace("weight: 1.0", "weight: 0.5"), "uneven.yaml")
    assert load_manifest(even, overrides={"ensemble": ensemble}).models[0].weight == 1.0
    if ok:
        assert load_manifest(uneven, overrides={"ensemble": ensemble}).models[0].weight == 0.5
    else:
        (key, name), *_ = ensemble.items()
        message = refusal(uneven, overrides={"ensemble": ensemble})
        assert message.startswith(f"uneven.yaml:18: models[0].weight: 0.5 means nothing to ensemble.{key} {name};")


def test_weights_that_are_all_zero_are_refused() -> None:
    text = GOOD.replace("weight: 1.0", "weight: 0").replace("arch: external", "arch: external\n    weight: 0.0")
    assert refusal(write(text)).startswith("m.yaml:18: models[0].weight: all weights are 0")


def test_dataset_names_are_unique_too() -> None:
    text = GOOD + "  - {name: PHOTOS, type: folder, root: other}\n"
    assert refusal(write(text)).startswith("m.yaml:27: datasets[1].name: 'PHOTOS' is also the name of datasets[0]")


@settings(deadline=None)
@given(count=st.integers(1, 12))
def test_several_problems_stand_in_one_line_and_the_rest_is_counted(folder: Path, count: int) -> None:
    models = "".join(f"  - {{name: m{i}, arch: external, weight: -1}}\n" for i in range(count))
    path = folder / "many.yaml"
    path.write_text(GOOD.replace("datasets:\n", models + "datasets:\n"), encoding="utf-8")
    message = refusal(path)
    shown = min(count, PROBLEMS_SHOWN)
    problems = message.removeprefix(f"{path}:").split("; ")
    assert problems[:shown] == [
        f"{'line ' if i else ''}{22 + i}: models[{2 + i}].weight: must be 0 or more, not -1" for i in range(shown)
    ]
    left = {0: [], 1: ["and 1 more problem"]}.get(count - shown, [f"and {count - shown} more problems"])
    assert problems[shown:] == left


def test_problems_stand_in_the_order_of_the_file() -> None:
    text = "datasets: 3\nversion: 9\nmodels: 4\noutput: o\n"
    message = refusal(write(text))
    assert message == (
        "m.yaml:1: datasets: a list is needed, not the number 3; "
        "line 2: version: this release reads version 1, not the number 9; "
        "line 3: models: a list is needed, not the number 4"
    )


FILES = {
    "empty": (b"", "m.yaml: the file is empty"),
    "only comments": (b"# nothing\n\n", "m.yaml: the file is empty"),
    "a list": (b"\n- 1\n", "m.yaml:2: a mapping (key: value) is needed, not a list"),
    "a word": (b"hello", "m.yaml:1: a mapping (key: value) is needed, not the text 'hello'"),
    "null": (b"~", "m.yaml: the file is empty"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "m.yaml: is a binary file"),
    "utf-16": (GOOD.encode("utf-16"), "m.yaml: is a binary file"),
    "cut short": (
        b"version: 1\noutput: {a: ${b}\n",
        "m.yaml:2: not valid YAML: while parsing a flow mapping",
    ),
    "latin-1": (GOOD.replace("here", "h\xe9re").encode("latin-1"), "m.yaml:14: is not UTF-8 (byte 0xe9)"),
    "large": (b"#" * (MAX_BYTES + 1), "m.yaml: is larger than 1 MiB"),
    "deep": (b"a: " + b"[" * 3000, "m.yaml: nested too deeply"),
    "itself": (b"a: &a [*a]", "m.yaml: nested too deeply, or a value that contains itself"),
    "bomb": (
        b"a0: &a0 [1]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b"*a%d, " % (i - 1) * 9) for i in range(1, 12)),
        "more than 50,000 values",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_wrong_file_is_refused(case: str) -> None:
    data, hint = FILES[case]
    Path("m.yaml").write_bytes(data)
    assert hint in refusal("m.yaml")


def test_a_folder_is_refused() -> None:
    Path("runs").mkdir()
    assert refusal("runs") == "runs: is a folder; name the YAML file in it"
    assert "is a folder" in refusal("")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused() -> None:
    write(GOOD).chmod(0)
    assert refusal("m.yaml") == "m.yaml: cannot be read: Permission denied"


@pytest.mark.parametrize("source", ["n" * 300, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(source: str) -> None:
    assert "cannot be read" in refusal(source) or "no such manifest" in refusal(source)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("manifests")


LINES = GOOD.splitlines()
SNIPPETS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["- ", "? ", "{", "[", "]", "}", "&a ", "*a", "!!", "|", ">", "<<: *a", "\t", "%YAML 1.1", "---"]
    ),
    st.from_regex(r"\s*(- )?[a-z]+: ?(\{|\[|\"|\$\{)?[-+.0-9a-z:]*(\}|\])?", fullmatch=True),
)


@settings(deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, len(LINES) - 1), st.integers(0, 30), SNIPPETS), max_size=3))
@example(edits=[(13, 12, "\x85")])
@example(edits=[(12, 10, "? [a]\n: b")])
def test_whatever_stands_in_a_manifest_it_is_read_or_refused_in_one_line(
    folder: Path, edits: list[tuple[int, int, str]]
) -> None:
    lines: list[str] = list(LINES)
    for line, column, snippet in edits:
        lines[line] = lines[line][:column] + snippet + lines[line][column + len(snippet) // 2 :]
    path = folder / "edited.yaml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass", newline="")
    try:
        load_manifest(path)
    except ManifestError as error:
        assert str(error).isprintable()
        assert str(error).startswith(f"{path}:")


@settings(deadline=None)
@given(data=st.binary(max_size=60))
def test_whatever_bytes_a_file_has_it_is_refused_in_one_line(folder: Path, data: bytes) -> None:
    (folder / "bytes.yaml").write_bytes(data)
    assert refusal(folder / "bytes.yaml").startswith(f"{folder / 'bytes.yaml'}:")
