"""The triangle of the chapter on sampling, in a headless Chromium and from the disk: the package's mathematics by hand.

Without Chromium the tests are skipped; the directive that puts the triangle on a page is tested in any case.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import PATIENCE
from playwright.sync_api import Browser, BrowserContext, Page

from jointvae import categorical, figures

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "book" / "_web" / "simplex"
PROBS = [0.5, 0.3, 0.2]
SEED = 2  # of the noise that the page begins with
MOST_DRAWS = 2000
STANDING = "It needs JavaScript."
DOUBLE = torch.float64


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """A page with the widget and nothing else, two folders below its script."""
    top = tmp_path_factory.mktemp("simplex")
    (top / "simplex").symlink_to(FOLDER)
    page = top / "deep" / "page.html"
    page.parent.mkdir()
    page.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Test</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="stylesheet" href="../simplex/simplex.css">'
        f'<body><div class="simplex" data-simplex><p>{STANDING}</p></div>'
        '<script defer src="../simplex/simplex.js"></script>'
    )
    return page.as_uri()


def opened(context: BrowserContext, address: str, errors: list[str]) -> Page:
    context.set_default_timeout(PATIENCE)
    tab = context.new_page()
    tab.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda asked: None if asked.url.startswith("file://") else errors.append(asked.url))
    tab.goto(address)
    return tab


@pytest.fixture
def tab(browser: Browser, address: str):
    errors: list[str] = []
    context = browser.new_context(viewport={"width": 1000, "height": 1000}, reduced_motion="reduce")
    yield opened(context, address, errors)
    context.close()
    assert errors == []


def noise(tab: Page, count: int, seed: int = SEED) -> torch.Tensor:
    """The first draws of Gumbel noise from a seed, from the page's own generator."""
    rows = tab.evaluate(
        """([count, seed]) => {
            const next = JointVAESimplex.uniforms(seed);
            return Array.from({length: count}, () => [0, 1, 2].map(() => JointVAESimplex.gumbel(next())));
        }""",
        [count, seed],
    )
    return torch.tensor(rows, dtype=DOUBLE)


def places(tab: Page) -> tuple[np.ndarray, list[int]]:
    """Where the draws are in the picture, and the category whose colour each has."""
    dots = tab.evaluate(
        """() => [...document.querySelectorAll(".simplex-draws circle")].map(dot => [
            Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy")), Number(dot.getAttribute("class").at(-1)),
        ])"""
    )
    return np.array([dot[:2] for dot in dots]).reshape(-1, 2), [dot[2] - 1 for dot in dots]


def in_picture(tab: Page, points: torch.Tensor) -> np.ndarray:
    """Points of the simplex where the picture has to show them, by the plane of the book's figures."""
    outline = tab.locator(".simplex-outline").get_attribute("points") or ""
    left, right, top = (np.array(corner.split(","), dtype=float) for corner in outline.split())
    plane = figures.to_plane(points.numpy())
    height = figures.to_plane(np.array([0.0, 0.0, 1.0]))[1]
    up = (top - (left + right) / 2) / height
    return left + plane[:, :1] * (right - left) + plane[:, 1:] * up


def tau(tab: Page) -> float:
    return float(tab.get_by_label("temperature τ").get_attribute("aria-valuetext"))


def press(tab: Page, button: str) -> None:
    tab.get_by_role("button", name=button, exact=True).click()


def column(tab: Page, table: str, index: int) -> list[str]:
    return tab.locator(f".{table} tbody td:nth-of-type({index})").all_inner_texts()


