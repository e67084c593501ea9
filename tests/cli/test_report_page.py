"""The report's page in a browser, opened from the disk."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .bench import Bench
from .test_evaluate import odd, scored
from .test_report import NAME, Page, figures, values

__all__ = ["odd", "scored"]

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(scored: Bench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a labelled dataset and of one without, whose only image has a nasty name."""
    bench = scored.copy(tmp_path_factory.mktemp("page") / "bench")
    shutil.rmtree(bench.root / "photos" / "garden")
    bench.photo(f"garden/{NAME}", seed=1)
    bench.tree["datasets"].append({"name": "garden", "type": "folder", "root": "photos/garden"})
    bench.save()
    assert (bench.run("dump").code, bench.run("ensemble").code) == (0, 0)
    assert bench.run("report", "--write", str(bench.root / "report")).code == 0
    return bench.root / "report"


class Opened:
    """A page, and all that it complained about."""

    def __init__(self, browser: Any, folder: Path, width: int = 1400, height: int = 900, **options: Any) -> None:
        self.complaints: list[str] = []
        self.page = browser.new_context(
            offline=True, viewport={"width": width, "height": height}, **options
        ).new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda request: self.complaints.append(request.url))
        self.page.goto((folder / "index.html").as_uri())

    def names(self) -> list[str]:
        """The images in the gallery, in its order."""
        return [button.get_attribute("title") for button in self.page.locator("#thumbs button").all()]

    @property
    def shown(self) -> str:
        return self.page.locator("#thumbs [aria-current]").get_attribute("title")


@pytest.fixture
def opened(browser: Any, folder: Path) -> Iterator[Opened]:
    opened = Opened(browser, folder)
    yield opened
    assert opened.complaints == []
    opened.page.context.close()


def test_pictures_and_plots_are_there(opened: Opened) -> None:
    opened.page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    for image in opened.page.locator("img").all():
        image.scroll_into_view_if_needed()
        opened.page.wait_for_function("image => image.complete", arg=image.element_handle())
        assert image.evaluate("image => image.naturalWidth") > 0, image.get_attribute("src")
    assert opened.page.title() == "hmsa-pipeline: report"


def test_the_worst_stand_first(opened: Opened, folder: Path) -> None:
    city, garden = figures(folder)
    worst = sorted(city["by_image"], key=lambda image: -city["by_image"][image]["wrong"])
    assert opened.names() == [*(f"city: {name}" for name in worst), f"garden: {NAME}"]
    assert opened.shown == f"city: {worst[0]}"
    for order, key in (
        ("information", lambda one: -one["information"]),
        ("confidence", lambda one: one["confidence"]),
    ):
        opened.page.locator("#order").select_option(order)
        every = {f"city: {k}": v for k, v in city["by_image"].items()}
        every |= {f"garden: {k}": v for k, v in garden["by_image"].items()}
        assert opened.names() == sorted(every, key=lambda name: key(every[name]))
    opened.page.locator("#order").select_option("name")
    assert opened.names() == [*(f"city: {name}" for name in sorted(city["by_image"])), f"garden: {NAME}"]


def test_the_slider_uncovers_the_photograph(opened: Opened) -> None:
    layer = opened.page.locator("#layer")
    assert "50%" in layer.evaluate("layer => layer.style.clipPath")
    opened.page.locator("#slider").fill("20")
    assert "20%" in layer.evaluate("layer => layer.style.clipPath")
    assert opened.page.locator("#edge").evaluate("edge => edge.style.left") == "20%"
    opened.page.locator("#slider").focus()
    opened.page.keyboard.press("ArrowRight")
    assert "21%" in layer.evaluate("layer => layer.style.clipPath")
    # What is seen changes with it: left of the edge lies the photograph, right of it the layer.
    opened.page.locator("#opacity").fill("100")
    stage = opened.page.locator("#stage")
    opened.page.locator("#slider").fill("0")
    covered = stage.screenshot()
    opened.page.locator("#slider").fill("100")
    assert stage.screenshot() != covered


def test_filters(opened: Opened, folder: Path) -> None:
    cards = Page(folder).data["images"]
    opened.page.locator("#dataset").select_option("garden")
    assert opened.names() == [f"garden: {NAME}"]
    assert opened.page.locator("#count").inner_text() == "1 of 4 images"
    opened.page.locator("#dataset").select_option("")
    held = {number: [c for c in cards if number in c["classes"]] for number in range(19)}
    number = min((n for n in held if 0 < len(held[n]) < 4), key=lambda n: len(held[n]), default=None)
    assert number is not None
    opened.page.locator("#class").select_option(str(number))
    assert set(opened.names()) == {f"{c['dataset']}: {c['name']}" for c in held[number]}
    opened.page.locator("#class").select_option("")
    opened.page.locator("#search").fill("ALERT")
    assert opened.names() == [f"garden: {NAME}"]
    opened.page.locator("#search").fill("nowhere")
    assert opened.names() == []
    assert not opened.page.locator("#viewer").is_visible()
    opened.page.locator("#search").fill("")
    assert len(opened.names()) == 4
    assert opened.page.locator("#viewer").is_visible()


def test_keys_and_buttons_go_from_image_to_image(opened: Opened) -> None:
    names = opened.names()
    for name in [*names[1:], names[0], names[1]]:
        opened.page.keyboard.press("ArrowRight")
        assert opened.shown == name
    opened.page.keyboard.press("ArrowLeft")
    assert opened.shown == names[0]
    opened.page.locator("#previous").click()
    assert opened.shown == names[-1]
    opened.page.locator("#next").click()
    assert opened.shown == names[0]
    opened.page.locator("#thumbs button").nth(2).click()
    assert opened.shown == names[2]
    opened.page.locator("#search").focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.shown == names[2], "in a text field they move the cursor"


