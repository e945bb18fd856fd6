"""Films of a tiny training: what is kept, what is refused, and the player in a headless Chromium, from the disk."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from chromium import PATIENCE
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from jointvae import __main__ as cli
from jointvae import data, films, runs, training
from jointvae.data import Dataset
from jointvae.errors import JointVAEError
from jointvae.files import sha256
from jointvae.results import Record

ROOT = Path(__file__).parent.parent
EXTENSIONS = ROOT / "book" / "_ext"
PLAYER = ROOT / "book" / "_web" / "film"
EPOCHS = 3


def train(folder: Path, digits: Dataset, hook: training.Hook | None = None) -> Record:
    """Three epochs of the digits recipe on a few images, with a film."""
    config = replace(training.recipe("digits"), epochs=EPOCHS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", lambda name, split, size=32: replace(digits, split=split))
        return runs.run(config, folder, "cpu", hook, film=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, digits) -> Path:
    """The record of a run that has the frames of its film beside it."""
    folder = tmp_path_factory.mktemp("runs")
    return folder / f"{train(folder, digits).name}.json"


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory) -> Path:
    """The film of that run."""
    return films.make(trained, tmp_path_factory.mktemp("films"))


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    """A copy of the record and its frames, to damage."""
    shutil.copytree(trained.parent, tmp_path / "runs")
    return tmp_path / "runs" / trained.name


def frames_of(record: Path) -> Path:
    return record.with_suffix(".film")


def read(made: Path, trained: Path) -> tuple[films.Film, Record]:
    return films.read(made.stem, made.parent, trained.parent)


def test_a_film_names_its_frames_and_its_record(made, trained):
    film, record = read(made, trained)
    assert film.epochs == [0, 1, 2, 3]
    assert film.steps == [0, *record.curves["step"]]
    assert film.record == sha256(trained)
    assert sum(sheet.frames for sheet in film.sheets) == len(film.epochs)
    named = {picture.file for picture in [*film.sheets, film.poster]} | {made.name}
    assert {path.name for path in made.parent.iterdir()} == named
    assert "curves" not in made.read_text()


def test_the_rows_are_c_and_the_most_used_units_of_z(made, trained):
    film, record = read(made, trained)
    carried = record.test.kl_z
    assert film.c == [10]
    assert film.z == sorted(range(len(carried)), key=lambda unit: carried[unit], reverse=True)[:4]
    rows = films.player_data(film, record)["rows"]
    assert [row["symbol"] + row["index"] for row in rows] == ["c", *[f"z{unit + 1}" for unit in film.z]]
    for row, unit in zip(rows[1:], film.z, strict=True):
        assert row["nats"] == pytest.approx([epoch[unit] for epoch in record.curves["kl_z"]], abs=1e-3)


def as_array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=float)


def shown_rows(sheet: Path, film: films.Film) -> np.ndarray:
    """The rows of one of the training's sheets that the film shows."""
    pixels = as_array(Image.open(sheet))
    return np.concatenate([pixels[row * 32 : (row + 1) * 32] for row in [0, *[unit + 1 for unit in film.z]]])


def test_every_frame_is_the_picture_of_its_epoch(made, trained):
    film, _ = read(made, trained)
    found = []
    for sheet in film.sheets:
        pixels = as_array(Image.open(made.parent / sheet.file))
        for i in range(sheet.frames):
            top, left = i // film.across * 160, i % film.across * 320
            found.append(pixels[top : top + 160, left : left + 320])
    assert len(found) == len(film.epochs)
    for epoch, frame in zip(film.epochs, found, strict=True):
        kept = shown_rows(frames_of(trained) / f"{epoch:04}.png", film)
        assert np.abs(frame - kept).mean() < 4, epoch  # of 255: the price of lossy pictures
    for earlier, later in pairwise(found):
        assert np.abs(earlier - later).mean() > 0.5