class TestMathematics:
    @pytest.mark.parametrize("tau", [0.05, 0.67, 3.0, 10.0])
    def test_the_relaxed_draw_is_that_of_the_package(self, tab, generator, tau):
        logits = 2 * torch.randn((50, 3), generator=generator, dtype=DOUBLE)
        g = categorical.gumbel_noise((50, 3), generator, DOUBLE)
        theirs = tab.evaluate(
            "([logits, g, tau]) => logits.map((row, i) => JointVAESimplex.relax(row, g[i], tau))",
            [logits.tolist(), g.tolist(), tau],
        )
        expected = categorical.gumbel_softmax(logits, g, tau)
        torch.testing.assert_close(torch.tensor(theirs, dtype=DOUBLE), expected, rtol=0, atol=1e-6)
        winners = tab.evaluate(
            "([logits, g]) => logits.map((row, i) => JointVAESimplex.winner(row, g[i]))", [logits.tolist(), g.tolist()]
        )
        assert winners == categorical.gumbel_max(logits, g).tolist()

    def test_hard_draws_come_as_often_as_they_should(self, tab):
        count, probs = 20_000, torch.tensor(PROBS, dtype=DOUBLE)
        counts = tab.evaluate(
            """([count, logits]) => {
                const next = JointVAESimplex.uniforms(7), counts = [0, 0, 0];
                for (let i = 0; i < count; i++) {
                    const g = [0, 1, 2].map(() => JointVAESimplex.gumbel(next()));
                    counts[JointVAESimplex.winner(logits, g)]++;
                }
                return counts;
            }""",
            [count, probs.log().tolist()],
        )
        error = (probs * (1 - probs) / count).sqrt()
        assert sum(counts) == count
        assert ((torch.tensor(counts) / count - probs).abs() < 5 * error).all()

    def test_no_noise_is_infinite(self, tab):
        extremes = tab.evaluate("[0, 1 - 2 ** -53].map(JointVAESimplex.gumbel)")
        assert np.isfinite(extremes).all()
        point = tab.evaluate("g => JointVAESimplex.relax([0, 0, 0], [g, 0, 0], 0.05)", extremes[0])
        assert point == pytest.approx([1, 0, 0])

    @pytest.mark.parametrize("tau", [0, -1, float("nan")])
    def test_a_temperature_that_is_none_is_refused(self, tab, tau):
        refused = tab.evaluate(
            "tau => { try { JointVAESimplex.relax([0, 0, 0], [0, 0, 0], tau) } catch (e) { return e.name } }", tau
        )
        assert refused == "RangeError"


class TestPicture:
    def test_the_same_noise_stays_when_tau_moves(self, tab):
        g, logits = noise(tab, 200), torch.tensor(PROBS, dtype=DOUBLE).log()
        before, colours = places(tab)
        kept = column(tab, "simplex-one", 1)
        assert tau(tab) == 0.67
        np.testing.assert_allclose(
            before, in_picture(tab, categorical.gumbel_softmax(logits, g, tau(tab))), rtol=0, atol=0.1
        )
        assert colours == categorical.gumbel_max(logits, g).tolist()
        for key, reached in (("End", 10.0), ("Home", 0.05)):
            tab.get_by_label("temperature τ").press(key)
            assert tau(tab) == reached
            after, colours_after = places(tab)
            expected = in_picture(tab, categorical.gumbel_softmax(logits, g, reached))
            np.testing.assert_allclose(after, expected, rtol=0, atol=0.1)
            assert np.abs(after - before).max() > 10
            assert colours_after == colours
            assert column(tab, "simplex-one", 1) == kept

    def test_a_key_on_a_logit_moves_the_same_draws_a_little(self, tab):
        before, _ = places(tab)
        shown = tab.locator(".simplex-value").nth(1).inner_text()
        tab.get_by_label("logit 1").press("ArrowRight")
        after, _ = places(tab)
        assert 0 < np.abs(after - before).max() < 2
        assert tab.locator(".simplex-value").nth(1).inner_text() != shown

    def test_pi_can_be_dragged_but_not_out_of_the_triangle(self, tab):
        grip = tab.locator(".simplex-grip").bounding_box()
        x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
        tab.mouse.move(x, y)
        tab.mouse.down()
        tab.mouse.move(x + 2000, y + 2000, steps=4)
        tab.mouse.up()
        probs = [float(text) for text in column(tab, "simplex-shares", 4)]
        assert probs[1] > 0.95
        assert min(probs) > 0
        before, _ = places(tab)
        tab.mouse.move(x, y)  # let go is let go
        assert (places(tab)[0] == before).all()

    def test_a_click_follows_the_draw_under_it(self, tab):
        kept = column(tab, "simplex-one", 1)
        tab.locator(".simplex-draws circle").nth(7).click(force=True)
        assert column(tab, "simplex-one", 1) != kept

    def test_hard_draws_pile_up_in_their_corners_and_their_mean_is_the_share(self, tab):
        tab.get_by_label("temperature τ").press("End")
        soft = column(tab, "simplex-shares", 5)
        tab.get_by_role("radio", name="soft").press("ArrowDown")
        assert tab.get_by_role("radio", name="hard").is_checked()
        found, colours = places(tab)
        corners = in_picture(tab, torch.eye(3, dtype=DOUBLE))
        assert np.linalg.norm(found - corners[colours], axis=1).max() < 40
        shares, mean = column(tab, "simplex-shares", 2), column(tab, "simplex-shares", 5)
        assert mean == shares != soft
        assert [float(share) for share in shares] == pytest.approx(np.bincount(colours) / 200, abs=0.006)


