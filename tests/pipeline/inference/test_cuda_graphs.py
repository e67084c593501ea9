"""Which images run by a CUDA graph, and what happens where that fails; a recorder takes the place of CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hmsa_pipeline.models.checkpoint import save_checkpoint
from hmsa_pipeline.models.registry import build
from hmsa_pipeline.pipeline.config.member import Member
from hmsa_pipeline.pipeline.config.member_inference import InferenceOptions, Tile
from hmsa_pipeline.pipeline.inference import cuda_graphs, predictor
from hmsa_pipeline.pipeline.inference.cuda_graphs import GraphForward, release_graphs
from hmsa_pipeline.pipeline.inference.predictor import IN_TILES, SCALE_BY_SCALE, WITHOUT_COMPILE, Predictor
from torch import Tensor

SCALES = (0.5, 1.0)
TINY = "hrnet_tiny_ocr_mscale"
IMAGE = torch.randint(0, 256, (3, 32, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Recorder:
    """A capture that runs what it captured, and lists what was done by image width."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replayed: list[int] = []
        self.error: Exception | None = None
        self.shift = 0.0

    def __call__(self, work: Callable[[Tensor], Tensor], pixels: Tensor) -> Callable[[Tensor], Tensor]:
        if self.error is not None:
            raise self.error
        self.captured.append(pixels.shape[-1])

        def replay(images: Tensor) -> Tensor:
            self.replayed.append(images.shape[-1])
            return work(images) + self.shift if self.shift else work(images)

        return replay


@pytest.fixture(autouse=True)
def _no_graphs_left() -> Iterator[None]:
    yield
    release_graphs()


def pixels(width: int, seed: int = 0) -> Tensor:
    return torch.randn(1, 3, 4, width, generator=torch.Generator().manual_seed(seed))


class Forward:
    """A `GraphForward` of something simple, with what it did and said."""

    def __init__(self, most: int = 8) -> None:
        self.ran: list[int] = []
        self.said: list[str] = []
        self.recorder = Recorder()
        self.forward = GraphForward(self.work, self.said.append, capture=self.recorder, most=most)

    def work(self, images: Tensor) -> Tensor:
        self.ran.append(images.shape[-1])
        return images * 2

    def __call__(self, *widths: int) -> None:
        for seed, width in enumerate(widths):
            assert torch.equal(self.forward(pixels(width, seed)), pixels(width, seed) * 2)


def test_the_first_of_a_size_runs_the_second_is_captured_and_all_others_are_replayed() -> None:
    one = Forward()
    one(96)
    assert (one.recorder.captured, one.recorder.replayed) == ([], [])
    one(96)
    assert (one.recorder.captured, one.recorder.replayed) == ([96], [96])  # the replay that is compared
    one(96, 96, 96)
    assert (one.recorder.captured, one.recorder.replayed) == ([96], [96] * 4)
    assert one.said == []


def test_sizes_have_graphs_of_their_own() -> None:
    one = Forward()
    one(96, 64, 64, 96, 80)
    assert one.recorder.captured == [64, 96]
    one(64, 96, 80)
    assert one.recorder.captured == [64, 96, 80]


def test_the_graph_that_was_not_used_for_longest_goes() -> None:
    one = Forward(most=2)
    one(1, 1, 2, 2)
    one(1)  # 2 is now the one not used for longest
    one(3, 3)
    assert one.recorder.captured == [1, 2, 3]
    before = len(one.recorder.replayed)
    one(1, 3)
    assert one.recorder.replayed[before:] == [1, 3]
    one(2)  # seen afresh: the first of its size again
    assert one.recorder.captured == [1, 2, 3]
    one(2)
    assert one.recorder.captured == [1, 2, 3, 2]
    assert len(one.forward._graphs) == 2


def test_after_an_error_all_run_without_graphs_and_it_is_said_once() -> None:
    one = Forward()
    one(64, 64)
    one.recorder.error = RuntimeError("\noperation not permitted when stream is capturing\nand more")
    one(96, 96, 96, 80, 80, 64)
    assert one.said == [
        "cuda_graphs: cannot be used (RuntimeError: operation not permitted when stream is capturing); "
        "images run without them"
    ]
    assert one.recorder.captured == [64]
    assert one.recorder.replayed == [64]