def test_the_poster_is_the_last_frame_with_gaps(made, trained):
    film, _ = read(made, trained)
    poster = Image.open(made.parent / film.poster.file)
    assert poster.size == (10 * 34 - 2, 5 * 34 - 2)
    last = shown_rows(frames_of(trained) / "0003.png", film)
    pixels = as_array(poster)
    tiles = [(y, x) for y in range(5) for x in range(10)]
    apart = [
        np.abs(pixels[y * 34 : y * 34 + 32, x * 34 : x * 34 + 32] - last[y * 32 : y * 32 + 32, x * 32 : x * 32 + 32])
        for y, x in tiles
    ]
    assert np.mean(apart) < 4
    assert np.asarray(poster.convert("RGBA"))[:, 32, 3].max() < 64


def test_an_interrupted_run_has_the_frames_of_one_that_was_not(trained, made, tmp_path, digits):
    def interrupt(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "runs", digits, interrupt)
    record = train(tmp_path / "runs", digits)
    again = tmp_path / "runs" / trained.name
    assert len(record.provenance) == 2
    for frame in sorted(frames_of(trained).iterdir()):
        assert (frames_of(again) / frame.name).read_bytes() == frame.read_bytes()
    film = json.loads(films.make(again, tmp_path / "films").read_text())
    assert {**film, "record": ""} == {**json.loads(made.read_text()), "record": ""}


def test_a_long_training_leaves_epochs_out_but_not_the_last():
    assert films.shown_epochs(1) == [0, 1]
    assert films.shown_epochs(100) == [*range(101)]
    for epochs in (101, 250, 299, 1000):
        shown = films.shown_epochs(epochs)
        assert shown[0] == 0
        assert shown[-1] == epochs
        assert len(shown) <= films.MOST_FRAMES
        assert len({b - a for a, b in pairwise(shown[:-1])}) <= 1


def test_a_film_never_outgrows_its_limits(monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (160, 320), dtype=np.uint8)
    frames = [Image.fromarray(np.roll(noise, i)) for i in range(8)]
    large = sum(len(content) for content, _ in films.encode(frames, 1))
    monkeypatch.setattr(films, "LARGEST_FILM", int(0.7 * large))
    contents = films.encode(frames, 1)
    assert sum(len(content) for content, _ in contents) <= 0.7 * large
    assert sum(n for _, n in contents) == len(frames)
    monkeypatch.setattr(films, "LARGEST_SHEET", 100)
    with pytest.raises(JointVAEError, match="does not fit"):
        films.encode(frames, 1)


def test_making_it_again_changes_nothing_and_removes_what_is_old(made, trained, tmp_path):
    out = tmp_path / "films"
    shutil.copytree(made.parent, out)
    others = [out / "digits-seed0.00000000.webp", out / f"{made.stem}x.00000000.webp"]
    old = out / f"{made.stem}.00000000.webp"
    for path in [*others, old]:
        path.write_bytes(b"")
    before = made.read_bytes()
    assert films.make(trained, out).read_bytes() == before
    assert not old.exists()
    assert all(path.exists() for path in others)


def test_a_write_that_fails_leaves_the_film_that_was_there(copied, made, trained, tmp_path, monkeypatch):
    out = tmp_path / "films"
    shutil.copytree(made.parent, out)
    monkeypatch.setattr(films, "QUALITIES", (20,))  # other pictures than before
    write = films.write_atomic

    def full(path, content):
        if path.suffix == ".json":
            raise OSError(28, "No space left on device", str(path))
        write(path, content)

    monkeypatch.setattr(films, "write_atomic", full)
    with pytest.raises(OSError, match="space"):
        films.make(copied, out)
    films.read(made.stem, out, trained.parent)


def damage(record: Path, how: str) -> str:
    """Spoil the input in one way; returns what the sentence has to name."""
    folder = frames_of(record)
    if how == "no record":
        record.unlink()
        return "no results file"
    if how == "no folder":
        shutil.rmtree(folder)
        return "--film"
    if how == "missing frame":
        (folder / "0002.png").unlink()
        return "0002.png"
    if how == "another size":
        Image.new("RGB", (640, 352)).save(folder / "0001.png")
        return "640 × 352"
    if how == "no picture":
        (folder / "0001.png").write_bytes(b"some text")
        return "not a readable picture"
    if how == "cut picture":
        (folder / "0001.png").write_bytes((folder / "0001.png").read_bytes()[:500])
        return "not a readable picture"
    content = json.loads(record.read_text())
    failed = {"status": "failed", "error": "The loss was not finite.", "train": None, "test": None}
    record.write_text(json.dumps(content | failed))
    return "no test evaluation"