class TestButtons:
    def test_clear_empties_and_the_same_noise_comes_back(self, tab):
        before, _ = places(tab)
        press(tab, "Clear")
        assert len(places(tab)[0]) == 0
        tab.get_by_text("No draws yet.").wait_for()
        assert set(column(tab, "simplex-shares", 2)) == {"–"}
        press(tab, "Same noise again")
        assert (places(tab)[0] == before).all()
        press(tab, "New noise")
        after, _ = places(tab)
        assert len(after) == len(before)
        assert np.abs(after - before).max(axis=1).min() > 0

    def test_draws_add_up_to_a_limit_that_is_said(self, tab):
        first, _ = places(tab)
        press(tab, "Draw 1")
        found, _ = places(tab)
        assert len(found) == len(first) + 1
        assert (found[: len(first)] == first).all()
        for _ in range(10):
            press(tab, "Draw 200")
        assert len(places(tab)[0]) == MOST_DRAWS
        tab.get_by_text("No more than 2,000 draws fit.").wait_for()

    def test_start_over_undoes_everything(self, tab):
        before, _ = places(tab)
        tab.get_by_label("logit 3").press("End")
        tab.get_by_role("radio", name="hard").check()
        press(tab, "New noise")
        press(tab, "Start over")
        assert (places(tab)[0] == before).all()
        assert tab.get_by_role("radio", name="soft").is_checked()


class TestReaders:
    def test_everything_has_a_name_and_the_picture_is_told_in_words(self, tab):
        assert tab.get_by_role("slider").count() == 4
        assert tab.get_by_role("radio").count() == 2
        nameless = tab.evaluate(
            """[...document.querySelectorAll(".simplex input, .simplex button")].filter(
                part => !(part.labels?.[0] ?? part).textContent.trim()).length"""
        )
        assert nameless == 0
        assert all(tab.locator("fieldset > legend").all_inner_texts())
        assert tab.get_by_role("slider").first.get_attribute("aria-valuetext") == "0.67"
        status = tab.get_by_role("status")
        assert "200 relaxed draws at τ = 0.67. They fill the triangle." in status.inner_text()
        tab.get_by_label("temperature τ").press("End")
        tab.get_by_text("They crowd the centre.").wait_for()
        tab.get_by_label("temperature τ").press("Home")
        tab.get_by_text("Most lie near a corner.").wait_for()

    @pytest.mark.parametrize("colours", ["light", "dark"])
    def test_a_phone_does_not_scroll_sideways(self, browser, address, colours):
        errors: list[str] = []
        context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=colours)
        tab = opened(context, address, errors)
        tab.locator(".simplex svg").wait_for()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        wide = tab.evaluate(
            """() => {
                const right = document.querySelector(".simplex").getBoundingClientRect().right;
                return [...document.querySelectorAll(".simplex *")].filter(
                    part => part.getBoundingClientRect().right > right).map(part => part.outerHTML.slice(0, 80));
            }"""
        )
        assert wide == []
        context.close()
        assert errors == []

    def test_nothing_glides_for_who_wants_no_motion(self, tab):
        tab.get_by_role("radio", name="hard").check()
        assert tab.locator(".simplex-draws circle").first.evaluate(
            "dot => getComputedStyle(dot).transitionDuration"
        ) in (
            "0s",
            "",
        )

    def test_without_javascript_the_sentence_stands(self, browser, address):
        context = browser.new_context(java_script_enabled=False)
        tab = opened(context, address, [])
        assert tab.get_by_text(STANDING).is_visible()
        context.close()


def test_the_directive_links_from_any_folder_and_only_where_it_stands(tmp_path):
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT / 'book' / '_ext')!r})\n"
        "extensions = ['myst_parser', 'simplex_widget']\nnumfig = True\nhtml_theme = 'basic'\n"
    )
    (source / "dot.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>')
    (source / "index.md").write_text("# Top\n\n```{toctree}\nsub/page\nother\n```\n\n```{simplex}\n```\n")
    (source / "other.md").write_text("# Other\n\nNothing here.\n")
    (source / "sub" / "page.md").write_text(
        "# Page\n\n```{figure} ../dot.svg\n:name: fig-dot\n\nA dot.\n```\n\n```{simplex}\n:figure: fig-dot\n```\n"
    )
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", source, tmp_path / "html"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    top, page, other = (
        (tmp_path / "html" / name).read_text() for name in ("index.html", "sub/page.html", "other.html")
    )
    assert 'href="simplex/simplex.css"' in top
    assert 'src="simplex/simplex.js"' in top
    assert 'href="../simplex/simplex.css"' in page
    assert 'src="../simplex/simplex.js"' in page
    assert "data-simplex" in page
    assert 'href="#fig-dot"' in page.partition("data-simplex")[2]
    assert "simplex.js" not in other
    assert "simplex.css" not in other