def test_values_where_one_points(opened: Opened, folder: Path) -> None:
    card = next(c for c in Page(folder).data["images"] if f"{c['dataset']}: {c['name']}" == opened.shown)
    grids = values(folder, card["key"])
    classes = Page(folder).data["classes"]
    stage = opened.page.locator("#stage")
    stage.scroll_into_view_if_needed()
    opened.page.wait_for_timeout(300)  # its values come as a script
    box = stage.bounding_box()
    height, width = grids["prediction"].shape
    seen = set()
    for y, x in ((3, 5), (height // 2, width // 2), (height - 2, width - 3)):
        stage.hover(position={"x": (x + 0.5) * box["width"] / width, "y": (y + 0.5) * box["height"] / height})
        said = opened.page.locator("#values").inner_text().split(" · ")
        assert said[0] == classes[grids["prediction"][y, x]]
        assert said[1] == f"confidence {grids['confidence'][y, x] / 255:.2f}"
        assert said[2] == f"disagreement {grids['disagreement'][y, x] / 100:.2f} nats"
        known = grids["truth"][y, x]
        right = "right" if known == grids["prediction"][y, x] else "wrong: labelled"
        assert said[3].startswith("no label" if known == 255 else right)
        seen.add(said[3])
    assert seen


def test_layers(opened: Opened) -> None:
    labels = opened.page.locator("#layers label")
    names = ["Prediction", "Confidence", "Disagreement", "Errors", "Labels"]
    assert [text.strip() for text in labels.all_inner_texts()] == names
    for name in names:
        labels.get_by_text(name).click()
        layer = opened.page.locator("#layer")
        opened.page.wait_for_function("layer => layer.complete && layer.naturalWidth", arg=layer.element_handle())
        assert layer.get_attribute("alt") == name
        assert opened.page.locator("#over").inner_text() == name.lower()
        assert opened.page.locator("#scale").is_visible() == (name in names[1:4])
    # The image without labels has none of their layers; what was looked at last is kept where it is there.
    opened.page.locator("#dataset").select_option("garden")
    assert [text.strip() for text in labels.all_inner_texts()] == names[:3]
    assert opened.page.locator("#layer").get_attribute("alt") == "Prediction"


def test_links_show_their_image_in_the_gallery(opened: Opened, folder: Path) -> None:
    chosen = json.loads((folder / "report.json").read_text())["story"]
    opened.page.locator("#dataset").select_option("garden")
    opened.page.get_by_text("Look closer").click()
    assert opened.shown == f"{chosen['dataset']}: {chosen['image']}"
    assert opened.page.locator("#dataset").input_value() == ""
    worst = opened.page.locator("#worst a").last
    opened.page.locator("#search").fill("nothing is named so")
    worst.click()
    assert opened.shown == worst.get_attribute("title")
    assert opened.page.locator("#layers input:checked").input_value() == "errors"
    assert "errors.png" in opened.page.locator("#layer").get_attribute("src")


def test_tables_open_in_their_place(opened: Opened) -> None:
    table = opened.page.locator("#summary .folds table").first
    assert not table.is_visible()
    opened.page.locator("#summary .folds summary").first.click()
    assert table.is_visible()
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 1400


def test_on_a_phone(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder, 400, 800, has_touch=True, is_mobile=True)
    opened.page.wait_for_timeout(300)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    opened.page.locator("#stage").tap(position={"x": 100, "y": 40})
    assert "confidence" in opened.page.locator("#values").inner_text()
    assert opened.complaints == []
    opened.page.context.close()


def test_what_is_out_of_distribution(browser: Any, odd: Bench, tmp_path: Path) -> None:
    assert odd.run("report", "--write", str(tmp_path / "r"), "--no-members").code == 0
    opened = Opened(browser, tmp_path / "r")
    opened.page.locator("#layers label").get_by_text("Out of distribution").click()
    assert opened.page.locator("#scale").inner_text().split("\n")[0] == "out of distribution"
    assert "FPR" in opened.page.locator("#thumbs button").first.inner_text()
    assert "test0" in opened.names()[-1], "where nobody knows, it stands last"
    assert opened.complaints == []
    opened.page.context.close()


def test_many_images_are_loaded_when_they_are_looked_at(browser: Any, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "r")
    page = Page(folder)
    many = [{**page.data["images"][0], "name": f"{number:04}.png"} for number in range(500)]
    html = re.sub(
        r'(<script type="application/json" id="images">).*?(</script>)',
        lambda found: found[1] + json.dumps(many) + found[2],
        page.html,
        flags=re.DOTALL,
    )
    # Each its own file, else one picture would do for all.
    script = (folder / "report.js").read_text().replace("/thumb.jpg`", "/thumb.jpg?${image.name}`")
    (tmp_path / "r" / "index.html").write_text(html)
    (tmp_path / "r" / "report.js").write_text(script)
    opened = Opened(browser, tmp_path / "r")
    opened.page.wait_for_timeout(500)
    loaded = "[...document.querySelectorAll('#thumbs img')].filter(i => i.complete && i.naturalWidth).length"
    assert len(opened.names()) == 500
    assert opened.page.evaluate(loaded) < 250
    opened.page.locator("#search").fill("0499")
    assert opened.names() == ["city: 0499.png"]
    opened.page.locator("#thumbs img").scroll_into_view_if_needed()
    opened.page.wait_for_function(f"{loaded} === 1")
    assert opened.complaints == []
    opened.page.context.close()