WAYS = ("no record", "no folder", "missing frame", "another size", "no picture", "cut picture", "no evaluation")


@pytest.mark.parametrize("how", WAYS)
def test_bad_input_gets_one_sentence_and_writes_nothing(how, copied, tmp_path, capsys):
    named = damage(copied, how)
    assert cli.main(["film", str(copied), "--out", str(tmp_path / "films")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert named in error
    assert not (tmp_path / "films").exists()


def test_from_the_command_line(trained, tmp_path, capsys):
    assert cli.main(["film", str(trained), "--out", str(tmp_path)]) == 0
    assert str(tmp_path / trained.name) in capsys.readouterr().out


def test_a_film_that_is_not_whole_is_refused(made, copied, tmp_path):
    out = tmp_path / "films"
    shutil.copytree(made.parent, out)
    with pytest.raises(JointVAEError, match="no film"):
        films.read("nothing", out, copied.parent)
    copied.write_text(copied.read_text() + "\n")
    with pytest.raises(JointVAEError, match="another record"):
        films.read(made.stem, out, copied.parent)
    next(out.glob("*.webp")).write_bytes(b"cut")
    with pytest.raises(JointVAEError, match="damaged"):
        films.read(made.stem, out, copied.parent)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"z": [10]}, "latents"),
        ({"z": [-1]}, "latents"),
        ({"c": [9]}, "latents"),
        ({"poster": {"file": "x" * 5000, "sha256": "00", "frames": 1}}, "damaged"),
        ({"poster": {"file": "", "sha256": "00", "frames": 1}}, "damaged"),
        ({"poster": {"file": "\ud800", "sha256": "00", "frames": 1}}, "damaged"),
    ],
)
def test_a_film_that_does_not_fit_its_run_or_its_folder_is_refused(made, copied, tmp_path, change, what):
    out = tmp_path / "films"
    shutil.copytree(made.parent, out)
    path = out / made.name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(JointVAEError, match=what) as caught:
        films.read(made.stem, out, copied.parent)
    assert str(caught.value).isprintable()


COMMITTED = sorted(films.FILMS.glob("*.json"))


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_film_is_whole_and_small(path):
    film, _ = films.read(path.stem)
    sizes = [(films.FILMS / picture.file).stat().st_size for picture in [*film.sheets, film.poster]]
    assert max(sizes) <= 300 * 1024
    assert sum(sizes) + path.stat().st_size <= 600 * 1024


# --- On a page -------------------------------------------------------------------------------------------------------


def build(folder: Path, name: str, made: Path, trained: Path) -> subprocess.CompletedProcess:
    """A site of two pages, the second of which has the film `name`, built strictly."""
    source = folder / "source"
    (source / "deep").mkdir(parents=True)
    (source / "index.md").write_text("# Index\n\n```{toctree}\ndeep/page\n```\n")
    (source / "deep" / "page.md").write_text(f"# Page\n\n```{{film}} {name}\n```\n")
    settings = {"extensions": "myst_parser,film_widget", "film_folder": made.parent, "film_records": trained.parent}
    options = [part for key, value in settings.items() for part in ("-D", f"{key}={value}")]
    command = [sys.executable, "-m", "sphinx", "-qCW", "--keep-going", *options, str(source), str(folder / "html")]
    path = os.pathsep.join([str(EXTENSIONS), str(ROOT)])
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})


@pytest.fixture(scope="module")
def site(made, trained, tmp_path_factory) -> Path:
    """The built site, with the player where the book's build puts it."""
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, made.stem, made, trained)
    assert (done.returncode, done.stderr) == (0, "")
    shutil.copytree(PLAYER, folder / "html" / "film", dirs_exist_ok=True)
    return folder / "html"


