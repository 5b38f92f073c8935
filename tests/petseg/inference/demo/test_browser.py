"""The demo's page in a real browser: what it shows is what petseg.load(...).predict gives, by mouse and by keyboard."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import petseg
from petseg.inference.predictor import Prediction
from tests.browsers import chromium
from tests.petseg.inference.demo.conftest import Client

DESK, PHONE = (1440, 900), (390, 844)
PIXELS = """image => {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png").split(",")[1];
}"""
HOSTILE = "<img src=x onerror=alert(1)>.png"

pytestmark = pytest.mark.slow
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def open_page(browser: Any, client: Client) -> Iterator[Open]:
    """open_page(size, scheme): the page in a tab of its own, which must ask no other host and say nothing."""
    requests: list[str] = []
    troubles: list[str] = []
    contexts = []

    def open_one(size: tuple[int, int] = DESK, scheme: str = "light") -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, reduced_motion="reduce"
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.goto(client.server.url)
        return tab

    yield open_one
    for context in contexts:
        context.close()
    # a browser says of each answer that is an error that it is one
    assert [text for text in troubles if "the server responded with a status of 422" not in text] == []
    home = f"http://127.0.0.1:{client.server.server_port}/"
    assert all(url.startswith((home, "blob:", "data:")) for url in requests)


@pytest.fixture(scope="module")
def photo(pets_root: Path) -> bytes:
    """A real picture, as a file without losses."""
    with Image.open(sorted((pets_root / "images").glob("*.jpg"))[0]) as image:
        image.thumbnail((300, 300))
        return as_file(image.convert("RGB"))


def as_file(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def give(tab: Any, *named: tuple[str, bytes]) -> None:
    """Choose files, and wait until their cards are done."""
    tab.set_input_files("#files", [{"name": name, "mimeType": "image/png", "buffer": data} for name, data in named])
    wait_done(tab)


def wait_done(tab: Any) -> None:
    """The page's policy forbids what evaluates text, and so playwright's wait_for_function."""
    expect(tab.locator("#status")).to_have_text(re.compile(r"^(?!.* of ).*pictures?$"), timeout=60_000)


def wait_view(tab: Any, view: str) -> None:
    of_class = r"( of class \w+)" + ("?" if view == "cut-out" else "" if view == "probability" else "{0}")
    alt = re.compile(rf"^{view}{of_class} of rex\.png by pets\.safetensors$")
    expect(tab.locator("figure img")).to_have_attribute("alt", alt)


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as playwright_expect

    return playwright_expect(locator)


def shown(side: Any) -> NDArray[np.uint8]:
    """The pixels (H, W, 3) of the picture that is shown."""
    image = side.locator("img")
    image.wait_for(state="visible")
    content = base64.b64decode(image.evaluate(PIXELS))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def view_by(tab: Any, name: str) -> None:
    tab.get_by_role("radio", name=name, exact=True).click()
    wait_view(tab, name.lower())


def wanted(files: list[Path], number: int, photo: bytes) -> Prediction:
    return petseg.load(files[number], device="cpu").predict(np.asarray(Image.open(io.BytesIO(photo))))


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_each_view_is_that_of_the_prediction(open_page: Open, files: list[Path], photo: bytes, size: Any) -> None:
    tab, right = open_page(size), wanted(files, 0, photo)
    give(tab, ("rex.png", photo))
    figure = tab.locator("figure")
    assert tab.locator("article h2").text_content() == "rex.png"
    assert np.array_equal(shown(figure), np.asarray(right.overlay()))
    view_by(tab, "Picture")
    assert np.array_equal(shown(figure), right.image)
    view_by(tab, "Mask")
    assert np.array_equal(shown(figure), np.asarray(right.as_image().convert("RGB")))
    view_by(tab, "Probability")
    select = tab.locator(".which select")
    for name in ("cat", "dog"):
        before = figure.locator("img").get_attribute("src")
        if select.input_value() != name:
            select.select_option(name)
            expect(figure.locator("img")).not_to_have_attribute("src", before)
    assert abs(shown(figure)[..., 0] / 255 - right.probabilities[2]).max() < 0.51 / 255
    legend = tab.locator(".legend").text_content()
    for name, share in right.shares.items():
        assert f"{name} {100 * share:.1f} %" in legend
    assert "decode" in tab.locator(".times").text_content()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing is wider than the screen


def test_two_models_side_by_side(open_page: Open, files: list[Path], photo: bytes) -> None:
    tab = open_page()
    give(tab, ("rex.png", photo))
    tab.select_option("#second", "2")
    wait_done(tab)
    tab.locator(".differ").wait_for(state="visible")
    one, other = (wanted(files, number, photo) for number in (0, 2))
    share = 100 * (one.mask != other.mask).mean()
    assert tab.locator(".differ").text_content() == f"{share:.1f} % of the pixels differ"
    sides = tab.locator("figure")
    assert np.array_equal(shown(sides.nth(0)), np.asarray(one.overlay()))
    assert np.array_equal(shown(sides.nth(1)), np.asarray(other.overlay()))
    tab.select_option("#second", "3")
    expect(tab.locator(".differ")).to_have_text(re.compile("the models have different classes"))
    assert tab.locator("figure").nth(1).locator(".legend li").count() == 12


def test_several_pictures_and_bad_files(open_page: Open, photo: bytes) -> None:
    """Names of files are text, and what cannot be read says why beside the others."""
    tab = open_page()
    give(tab, ("one.png", photo), (HOSTILE, photo), ("bad.png", b"nonsense"))
    assert tab.locator("#status").text_content() == "3 pictures"
    assert tab.locator("article h2").all_text_contents() == ["one.png", HOSTILE, "bad.png"]
    trouble = tab.locator("article").nth(2).locator(".trouble")
    trouble.wait_for(state="visible")
    assert trouble.text_content()
    assert "bad.png: " in tab.locator("#alert").text_content()
    assert tab.locator("img[src='x']").count() == 0
    with tab.expect_download() as download:
        tab.locator("article").first.get_by_text("Save mask").click()
    assert download.value.suggested_filename == "one.mask.png"
    assert np.asarray(Image.open(download.value.path())).ndim == 2
    tab.locator("article").first.locator(".remove").focus()
    tab.keyboard.press("Enter")
    assert tab.locator("article h2").all_text_contents() == [HOSTILE, "bad.png"]
    tab.get_by_text("Remove all").click()
    assert tab.locator("#status").text_content() == "No pictures yet"


def test_views_are_chosen_by_keyboard(open_page: Open, photo: bytes) -> None:
    tab = open_page()
    give(tab, ("rex.png", photo))
    tab.locator(".views input:checked").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.value") == "mask"
    wait_view(tab, "mask")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(open_page: Open, photo: bytes, size: Any, scheme: str) -> None:
    tab = open_page(size, scheme)
    give(tab, ("rex.png", photo), ("bad.png", b"nonsense"))
    tab.select_option("#second", "3")
    wait_done(tab)
    script = (resources("axe_playwright_python") / "axe.min.js").read_text()
    found = tab.evaluate(f"async () => {{ {script}; return (await axe.run()).violations }}")
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []


def test_saved_files_are_those_of_the_prediction(open_page: Open, files: list[Path], photo: bytes) -> None:
    tab, right = open_page(), wanted(files, 0, photo)
    give(tab, ("my rex.jpg", photo))
    for button, name, image in (
        ("Save mask", "my rex.mask.png", right.as_image()),
        ("Save cut-out", "my rex.cutout.png", right.cutout()),
    ):
        with tab.expect_download() as download:
            tab.get_by_role("button", name=button).click()
        assert download.value.suggested_filename == name
        with Image.open(download.value.path()) as saved:
            assert saved.mode == image.mode
            assert np.array_equal(np.asarray(saved), np.asarray(image))


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_pictures_are_dropped_and_pasted(open_page: Open, files: list[Path], photo: bytes, kind: str) -> None:
    tab = open_page()
    tab.evaluate(
        """([kind, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(bytes)], "rex.png", {type: "image/png"}));
          document.body.dispatchEvent(kind === "drop"
            ? new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        [kind, list(photo)],
    )
    wait_view(tab, "overlay")
    right = np.asarray(wanted(files, 0, photo).overlay())
    assert np.array_equal(shown(tab.locator("figure")), right)
