"""What figures show: the codes that are decoded, the order of categories, labelled axes, and the terminal's lines."""

import io
import re
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
import torch
from rich.console import Console

mpl.use("Agg")

from jointvae import book, figures, results, structure, sweeps, terminal, training
from jointvae.claims import Claim, Judgement
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape, JointVAE


@pytest.fixture(autouse=True)
def _closed():
    figures.use_style()
    yield
    figures.plt.close("all")


@pytest.fixture(scope="module")
def model() -> JointVAE:
    torch.manual_seed(0)
    return JointVAE(LatentSpec(3, (4, 2)), ImageShape(1, 32))


def test_the_simplex_keeps_its_corners_and_its_centre():
    corners = figures.to_plane(np.eye(3))
    distances = [np.linalg.norm(corners[i] - corners[j]) for i, j in ((0, 1), (1, 2), (2, 0))]
    assert distances == pytest.approx([1, 1, 1])
    assert figures.to_plane(np.full(3, 1 / 3)) == pytest.approx(corners.mean(axis=0))


def test_quantiles_of_the_prior():
    values = figures.prior_quantiles(9)
    assert values[4].item() == pytest.approx(0, abs=1e-6)
    assert values[-1].item() == pytest.approx(1.6449, abs=1e-3)
    assert torch.allclose(values, -values.flip(0), atol=1e-5)


def test_codes_have_one_category_for_each_unit(model):
    codes = figures.one_hot_codes(model, [2, 1], n=2)
    assert codes.tolist() == [[0, 0, 0, 0, 0, 1, 0, 0, 1]] * 2


def test_a_traversal_moves_one_unit_only(model):
    values = torch.tensor([-1.0, 0.0, 1.0])
    images = figures.traverse_z(model, 1, values, [0, 0])
    middle = figures.decode_images(model, figures.one_hot_codes(model, [0, 0]))
    assert torch.allclose(images[1], middle[0], atol=1e-6)
    assert not torch.allclose(images[0], images[2])
    assert images.min() >= 0
    assert images.max() <= 1


def test_categories_stand_in_the_order_of_their_classes(make_evaluation):
    found = make_evaluation(images=28, confusion=[[0, 0, 9], [8, 1, 0], [1, 9, 0]])
    assert figures.matched_order(found) == [2, 0, 1]
    wide = make_evaluation(images=18, confusion=[[0, 9, 0], [8, 0, 1]])
    assert figures.matched_order(wide) == [1, 0, 2]


def test_every_figure_labels_its_axes(model, make_record, generator):
    record = make_record()
    made = [
        figures.traversal_figure(model, [0.1, 2.0, 0.0]),
        figures.confusion_figure([("one", record.test), ("two", record.test)], ("a", "b")),
        figures.capacity_figure([("one", record)]),
        figures.runs_figure([("runs", [0.5, 0.7], {"color": "k"}), ("other", [0.1], {"color": "k"})]),
    ]
    for figure in made:
        figure.canvas.draw()
        assert all(ax.get_xlabel() for ax in figure.axes)
    rows = figures.category_figure(model, ["a", "b", "c", "d"], generator)
    assert [label.get_text() for label in rows.axes[0].get_yticklabels()] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("n", [1, 4, 5, 11])
def test_no_run_is_left_out_of_a_figure(make_record, n):
    record = make_record()
    names = [f"seed {i}" for i in range(n)]
    heat = figures.confusion_figure([(name, record.test) for name in names], ("a", "b"))
    assert [ax.get_title() for ax in heat.axes if ax.get_title()] == names
    assert max(heat.get_size_inches()) <= max(8.2, 2.7 * n)
    curves = figures.capacity_figure([(name, record) for name in names])
    assert [line.get_label() for line in curves.axes[0].get_lines()] == names


def test_a_class_without_images_has_an_empty_row(make_evaluation):
    found = make_evaluation(confusion=[[15, 5], [0, 0]])
    (mesh,) = figures.confusion_figure([("one", found)], ("a", "b")).axes[0].collections
    assert mesh.get_array().tolist() == [[75, 25], [0, 0]]


def test_rows_of_a_traversal_are_ordered_by_use(model):
    figure = figures.traversal_figure(model, [0.1, 2.0, 0.5])
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert [label[4:5] for label in labels] == ["2", "3", "1"]


def test_a_traversal_needs_no_c():
    ax = figures.traversal_figure(JointVAE(LatentSpec(3, ())), [0.1, 2.0, 0.5]).axes[0]
    assert len(ax.get_yticklabels()) == 3


NEWS = training.Progress(50, 200, 1, 321.5, 1.25, 0.75, {"C_z": 1.5, "C_c": 0.5}, 3000.0)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_shows_losses_capacities_and_speed(is_terminal):
    screen = io.StringIO()
    with terminal.Display(Console(file=screen, force_terminal=is_terminal, width=160)) as display:
        display.say("a-run", NEWS)
        display.say("a-run", "done")
    shown = screen.getvalue()
    for word in ("a-run", "rec 321.5", "KL_z 1.25/1.50", "KL_c 0.75/0.50", "3,000 images/s", "done"):
        assert word in shown


def test_a_small_terminal_shows_the_runs_that_are_going_on():
    screen = io.StringIO()
    with terminal.Display(Console(file=screen, force_terminal=True, width=160, height=10)) as display:

        def drawn() -> set[str]:
            screen.seek(0)
            screen.truncate()
            display.progress.refresh()
            return set(re.findall(r"run-\d+", screen.getvalue()))

        for i in range(30):
            display.say(f"run-{i}", NEWS)
            if i < 28:
                display.say(f"run-{i}", "done")
        assert drawn() == {"run-28", "run-29"}
        display.say("run-29", "another process is at it; the others first")
        assert drawn() == {"run-28"}
        display.say("run-29", NEWS)
        assert drawn() == {"run-28", "run-29"}


