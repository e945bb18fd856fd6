"""The explorer of a trained model, in a headless Chromium and from the disk: what it computes, how it is worked, how it
fails."""

import importlib
import re
import shutil
from pathlib import Path

import pytest
import torch
from chromium import PATIENCE
from playwright.sync_api import Browser, Page
from test_book import HTML

from jointvae import book, checkpoints, data, export, names, results
from jointvae.errors import JointVAEError

WEB = Path(__file__).parent.parent / "book" / "_web" / "explorer"
RUN = results.RESULTS / "runs" / "mnist-seed0.safetensors"
TOLERANCE = 1e-3  # per pixel and per probability, against float32 weights in PyTorch
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>A page</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="explorer.css"><body style="margin: 8px">
<p>Before.</p>{spacer}
<div class="explorer" data-explorer="mnist" data-model="{model}.js">
<img src="mnist.png" alt="What each latent does"></div>
<p id="after">After.</p><script defer src="explorer.js"></script>"""


@pytest.fixture(scope="module")
def model():
    return checkpoints.load_model(RUN)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return data.as_floats(data.load("digits", "test").images[:100])


@pytest.fixture(scope="module")
def site(model, tmp_path_factory) -> Path:
    """A folder with a page for each case; the images to encode are the embedded digits, which are always there."""
    folder = tmp_path_factory.mktemp("explorer")
    for file in WEB.iterdir():
        shutil.copy(file, folder)
    record = results.read(RUN.with_suffix(".json"))
    found = export.browser_model(model, "mnist", record) | {"tests": export.test_images(model, "digits")}
    script = export.browser_script("mnist", found)
    (folder / "mnist.js").write_bytes(script)
    (folder / "mnist.png").write_bytes(export.picture(model, record.test.kl_z))
    middle = len(script) // 2
    changed = b"1" if script[middle : middle + 1] == b"0" else b"0"
    (folder / "changed.js").write_bytes(script[:middle] + changed + script[middle + 1 :])
    (folder / "cut.js").write_bytes(script[:middle])
    for name in ("mnist", "changed", "cut", "absent"):
        (folder / f"{name}.html").write_text(PAGE.format(model=name, spacer=""))
    (folder / "far.html").write_text(PAGE.format(model="mnist", spacer='<div style="height: 5000px"></div>'))
    return folder


def visit(browser: Browser, path: Path, state: str | None = "ready", **options) -> Page:
    """A page of the folder once its explorer has reached a state; its context is closed with `close`."""
    tab = browser.new_context(viewport={"width": 1000, "height": 900}, **options).new_page()
    tab.set_default_timeout(PATIENCE)
    tab.errors = []
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.goto(path.as_uri())
    if state:
        tab.wait_for_selector(f"[data-state={state}]")
    return tab


@pytest.fixture
def tab(browser: Browser, site: Path):
    page = visit(browser, site / "mnist.html")
    yield page
    assert page.errors == []
    page.context.close()


def picture(tab: Page) -> str:
    """The picture on show, after the frames that are under way."""
    tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return tab.evaluate("document.querySelector('.explorer-picture').toDataURL()")


def status(tab: Page) -> str:
    return tab.locator(".explorer [role=status]").inner_text()


def run(tab: Page, method: str, inputs: torch.Tensor) -> list:
    """What the model in the page makes of flat inputs."""
    return tab.evaluate(
        f"""(inputs) => {{
            const model = document.querySelector(".explorer").explorer.model;
            const plain = (found) => found.length === undefined
                ? {{ mu: [...found.mu], logvar: [...found.logvar], probs: found.probs }} : [...found];
            return inputs.map((input) => plain(model.{method}(Float32Array.from(input))));
        }}""",
        inputs.flatten(1).tolist(),
    )


class TestArithmetic:
    @torch.no_grad()
    def test_the_decoder_is_that_of_pytorch(self, tab, model, generator):
        z = torch.randn(100, model.spec.z, generator=generator)
        c = torch.randn(100, model.spec.c[0], generator=generator).mul(3).softmax(-1)
        codes = torch.cat([z, c], 1)
        expected = model.decode(codes).sigmoid().flatten(1)
        assert (torch.tensor(run(tab, "decode", codes)) - expected).abs().max() < TOLERANCE

    @torch.no_grad()
    def test_the_encoder_and_the_reconstruction_are_those_of_pytorch(self, tab, model, images):
        found, q = run(tab, "encode", images), model.encode(images)
        mu, logvar = (torch.tensor([one[name] for one in found]) for name in ("mu", "logvar"))
        probs = torch.tensor([one["probs"][0] for one in found])
        assert (mu - q.mu).abs().max() < TOLERANCE
        assert (logvar - q.logvar).abs().max() < 5 * TOLERANCE  # of the size of 10
        assert (probs - q.logits[0].softmax(-1)).abs().max() < TOLERANCE
        codes = torch.cat([mu, torch.nn.functional.one_hot(probs.argmax(-1), model.spec.c[0])], 1)
        expected = model.decode(q.mode()).sigmoid().flatten(1)
        assert (torch.tensor(run(tab, "decode", codes)) - expected).abs().max() < TOLERANCE

    def test_it_is_quick_enough_to_move(self, tab):
        seconds = tab.evaluate(
            """() => {
                const { model } = document.querySelector(".explorer").explorer;
                const codes = Array.from({ length: 10 }, () => Float32Array.from(Array(model.latent), Math.random));
                const times = Array.from({ length: 9 }, () => {
                    const start = performance.now();
                    for (const code of codes) model.decode(code);
                    return (performance.now() - start) / codes.length / 1000;
                });
                return Math.min(...times);
            }"""
        )
        assert 1 / seconds > 30


@pytest.mark.parametrize(("shape"), [((3, 64), (4, 2), 5), ((1, 32), (), 4), ((1, 32), (3,), 0)], ids=str)
@torch.no_grad()
def test_models_of_other_shapes(browser, shape, generator, tmp_path, monkeypatch):
    from jointvae.latents import LatentSpec
    from jointvae.model import ImageShape, JointVAE

    monkeypatch.setattr(export, "name_units", lambda model: [names.UnitName("z")] * model.spec.z)  # that takes seconds
    image, c, z = shape
    torch.manual_seed(0)
    other = JointVAE(LatentSpec(z, c), ImageShape(*image))
    for file in WEB.iterdir():
        shutil.copy(file, tmp_path)
    for file, content in export.browser_files(other, "mnist", None).items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "page.html").write_text(PAGE.format(model="mnist", spacer=""))
    tab = visit(browser, tmp_path / "page.html")
    codes = torch.randn(3, other.spec.size, generator=generator)
    pixels = torch.rand(3, image[0], image[1], image[1], generator=generator)
    decoded = torch.tensor(run(tab, "decode", codes)).view(3, image[1], image[1], image[0]).permute(0, 3, 1, 2)
    assert (decoded - other.decode(codes).sigmoid()).abs().max() < TOLERANCE
    found, q = run(tab, "encode", pixels.permute(0, 2, 3, 1)), other.encode(pixels)
    assert torch.allclose(torch.tensor([one["mu"] for one in found]).view(3, z), q.mu, atol=TOLERANCE)
    for i, logits in enumerate(q.logits):
        probs = torch.tensor([one["probs"][i] for one in found])
        assert (probs - logits.softmax(-1)).abs().max() < TOLERANCE
    tab.get_by_role("button", name="Random sample").click()
    tab.get_by_role("button", name="Encode the picture on show").click()
    assert status(tab).startswith("Encoded the picture on show")
    assert tab.errors == []
    tab.context.close()


class TestControls:
    def test_a_key_moves_a_dial_and_the_picture(self, tab):
        before, slider = picture(tab), tab.get_by_role("slider", name="slant")
        slider.focus()
        for _ in range(20):
            tab.keyboard.press("ArrowRight")
        assert picture(tab) != before
        assert slider.get_attribute("aria-valuetext") == "+1.00, leans right"

    def test_a_key_moves_the_switch_and_softness_opens_it(self, tab):
        before = picture(tab)
        tab.locator(".explorer-chip input").first.focus()
        tab.keyboard.press("ArrowRight")
        other = picture(tab)
        assert other != before
        assert tab.locator(".explorer-chip input").nth(1).is_checked()
        softness = tab.get_by_role("slider", name="Softness")
        softness.focus()
        tab.keyboard.press("End")
        assert picture(tab) != other
        c = tab.evaluate("document.querySelector('.explorer').explorer.c[0]")
        assert sum(c) == pytest.approx(1)
        assert max(c) == pytest.approx(torch.tensor([0.5] + [0.0] * 9).softmax(0)[0].item(), abs=1e-6)

    def test_unused_dials_are_folded_away(self, tab):
        record = results.read(RUN.with_suffix(".json"))
        used = sum(kl >= export.ACTIVE for kl in record.test.kl_z)
        shown = tab.locator(".explorer-dials input:visible")
        assert shown.count() == used
        tab.locator("summary").click()
        assert shown.count() == len(record.test.kl_z)

    def test_sample_and_reset(self, tab):
        before = picture(tab)
        tab.get_by_role("button", name="Random sample").click()
        assert picture(tab) != before
        assert status(tab).startswith("A draw from the prior")
        tab.get_by_role("button", name="Reset").click()
        assert picture(tab) == before

    def test_from_one_code_to_another(self, tab):
        path = tab.get_by_role("slider", name="From A to B")
        assert path.is_disabled()
        a = picture(tab)
        tab.get_by_role("button", name="Store A").click()
        tab.get_by_role("button", name="Random sample").click()
        b = picture(tab)
        tab.get_by_role("button", name="Store B").click()
        path.focus()
        tab.keyboard.press("Home")
        assert picture(tab) == a
        tab.keyboard.press("PageUp")
        assert picture(tab) not in (a, b)
        tab.keyboard.press("End")
        assert picture(tab) == b

    def test_a_test_image_by_keyboard(self, tab):
        first = tab.get_by_role("radio", name="Test image 1: 0")
        first.focus()
        tab.keyboard.press("Space")
        tab.keyboard.press("ArrowRight")
        assert "test image 2 (1)" in status(tab)
        bars = tab.locator(".explorer-bars li")
        assert bars.count() == 10
        assert all(text.rstrip().endswith("%") for text in bars.all_inner_texts())
        assert tab.get_by_role("img", name="The reconstruction of test image 2").is_visible()

    def test_an_empty_drawing(self, tab):
        before = picture(tab)
        tab.get_by_role("button", name="Encode the drawing").click()
        assert status(tab) == "The drawing is empty: draw something first, or choose an image."
        assert picture(tab) == before

    def test_a_drawing_by_mouse(self, tab):
        pad = tab.locator(".explorer-pad")
        pad.scroll_into_view_if_needed()
        box = pad.bounding_box()
        tab.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 0.2 * box["height"])
        tab.mouse.down()
        tab.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"], steps=6)
        tab.mouse.up()
        assert "Encoded your drawing" in status(tab)
        tab.get_by_role("button", name="Clear").click()
        tab.get_by_role("button", name="Encode the drawing").click()
        assert "empty" in status(tab)

    def test_a_drawing_is_centred_as_mnist_was(self, tab):
        side, mass, x, y, span = tab.evaluate(
            """() => {
                const drawing = new window.jointvaeExplorer.Drawing(32);
                drawing.stroke([4, 3], [8, 9]);
                const pixels = drawing.centred();
                let [mass, x, y, rows] = [0, 0, 0, new Set()];
                pixels.forEach((value, i) => {
                    mass += value; x += value * (i % 32 + 0.5); y += value * (Math.floor(i / 32) + 0.5);
                    if (value > 0.05) rows.add(Math.floor(i / 32));
                });
                return [drawing.side, mass, x / mass, y / mass, rows.size];
            }"""
        )
        assert (x, y) == (pytest.approx(side / 2, abs=0.2), pytest.approx(side / 2, abs=0.2))
        assert span == pytest.approx(20 / 28 * side, abs=2)
        assert mass > 0

    def test_every_control_has_a_name(self, tab):
        nameless = tab.evaluate(
            """() => [...document.querySelectorAll(".explorer :is(input, button, output)")].filter((control) =>
                !(control.labels?.length || control.getAttribute("aria-label") || control.textContent.trim())
            ).map((control) => control.outerHTML)"""
        )
        assert nameless == []


def test_a_finger_draws_and_nothing_scrolls_sideways(browser, site):
    tab = visit(browser, site / "mnist.html", has_touch=True)
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    pad = tab.locator(".explorer-pad")
    pad.scroll_into_view_if_needed()
    pad.tap()
    assert "Encoded your drawing" in status(tab)
    tab.context.close()


@pytest.mark.parametrize(
    ("page", "why"), [("absent", "could not be loaded"), ("changed", "is damaged"), ("cut", "is damaged")]
)
def test_a_model_that_does_not_load_leaves_the_picture_and_a_sentence(browser, site, page, why):
    tab = visit(browser, site / f"{page}.html", "failed")
    assert tab.locator(".explorer [role=alert]").inner_text() == (
        f"The model {why}, so only this picture of its latents can be shown."
    )
    assert tab.locator(".explorer img").is_visible()
    assert tab.locator("#after").is_visible()
    tab.context.close()


def test_without_javascript_there_is_a_picture(browser, site):
    tab = visit(browser, site / "mnist.html", None, java_script_enabled=False)
    assert tab.locator(".explorer img").bounding_box()["height"] > 100
    tab.context.close()


def test_a_model_is_loaded_only_when_its_explorer_comes_near(browser, site):
    tab = visit(browser, site / "far.html", None)
    assert picture_state(tab) is None
    tab.locator("#after").scroll_into_view_if_needed()
    tab.wait_for_selector("[data-state=ready]")
    tab.context.close()


def picture_state(tab: Page) -> str | None:
    tab.wait_for_function("window.jointvaeExplorer !== undefined")
    tab.wait_for_timeout(100)
    return tab.locator(".explorer").get_attribute("data-state")


class TestDirective:
    @pytest.fixture
    def widget(self, monkeypatch):
        monkeypatch.syspath_prepend(WEB.parent.parent / "_ext")
        return importlib.import_module("explorer_widget")

    def test_its_paths_lead_from_any_folder_to_the_front(self, widget):
        deep = widget.markup("mnist", "A row & more", "../../")
        paths = re.findall(r'(?:href|src|data-model)="([^"]*)"', deep)
        assert len(paths) == 4
        assert all(path.startswith("../../explorer/") for path in paths)
        assert "A row &amp; more" in deep
        assert 'data-model="explorer/models/mnist.js"' in widget.markup("mnist", "")

    def test_it_writes_the_recorded_run(self, widget, tmp_path):
        caption = widget.write_model("fashion", tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"fashion.js", "fashion.png"}
        assert book.chosen_run("fashion").name in caption

    def test_a_run_that_is_not_recorded(self, widget, tmp_path):
        with pytest.raises(JointVAEError, match="No run of 'chairs' is recorded"):
            widget.write_model("chairs", tmp_path)


@pytest.mark.book
@pytest.mark.parametrize("page", ["explorer", "mnist"])
def test_the_book_has_explorers_that_start_from_the_disk(browser, page):
    tab = visit(browser, HTML / f"{page}.html", None)
    for explorer in tab.locator(".explorer").all():
        explorer.scroll_into_view_if_needed()
    tab.wait_for_function("[...document.querySelectorAll('.explorer')].every((root) => root.dataset.state === 'ready')")
    assert tab.locator(".explorer").count() == {"explorer": 2, "mnist": 1}[page]
    assert tab.errors == []
    tab.context.close()