@pytest.mark.slow
def test_a_film_that_does_not_exist_fails_the_strict_build(made, trained, tmp_path):
    done = build(tmp_path, "nothing", made, trained)
    assert done.returncode != 0
    assert "There is no film" in done.stderr
    assert "page.md:3" in done.stderr


@pytest.mark.slow
def test_only_pages_with_a_film_load_its_player(site, made, trained):
    film, _ = read(made, trained)
    page = (site / "deep" / "page.html").read_text()
    assert "film/film.js" in page
    assert "film/film.css" in page
    assert f'src="../film/{film.poster.file}"' in page
    assert "film/film" not in (site / "index.html").read_text()
    assert {picture.file for picture in [*film.sheets, film.poster]} <= {
        path.name for path in (site / "film").iterdir()
    }


@pytest.fixture
def open_page(browser: Browser, site: Path):
    """Opens the page with the film in a context of the given options; at the end no error may have been logged."""
    expect.set_options(timeout=PATIENCE)
    contexts, errors, asked = [], [], []

    def go(site: Path = site, page: str = "page", clock: bool = False, **options) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 1000}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        tab = context.new_page()
        if clock:  # the test moves it: a busy machine would miss frames
            tab.clock.install(time=0)
            tab.clock.pause_at(1000)
        tab.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: (asked if request.url.startswith("file://") else errors).append(request.url))
        tab.goto((site / "deep" / f"{page}.html").as_uri())
        return tab

    go.errors, go.asked = errors, asked
    yield go
    for context in contexts:
        context.close()
    assert errors == []


def screen(tab: Page) -> np.ndarray:
    """What the reader sees of the picture, at its own size."""
    seen = Image.open(io.BytesIO(tab.locator(".film-screen").screenshot()))
    return as_array(seen.resize((338, 168), Image.Resampling.BOX))


def summary(tab: Page) -> str:
    return tab.locator(".film-summary").inner_text()