def test_a_graph_that_gives_other_bits_is_not_used() -> None:
    one = Forward()
    one.recorder.shift = 1e-6
    one(96, 96, 96)
    assert one.recorder.replayed == [96]
    assert one.said == [
        "cuda_graphs: cannot be used (a replay gave other logits than the pass that was captured); "
        "images run without them"
    ]


def test_logits_that_are_no_numbers_are_the_same_bits_too() -> None:
    recorder, said = Recorder(), []
    forward = GraphForward(lambda images: images * float("nan"), said.append, capture=recorder)
    for _ in range(3):
        assert forward(pixels(8)).isnan().all()
    assert (recorder.captured, said) == ([8], [])


@pytest.mark.parametrize("hidden", [False, True])
def test_a_size_for_whose_graph_there_is_no_memory_runs_without_one(hidden: bool) -> None:
    one = Forward()
    one.recorder.error = torch.OutOfMemoryError("CUDA out of memory")
    if hidden:  # the end of a capture raises another error while that one is under way
        one.recorder.error = RuntimeError("capture was invalidated")
        one.recorder.error.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    one(96, 96, 96)
    assert one.said == ["cuda_graphs: no memory for a graph of 4x96; such images run without one"]
    one.recorder.error = None
    one(96, 64, 64, 64)
    assert one.recorder.captured == [64]


def test_what_the_work_itself_raises_is_not_swallowed() -> None:
    def fails(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    said: list[str] = []
    forward = GraphForward(fails, said.append, capture=Recorder())
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            forward(pixels(8))
    assert said == []


def test_graphs_that_were_cleared_are_captured_again() -> None:
    one = Forward()
    one(96, 96)
    assert one.forward.clear()
    assert not one.forward.clear()
    one(96, 96)
    assert one.recorder.captured == [96, 96]


def test_the_graphs_of_all_networks_can_be_released() -> None:
    one, other = Forward(), Forward()
    one(96, 96)
    other(64, 64)
    assert release_graphs()
    assert not release_graphs()


# ------------------------------------------------------------------ in a predictor


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Member]:
    found = []
    for seed, name in enumerate(("ant", "bee")):
        path = tmp_path_factory.mktemp("weights") / f"{name}.pth"
        torch.manual_seed(seed)
        save_checkpoint(path, build(TINY), arch=TINY)
        found.append(Member(name=name, arch=TINY, checkpoint=str(path)))
    return found


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    one = Recorder()
    monkeypatch.setattr(cuda_graphs, "capture_graph", one)
    return one


def made(member: Member, tile: Tile | None = None, **more: object) -> Predictor:
    options = InferenceOptions(precision="fp32", scales=SCALES, tile=tile, **more)  # type: ignore[arg-type]
    return Predictor(torch.device("cpu"), options, member)


def test_off_unless_asked_for(members: list[Member], recorder: Recorder) -> None:
    one = made(members[0])
    for _ in range(3):
        one(IMAGE)
    assert recorder.captured == []


def test_a_predictor_with_graphs_gives_the_same_bits(members: list[Member], recorder: Recorder) -> None:
    expected, _ = made(members[0])(IMAGE)
    one = made(members[0], cuda_graphs=True)
    for _ in range(3):
        logits, how = one(IMAGE)
        assert how is None
        assert logits.dtype == torch.float16
        assert torch.equal(logits, expected)
    assert recorder.captured == [96]
    assert recorder.replayed == [96, 96]
    assert one.take_notes() == []


def test_weights_that_move_take_the_graphs_with_them(members: list[Member], recorder: Recorder) -> None:
    one = made(members[0], cuda_graphs=True)
    one(IMAGE)
    one(IMAGE)
    one.move_to(torch.device("cpu"))
    expected, _ = made(members[0])(IMAGE)
    replayed = len(recorder.replayed)
    assert torch.equal(one(IMAGE)[0], expected)
    assert len(recorder.replayed) == replayed
    one(IMAGE)
    assert recorder.captured == [96, 96]


def test_an_error_in_a_capture_is_said_once(members: list[Member], recorder: Recorder) -> None:
    expected, _ = made(members[0])(IMAGE)
    recorder.error = RuntimeError("no capture today")
    one = made(members[0], cuda_graphs=True)
    for _ in range(4):
        assert torch.equal(one(IMAGE)[0], expected)
    assert one.take_notes() == [
        "cuda_graphs: cannot be used (RuntimeError: no capture today); images run without them"
    ]
    assert one.take_notes() == []