def test_a_log_file_is_not_flooded():
    screen = io.StringIO()
    with terminal.Display(Console(file=screen, width=160)) as display:
        for _ in range(100):
            display.say("a-run", NEWS)
    assert screen.getvalue().count("rec 321.5") == 1


def test_tables_hold_every_row(make_record):
    claim = Claim(id="x", claim="It works.", source="here", criterion="at least half", paper=0.887, unit="share")
    sure = Judgement(replace(claim, section="sec-mnist-runs"), 0.5, 9, "partly", (0.4, 0.6), (0.3, 0.9))
    judgements = [Judgement(claim, 0.5, 3, "partly", None, (0.3, 0.9)), Judgement(claim, None, 0, "not tested"), sure]
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    console.print(terminal.claims_table(judgements, "Claims"))
    failed = make_record(seed=1)
    object.__setattr__(failed, "test", None)
    console.print(terminal.runs_table([make_record(), failed]))
    for word in ("88.7%", "50.0%", "partly", "not tested", "mnist-seed0", "failed"):
        assert word in screen.getvalue()
    page = book.claims_table(judgements)
    assert 'class="verdict-not-tested"' in page
    assert page.count("\n") == 4
    assert "* Runs: 30.0% to 90.0%. | 88.7% | 50.0% | 3 |" in page
    assert "* 95 %: 40.0% to 60.0%. Evidence: {ref}`sec-mnist-runs`. | 88.7% | 50.0% | 9 |" in page
    assert page.count("Evidence: {ref}`sec-mnist-runs`.") == 1
    assert "mnist-seed0" in book.provenance_table([make_record()])
    assert book.runs_table([("one", make_record().test)]).splitlines()[2].startswith("| one | 90.0%")


def test_runs_that_failed_are_counted_and_named(make_record):
    broken = replace(make_record(seed=3), status="failed", test=None, train=None, error="Training stopped at step 7.")
    assert book.outcome_text([make_record()]) == "1 of 1 started runs finished."
    told = book.outcome_text([make_record(), broken])
    assert told == "1 of 2 started runs finished. Seed 3 failed: Training stopped at step 7."


def test_the_stamp_says_what_made_a_page():
    stamp = book.stamp("smoke", 3, "digits")
    for word in ("tier", "smoke", "data", "digits", "hardware", "commit", torch.__version__):
        assert word in stamp


def test_the_stamp_names_the_recorded_runs_and_the_command_that_makes_them_again(make_record):
    runs = [make_record(seed=seed) for seed in (0, 1, 2)]
    text = book.recorded_text(runs)
    assert "`mnist`, seeds 0 to 2, by `jointvae train mnist --seed SEED`" in text
    assert "seeds 0, 2," in book.recorded_text([runs[0], runs[2]])
    assert book.recorded_text([*runs, runs[1]]) == text  # named once, however often it is shown
    assert "results/sweeps" not in text


def test_a_run_of_a_sweep_is_traced_to_the_file_that_asks_for_it(make_record):
    config = sweeps.read_all()["rules"].config("γ = 3", 1)
    run = replace(make_record(), name=config.run_name, config=config)
    setting = run.name.replace("seed1", "seedN")
    assert book.recorded_text([run]).startswith(f"`{setting}`, seed 1, by `jointvae sweep results/sweeps/rules.yml`")
    own = replace(run, name="mnist-short-seed1-0a0a0a0a", config=replace(config, tau=0.123))
    assert "`mnist-short-seedN-0a0a0a0a`, seed 1, by `jointvae sweep results/sweeps/FILE.yml`" in book.recorded_text(
        [own]
    )


def test_under_a_figure_stand_its_runs_commits_processors_and_commands(make_record):
    runs = [make_record(seed=seed) for seed in (0, 1)]
    author = next(model for model in results.references() if model.name == "authors-mnist")
    text = book.made_from([*runs, runs[0], author])
    assert "<summary>Made from 2 recorded runs and the author's model</summary>" in text
    assert "- `mnist`, seeds 0, 1: trained by `jointvae train mnist --seed SEED`" in text
    assert "scored by `jointvae evaluate FOLDER --authors --dataset mnist --record authors-mnist`" in text
    for sitting in (*runs[0].provenance, author.provenance):
        assert sitting.device in text
        assert sitting.commit is None or sitting.commit[:10] in text
    assert "Made from 1 recorded run<" in book.made_from(runs[:1])
    assert "Made from the author's model<" in book.made_from([author])
    assert book.made_from([]) == ""


def test_what_a_script_measured_names_the_script_and_where_it_ran():
    found = {"provenance": vars(results.Provenance.now())}
    text = book.measured_by("differences.py", found)
    assert "`python benchmarks/differences.py --record`" in text
    assert found["provenance"]["device"] in text


def test_the_picture_of_the_modules_has_an_arc_for_each_import_and_shows_which_way_it_leads(monkeypatch):
    def sides() -> list[float]:
        (ax,) = figures.modules_figure().axes
        return [patch.theta1 for patch in ax.patches]

    imports = [structure.imports(structure.PACKAGE / f"{module}.py") for module in structure.ORDER]
    assert sides() == [-90] * sum(map(len, imports))  # all to the right: down
    turned = structure.ORDER[::-1]
    monkeypatch.setattr(structure, "ORDER", turned)
    monkeypatch.setattr(structure, "STAGES", {"all": turned})
    assert set(sides()) == {90}  # to the left: up