@pytest.mark.slow
class TestPlayer:
    def test_it_shows_the_last_picture_and_does_not_start_by_itself(self, open_page, made, trained):
        tab, (film, record) = open_page(), read(made, trained)
        expect(tab.locator(".film-screen")).to_be_visible()
        poster = as_array(Image.open(made.parent / film.poster.file))
        for y in range(5):
            for x in range(10):
                tile = slice(y * 34 + 4, y * 34 + 28), slice(x * 34 + 4, x * 34 + 28)
                assert abs(screen(tab)[tile].mean() - poster[tile].mean()) < 12
            break  # a row is enough: every look is a screenshot
        before = summary(tab)
        tab.wait_for_timeout(500)
        assert summary(tab) == before
        assert before.startswith(f"Epoch 3 of 3, step {record.curves['step'][-1]}")
        assert f"KL of c {sum(record.curves['kl_c'][-1]):.2f} nats (capacity {record.curves['C_c'][-1]:.2f})" in before
        assert tab.locator(".film-row").first.inner_text().split() == [
            "c",
            f"{record.curves['kl_c'][-1][0]:.2f}",
            "nats",
        ]

    def test_the_keyboard_moves_it(self, open_page):
        tab = open_page()
        expect(tab.locator(".film-screen")).to_be_visible()
        slider = tab.get_by_role("slider", name="Epoch")
        last, picture = summary(tab), screen(tab)
        slider.focus()
        tab.keyboard.press("ArrowLeft")
        assert slider.get_attribute("aria-valuetext") == "epoch 2 of 3"
        assert summary(tab).startswith("Epoch 2 of 3")
        assert np.abs(screen(tab) - picture).mean() > 0.3
        tab.keyboard.press("Home")
        assert summary(tab).startswith("Before the training")
        assert tab.locator(".film-number").first.inner_text() == "–"
        assert tab.locator(".dot").first.is_hidden()
        assert tab.get_by_role("button", name="One picture back").is_disabled()
        forward = tab.get_by_role("button", name="One picture forward")
        for _ in range(3):
            forward.press("Enter")
        assert summary(tab) == last
        assert np.abs(screen(tab) - picture).mean() == 0

    def test_it_plays_to_its_end_and_can_be_paused(self, open_page):
        tab = open_page(clock=True)
        expect(tab.locator(".film-screen")).to_be_visible()
        last = summary(tab)
        tab.get_by_label("Speed").select_option("slow")
        tab.get_by_role("button", name="Play").press("Space")
        assert summary(tab).startswith("Before the training")
        assert tab.locator(".film-summary").get_attribute("aria-live") == "off"
        tab.clock.run_for(400)
        assert summary(tab).startswith("Epoch 1 of 3")
        tab.get_by_role("button", name="Pause").click()
        tab.clock.run_for(2000)
        assert summary(tab).startswith("Epoch 1 of 3")
        tab.get_by_role("button", name="Play").click()
        tab.clock.run_for(2000)
        assert summary(tab) == last
        expect(tab.get_by_role("button", name="Play")).to_be_visible()
        assert tab.locator(".film-summary").get_attribute("aria-live") == "polite"

    def test_a_press_on_a_curve_goes_there(self, open_page):
        tab = open_page()
        curve = tab.locator(".film-chart svg").nth(1)
        box = curve.bounding_box()
        curve.click(position={"x": box["width"] * 0.15, "y": box["height"] / 2})
        assert summary(tab).startswith("Before the training")

    def test_less_motion_is_heeded(self, open_page):
        tab = open_page(reduced_motion="reduce")
        assert tab.get_by_role("button", name="Play").count() == 0
        expect(tab.get_by_text("asks for less motion")).to_be_visible()
        tab.get_by_role("button", name="One picture back").click()
        assert summary(tab).startswith("Epoch 2 of 3")

    @pytest.mark.parametrize("colours", ["light", "dark"])
    def test_a_phone_does_not_scroll_sideways(self, open_page, colours):
        tab = open_page(viewport={"width": 390, "height": 800}, color_scheme=colours)
        expect(tab.locator(".film-screen")).to_be_visible()
        film = tab.locator(".film")
        assert film.evaluate("film => film.scrollWidth <= film.clientWidth")
        too_wide = film.evaluate(
            """film => [...film.querySelectorAll("*")].filter(
                part => part.getBoundingClientRect().right > film.getBoundingClientRect().right + 1
            ).map(part => part.outerHTML)"""
        )
        assert too_wide == []

    def test_a_missing_picture_is_one_sentence(self, open_page, site, made, trained, tmp_path):
        broken, (film, _) = tmp_path / "html", read(made, trained)
        shutil.copytree(site, broken)
        (broken / "film" / film.sheets[0].file).unlink()
        tab = open_page(broken)
        expect(tab.locator(".film-note")).to_contain_text(f"{film.sheets[0].file} did not load")
        expect(tab.locator(".film-poster")).to_be_visible()
        assert tab.get_by_role("slider").is_disabled()
        assert [error for error in open_page.errors if "ERR_FILE_NOT_FOUND" not in error] == []
        open_page.errors.clear()

    def test_a_missing_player_is_one_sentence(self, open_page, site, tmp_path):
        broken = tmp_path / "html"
        shutil.copytree(site, broken)
        (broken / "film" / "film.js").unlink()
        tab = open_page(broken)
        expect(tab.locator(".film-note")).to_contain_text("did not load")
        open_page.errors.clear()

    def test_without_javascript_the_last_picture_stands_there(self, open_page):
        tab = open_page(java_script_enabled=False)
        poster = tab.locator(".film-poster")
        expect(poster).to_be_visible()
        assert poster.get_attribute("alt").startswith("After the last epoch: decoded images")
        assert tab.locator(".film-note").is_hidden()

    def test_pictures_are_asked_for_when_they_come_near(self, open_page, site):
        page = (site / "deep" / "page.html").read_text()
        room = '<div style="height: 9000px"></div>'
        (site / "deep" / "far.html").write_text(page.replace('<div class="film"', room + '<div class="film"', 1))
        tab = open_page(page="far")
        tab.wait_for_timeout(300)
        assert [url for url in open_page.asked if url.endswith(".webp")] == []
        tab.locator(".film-player").scroll_into_view_if_needed()
        expect(tab.locator(".film-screen")).to_be_visible()
        assert [url for url in open_page.asked if url.endswith(".webp")] != []