def test_graphs_make_room_for_an_image_that_does_not_fit(
    members: list[Member], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever network they are of; and the image is then made at once, as it would be without graphs."""
    other, one = made(members[1], cuda_graphs=True), made(members[0], cuda_graphs=True)
    large = torch.zeros(3, 80, 128, dtype=torch.uint8)
    expected, _ = made(members[0])(large)
    other(IMAGE)
    other(IMAGE)
    predict = Predictor.predict_scales

    def full_of_graphs(self: Predictor, pixels: Tensor, gather: torch.device | None) -> Tensor:
        if any(forward._graphs for forward in GraphForward._alive) and pixels.shape[-1] == 128:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, pixels, gather)

    monkeypatch.setattr(predictor.Predictor, "predict_scales", full_of_graphs)
    logits, how = one(large)
    assert how is None
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(("tile", "way"), [(None, SCALE_BY_SCALE), (Tile(size=(32, 64), overlap=16), IN_TILES)])
def test_what_fits_in_no_way_at_once_is_made_in_parts(
    members: list[Member], recorder: Recorder, monkeypatch: pytest.MonkeyPatch, tile: Tile | None, way: str
) -> None:
    expected, how = _with_little_memory(monkeypatch, made(members[0], tile), tile)
    assert how == way
    one = made(members[0], tile, cuda_graphs=True)
    for _ in range(3):
        logits, how = _with_little_memory(monkeypatch, one, tile)
        assert how == way
        assert torch.equal(logits, expected)
    assert recorder.captured == []


def _with_little_memory(
    monkeypatch: pytest.MonkeyPatch, one: Predictor, tile: Tile | None
) -> tuple[Tensor, str | None]:
    predict = Predictor.predict_scales

    def little(self: Predictor, pixels: Tensor, gather: torch.device | None) -> Tensor:
        if gather is None or (tile and pixels.shape[-1] > tile.size[1]):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, pixels, gather)

    with monkeypatch.context() as patch:
        patch.setattr(predictor.Predictor, "predict_scales", little)
        return one(IMAGE)


# ------------------------------------------------------------------ compiled


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts are handed to torch.compile's front end and run as they are; the modes that were asked for."""
    modes: list[str] = []
    compile_regions = predictor.compile_regions

    def plainly(model: object, mode: str) -> None:
        modes.append(mode)
        compile_regions(model, mode, backend="eager")  # type: ignore[arg-type]

    monkeypatch.setattr(predictor, "compile_regions", plainly)
    return modes


def test_nothing_is_compiled_unless_asked_for(members: list[Member], compiled: list[str]) -> None:
    made(members[0])(IMAGE)
    assert compiled == []


def test_a_compiled_network_says_the_same(
    members: list[Member], compiled: list[str], recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SCALES", (1.0,))  # a part is traced for each size
    expected, _ = made(members[0])(IMAGE)
    one = made(members[0], compile="max-autotune-no-cudagraphs", cuda_graphs=True)
    for _ in range(3):
        logits, how = one(IMAGE)
        assert how is None
        torch.testing.assert_close(logits, expected, atol=2e-3, rtol=0)
    assert compiled == ["max-autotune-no-cudagraphs"]
    assert recorder.captured == [96]


def test_a_network_that_cannot_be_compiled_runs_as_it_is(
    members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        raise RuntimeError("Failed to find C++ compiler.\nPlease specify one via CXX environment variable.")

    compile_regions = predictor.compile_regions
    monkeypatch.setattr(predictor, "compile_regions", lambda model, mode: compile_regions(model, mode, no_compiler))
    expected, _ = made(members[0])(IMAGE)
    one = made(members[0], compile="default")
    for _ in range(2):
        logits, how = one(IMAGE)
        assert how == WITHOUT_COMPILE
        assert torch.equal(logits, expected)
    (line,) = one.take_notes()
    assert line.startswith("compile: failed (")
    assert "Failed to find C++ compiler" in line
    assert line.endswith("; images are made without it, run.json lists them")
    # The next network tries for itself.
    assert made(members[1], compile="default").is_compiled


def test_a_lack_of_memory_is_no_failure_of_the_compiler(
    members: list[Member], compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SCALES", (1.0,))
    one = made(members[0], compile="default")
    _, how = _with_little_memory(monkeypatch, one, None)
    assert how == SCALE_BY_SCALE
    assert one.is_compiled
    assert one.take_notes() == []
