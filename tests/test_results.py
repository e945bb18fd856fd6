"""Run records and the claims ledger: strict reading, computed verdicts, prose that cannot drift."""

import json
import os
import re
import time
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from jointvae import __main__ as cli
from jointvae import book, claims, evaluation, results, sweeps
from jointvae.claims import Bounds, Claim, judge
from jointvae.errors import JointVAEError
from jointvae.results import RESULTS, Checkpoint

ROOT = Path(__file__).parent.parent


def test_a_record_reads_back_as_itself(make_record, tmp_path):
    record = make_record()
    results.write(tmp_path / "r.json", record)
    assert results.read(tmp_path / "r.json") == record


def fields(content: object, path: tuple = ()) -> list[tuple]:
    """The paths of all fields of a record that a schema fixes."""
    if not isinstance(content, dict):
        return []
    free = path in {("curves",), ("data",), ("scores",)}
    return [(*path, key) for key in content if not free] + [
        p for k, v in content.items() for p in fields(v, (*path, k))
    ]


def test_every_missing_or_unknown_field_is_named(make_record, tmp_path):
    path = tmp_path / "r.json"
    results.write(path, make_record())
    whole = json.loads(path.read_text())
    for place in fields(whole):
        if place == ("schema",):
            continue
        broken = json.loads(json.dumps(whole))
        parent = broken
        for key in place[:-1]:
            parent = parent[key]
        parent["unheard_of"] = parent.pop(place[-1])
        path.write_text(json.dumps(broken))
        with pytest.raises(JointVAEError, match=place[-1]) as caught:
            results.read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: text.replace(f'"schema": {results.SCHEMA}', '"schema": 99'),
        lambda text: text.replace('"finished"', '"perhaps"'),
        lambda text: text.replace('"seed": 0', '"seed": "zero"'),
        lambda text: text.replace('"seed": 0', '"seed": -1'),
        lambda text: text.replace('"name": "split_capacity"', '"name": "elbo"'),
    ],
)
def test_spoilt_records_are_refused_in_one_sentence(make_record, tmp_path, spoil):
    path = tmp_path / "r.json"
    results.write(path, make_record())
    path.write_text(spoil(path.read_text()))
    with pytest.raises(JointVAEError, match=re.escape(str(path))) as caught:
        results.read(path)
    assert "\n" not in str(caught.value)


def test_a_record_with_a_number_that_is_not_finite_is_not_written(make_record, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        results.write(tmp_path / "r.json", replace(make_record(), seconds=float("nan")))
    assert list(tmp_path.iterdir()) == []


def claim(**changes) -> Claim:
    return Claim(
        **{"id": "x", "claim": "c", "source": "s", "criterion": "k", "recipe": "mnist", "metric": "accuracy"} | changes
    )


@pytest.mark.parametrize(
    ("statistic", "bounds", "partly", "verdict"),
    [
        ("max", Bounds(at_least=0.8), None, "reproduced"),
        ("min", Bounds(at_least=0.8), None, "not reproduced"),
        ("min", Bounds(at_least=0.8), Bounds(at_least=0.3), "partly"),
        ("mean", Bounds(at_least=0.6, at_most=0.7), None, "reproduced"),
        ("median", Bounds(at_most=0.6), None, "not reproduced"),
    ],
)
def test_verdicts_follow_from_the_records(make_record, statistic, bounds, partly, verdict):
    records = [make_record(seed=seed, accuracy=accuracy) for seed, accuracy in enumerate([0.4, 0.65, 0.9])]
    found = judge(claim(statistic=statistic, reproduced=bounds, partly=partly), records, [])
    assert (found.verdict, found.runs) == (verdict, 3)


def test_too_few_runs_are_no_test(make_record):
    few = judge(claim(min_runs=2), [make_record()], [])
    assert (few.verdict, few.value) == ("not tested", 0.9)  # what there is, is shown
    assert judge(claim(recipe="fashion"), [make_record()], []).verdict == "not tested"
    assert judge(claim(metric=None), [make_record()], []).verdict == "not tested"


UP, DOWN = Bounds(at_least=0.5), Bounds(at_most=0.5)


@pytest.mark.parametrize(
    ("statistic", "bounds", "partly", "accuracy", "verdict"),
    [
        ("max", UP, None, 0.6, "reproduced"),  # a maximum only rises
        ("max", UP, None, 0.4, "not tested"),
        ("max", DOWN, None, 0.6, "not reproduced"),
        ("max", DOWN, None, 0.4, "not tested"),
        ("max", DOWN, Bounds(at_most=0.8), 0.6, "not tested"),  # partly, or not even that
        ("max", DOWN, Bounds(at_most=0.8), 0.9, "not reproduced"),
        ("max", UP, Bounds(at_least=0.3), 0.4, "not tested"),
        ("max", Bounds(at_least=0.7, at_most=0.8), None, 0.6, "not tested"),  # it may yet stop inside
        ("min", UP, None, 0.4, "not reproduced"),  # a minimum only falls
        ("min", UP, None, 0.6, "not tested"),
        ("min", DOWN, None, 0.4, "reproduced"),
        ("mean", UP, None, 0.4, "not tested"),  # a mean goes either way
    ],
)
def test_few_runs_decide_what_more_runs_could_not_change(make_record, statistic, bounds, partly, accuracy, verdict):
    asked = claim(statistic=statistic, reproduced=bounds, partly=partly, min_runs=2)
    assert judge(asked, [make_record(accuracy=accuracy)], []).verdict == verdict


def test_runs_that_suggested_a_claim_do_not_count_for_it(make_record):
    records = [make_record(seed=seed, accuracy=0.2 * seed) for seed in range(4)]
    found = judge(claim(first_seed=2), records, [])
    assert (found.runs, found.value) == (2, pytest.approx(0.5))


def test_a_claim_is_of_the_paper_or_of_the_book():
    assert claim(source="Dupont 2018, section 3").of_the_paper
    assert not claim(source="our question; the paper reports one run").of_the_paper
    sources = {judgement.claim.source for judgement in claims.judge_all()}
    assert all(source.startswith(("Dupont 2018", "our ", "follows from ")) for source in sources)


def test_failed_and_changed_runs_are_not_evidence(make_record):
    failed = replace(make_record(), status="failed", test=None, train=None, error="broken")
    changed = replace(make_record(), name="mnist-seed0-12345678")
    assert judge(claim(), [failed, changed], []).runs == 0


def test_rank_correlation(make_record):
    records = [
        make_record(seed=i, accuracy=accuracy, reconstruction=loss)
        for i, (accuracy, loss) in enumerate([(0.4, 160.0), (0.6, 158.0), (0.9, 150.0)])
    ]
    asked = claim(
        metric=["reconstruction", "accuracy"], statistic="rank_correlation", reproduced=Bounds(at_most=-0.5), min_runs=3
    )
    found = judge(asked, records, [])
    assert found.value == pytest.approx(-1)
    # One of six orders: of three runs chance gives a perfect one too often.
    assert (found.p, found.verdict) == (pytest.approx(1 / 6), "not reproduced")
    more = [
        make_record(seed=3, accuracy=0.95, reconstruction=140.0),
        make_record(seed=4, accuracy=0.3, reconstruction=170.0),
    ]
    found = judge(asked, records + more, [])
    assert (found.p, found.verdict) == (pytest.approx(1 / 120), "reproduced")
    assert claims.show_around(found) == "p = 0.0083"
    wrong_way = replace(asked, reproduced=Bounds(at_least=0.5))
    assert judge(wrong_way, records + more, []).p == pytest.approx(1.0)


def test_a_halved_population_drops_the_worse_by_its_objective(make_record):
    records = []
    for seed in range(8):
        record = make_record(seed=seed, accuracy=0.1 * (seed + 1))
        curve = [200.0 - seed] * 8  # the higher the seed, the lower the loss, from the first epoch on
        curves = {"step": list(range(1, 9)), "reconstruction": curve, "kl_z": [[0.0]] * 8, "kl_c": [[0.0]] * 8}
        records.append(replace(record, curves=curves))
    halved = claim(metric="accuracy", statistic="halved", min_runs=8)
    found = judge(halved, records, [])
    assert found.value == pytest.approx(np.mean([0.1 * (max(four) + 1) for four in combinations(range(8), 4)]))
    assert found.verdict != "not tested"
    assert judge(halved, records[:7], []).verdict == "not tested"  # too few
    assert judge(halved, records[:3], []).value is None  # no population
    with pytest.raises(ValueError, match="of one recipe"):
        claim(metric="accuracy", statistic="halved", min_runs=4)


def test_what_is_chosen_is_what_the_lowest_loss_has(make_record):
    accuracies, losses = (
        [0.9, 0.4, 0.6, 0.5, 0.7, 0.3, 0.2, 0.8],
        [148.0, 150.0, 151.0, 147.0, 152.0, 153.0, 154.0, 155.0],
    )
    records = [
        make_record(seed=i, accuracy=accuracy, reconstruction=loss)
        for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True))
    ]
    chosen = claim(metric=["reconstruction", "accuracy"], statistic="chosen", min_runs=16)
    assert judge(chosen, records, []).value == pytest.approx(0.5)
    assert judge(chosen, records, []).spread == (0.2, 0.9)
    assert judge(chosen, records, []).verdict == "not tested"  # one choice, and its luck
    assert judge(chosen, records[:7], []).value is None
    again = [replace(r, name=f"mnist-seed{i}", config=replace(r.config, seed=i)) for i, r in enumerate(records, 8)]
    found = judge(chosen, [*records, *again], [])
    assert (found.runs, found.verdict) == (16, "reproduced")
    assert found.interval is None  # sixteen runs make two choices that share none: too few to tell their luck
    # A ninth run with the lowest loss of all is drawn in eight of nine choices of eight.
    best = make_record(seed=8, accuracy=1.0, reconstruction=100.0)
    assert judge(chosen, [*records, best], []).value == pytest.approx((8 * 1.0 + 0.5) / 9)
    with pytest.raises(ValueError, match="a choice is among 8 runs"):
        claim(metric=["reconstruction", "accuracy"], statistic="chosen", min_runs=8)
    with pytest.raises(ValueError, match="have two metrics"):
        claim(metric="accuracy", statistic="chosen", min_runs=16)


def test_a_value_comes_with_its_interval_or_the_range_of_the_runs(make_record):
    records = [make_record(seed=seed, accuracy=0.5 + seed / 40) for seed in range(9)]
    few, many = (judge(claim(), records[:n], []) for n in (3, 9))
    assert (few.interval, few.spread) == (None, (0.5, 0.55))
    assert 0.5 < many.interval[0] < many.value < many.interval[1] < 0.7
    assert judge(claim(statistic="max"), records, []).interval is None
    assert claims.show_around(judge(claim(unit="share"), records[:3], [])) == "runs: 50.0% to 55.0%"
    assert claims.show_around(judge(claim(), records[:1], [])) == ""


def test_a_field_that_stands_there_twice_is_refused(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"a": {"b": 1, "b": 2}}')
    with pytest.raises(JointVAEError, match=r"r\.json has 'b' twice"):
        results.read_json(path)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"kl_z": [1.0]}, "units in kl_z"),
        ({"information": []}, "units in information"),
        ({"unit": 1}, "discrete unit 1"),
        ({"unit": -1}, "discrete unit -1"),
        ({"usage": [1.0]}, "categories"),
        ({"confusion": [[1, 1]] * 10}, "categories"),
        ({"confusion": [[1] * 10] * 2}, "classes than mnist"),
    ],
)
def test_an_evaluation_goes_with_the_latents_of_its_run(make_record, tmp_path, wrong, named):
    record = make_record()
    with pytest.raises(JointVAEError, match=named):
        replace(record, test=replace(record.test, **wrong))
    path = tmp_path / "r.json"
    results.write(path, record)
    content = json.loads(path.read_text())
    content["train"].update(wrong)
    path.write_text(json.dumps(content))
    with pytest.raises(JointVAEError, match=named):
        results.read(path)


@pytest.mark.parametrize("command", ["film", "partition", "collect"])
def test_the_name_of_a_record_leads_to_no_other_folder(make_record, tmp_path, capsys, command):
    victim = tmp_path / "x.mine.webp"
    victim.write_bytes(b"mine")
    path = tmp_path / "r.json"
    results.write(path, replace(make_record(), name="../../x"))
    option = "--out" if command == "film" else "--results"
    assert cli.main([command, str(path), option, str(tmp_path / "a" / "b")]) == 2
    assert "calls itself '../../x', but its config makes it mnist-seed0" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"r.json", "x.mine.webp"}


def test_a_population_of_unequal_curves_is_not_halved(make_record):
    curves = [{"step": [1] * n, "reconstruction": [1.0] * n, "kl_z": [[0.0]] * n, "kl_c": [[0.0]] * n} for n in (2, 3)]
    records = [replace(make_record(seed=seed), curves=curves[seed == 7]) for seed in range(8)]
    with pytest.raises(JointVAEError, match="curves of different lengths"):
        judge(claim(metric="accuracy", statistic="halved", min_runs=8), records, [])


def test_a_mean_says_if_its_interval_has_the_limit_on_both_sides(make_record):
    records = [make_record(seed=seed, accuracy=0.5 + seed / 40) for seed in range(9)]
    near, far, partly = (
        judge(claim(unit="share", reproduced=Bounds(at_least=limit), partly=Bounds(at_least=lower)), records, [])
        for limit, lower in ((0.61, 0.2), (0.3, 0.2), (0.9, 0.59))
    )
    assert (near.open, far.open, partly.open) == (0.61, None, 0.59)
    assert claims.show_around(near).endswith("%, on both sides of 61.0%")
    assert "sides" not in claims.show_around(far)


def test_each_p_comes_also_as_one_of_all_that_the_ledger_tests(tmp_path, make_record):
    for folder in ("runs", "sweeps", "reference"):
        (tmp_path / folder).mkdir()
    for seed in range(5):
        record = make_record(seed=seed, accuracy=0.5 + seed / 10, reconstruction=160.0 - seed)
        results.write(tmp_path / "runs" / f"{record.name}.json", record)
    asked = (
        "- {id: %s, claim: x, source: ours, criterion: y, recipe: mnist, metric: [reconstruction, accuracy], "
        "statistic: rank_correlation, min_runs: %d, reproduced: {at_most: -0.5}}\n"
    )
    (tmp_path / "claims.yml").write_text(asked % ("a", 5) + asked % ("b", 5) + asked % ("waits", 6))
    first, second, waits = claims.judge_all(tmp_path)
    assert first.p == pytest.approx(1 / 120)
    assert (first.shared_p, second.shared_p) == (pytest.approx(2 / 120), pytest.approx(2 / 120))
    assert (waits.verdict, waits.shared_p) == ("not tested", None)  # it is no test yet
    assert claims.show_around(first) == "p = 0.0083, shared 0.017"


def test_over_several_settings_chance_goes_by_orders_within_each_seed(tmp_path, make_record):
    settings = {f"{epochs}": {"epochs": epochs} for epochs in (1, 2, 3)}
    sweep = sweeps.Sweep(question="x", recipe="mnist", seeds=[0, 1], settings=settings)
    records = [
        replace(make_record(accuracy=0.3 + 0.1 * i, reconstruction=160.0 - i), config=config, name=config.run_name)
        for i, config in enumerate(sweep.configs())
    ]
    asked = claim(
        recipe=None,
        sweep="epochs",
        settings=list(settings),
        metric=["reconstruction", "accuracy"],
        statistic="rank_correlation",
        reproduced=Bounds(at_most=-0.5),
        min_runs=6,
    )
    found = judge(asked, records, [], {"epochs": sweep})
    assert (found.value, found.p) == (pytest.approx(-1), pytest.approx(1 / 36))


def test_every_claim_that_has_evidence_names_the_section_of_the_book_that_shows_it():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (RESULTS.parent / "book").glob("*.md"))
    headings = re.findall(r"^\((sec-[\w-]+)\)=\n#+ ", text, re.MULTILINE)
    assert len(set(headings)) == len(headings)
    for row in claims.read_ledger():
        assert row.section in headings if row.metric else row.section is None


def test_the_claim_on_collapse_means_what_the_chapters_call_collapsed():
    (row,) = (row for row in claims.read_ledger() if row.id == "collapse-information")
    assert row.reproduced.at_least == pytest.approx(evaluation.COLLAPSED, abs=5e-4)


def test_what_counts_as_partly_is_said():
    silent = [row.id for row in claims.read_ledger() if (row.partly is None) == ("partly" in row.criterion)]
    assert silent == []


def test_styles_by_hand(make_evaluation):
    pure_twice = [[10, 8, 2], [1, 0, 19]]  # the first class has two categories, of 91 and 100 %
    mixed = [[10, 8, 2], [10, 0, 10]]  # now the first of them is half the other class
    unused = [[198, 1, 1], [0, 0, 2]]  # now the second of them holds less than a hundredth of the images
    evaluations = [make_evaluation(confusion=matrix, images=202) for matrix in (pure_twice, mixed, unused)]
    found = [claims.classes_with_styles(evaluation) for evaluation in evaluations]
    assert found == [1, 0, 0]


def test_overlap_by_hand(make_evaluation):
    found = make_evaluation(confusion=[[8, 2], [2, 8]])
    assert claims.overlap(found, "a", "b", ("a", "b")) == pytest.approx(0.4)
    assert claims.overlap(make_evaluation(confusion=[[5, 0], [0, 5]]), "a", "b", ("a", "b")) == 0


@pytest.mark.parametrize(
    "text",
    [
        "- id: a",
        "{}",
        "- {id: a, claim: c, source: s, criterion: k, metric: nonsense}",
        "- {id: a, claim: c, source: s, criterion: k, surprise: 1}",
        "- [",
        '- {id: a, claim: c, source: s, criterion: k, metric: "\\ud800"}',
        "!!python/object/apply:os.system ['true']",
        "- {id: a, claim: c, source: s, criterion: k}\n- {id: a, claim: c, source: s, criterion: k}",
    ],
)
def test_spoilt_ledgers_are_refused_in_one_sentence(tmp_path, text):
    path = tmp_path / "claims.yml"
    path.write_text(text)
    with pytest.raises(JointVAEError, match=re.escape(str(path))) as caught:
        claims.read_ledger(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("morsel", ["[", '{"a":', "- ", "? "])
def test_a_ledger_nested_thousands_deep_is_refused_at_once(tmp_path, morsel):
    path = tmp_path / "claims.yml"
    path.write_text(morsel * 20_000)
    started = time.process_time()
    with pytest.raises(JointVAEError, match="not readable YAML"):
        claims.read_ledger(path)
    assert time.process_time() - started < 2


# --- The committed results ---


def test_all_committed_records_are_valid():
    records = results.records()
    assert {"mnist", "fashion"} <= {record.config.recipe for record in records}
    assert {reference.name for reference in results.references()} == {"authors-mnist", "authors-fashion"}
    for record in records:
        assert record.name == record.config.run_name


def test_full_runs_are_full():
    for record in results.records():
        if record.config.recipe in ("mnist", "fashion") and claims.is_plain(record):
            assert record.curves["step"][-1] == 93_800
            assert record.test.images == 10_000
            assert sum(map(sum, record.test.confusion)) == 10_000


def test_kept_weights_are_the_recorded_ones():
    from jointvae import runs

    kept = [record for record in results.records() if (results.RESULTS / "runs" / record.checkpoint.file).exists()]
    assert kept
    for record in kept:
        assert runs.load(record, results.RESULTS / "runs").spec == record.config.latents


def test_kept_weights_evaluate_to_the_recorded_counts_on_one_thread_and_on_two():
    from jointvae import data, runs
    from jointvae.evaluation import evaluate

    if not data.folder("mnist"):
        if os.environ.get("CI") and os.environ.get("JOINTVAE_DATA"):
            pytest.fail("JOINTVAE_DATA is set, but has no MNIST, and CI must not leave this out.")
        pytest.skip("MNIST is not on this machine")
    record = results.records(recipe="mnist")[0]
    model, images = runs.load(record, results.RESULTS / "runs"), data.load("mnist", "test")
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found = evaluate(model, images)
            assert (found.confusion, found.accuracy) == (record.test.confusion, record.test.accuracy)
    finally:
        torch.set_num_threads(1)


def test_the_ledger_is_judged():
    judgements = claims.judge_all()
    assert len(judgements) >= 10
    for judgement in judgements:
        assert judgement.value is not None or judgement.verdict == "not tested"


def test_prose_quotes_facts_and_no_typed_result():
    """Every {fact} exists, and no chapter types a measured percentage: those come from the records."""
    facts = claims.facts()
    allowed = {"88.7 %", "100 %", "10 %", "5 %", "95 %"}  # the paper's figure, and definitions
    for page in (ROOT / "book").glob("*.md"):
        text = page.read_text()
        for name in re.findall(r"\{fact\}`([^`|]+)", text):
            assert name in facts, f"{page.name} quotes {name}"
        prose = re.sub(r"```\{code-cell\}.*?```|\{fact\}`[^`]*`", "", text, flags=re.DOTALL)
        typed = {match.strip() for match in re.findall(r"\d[\d.]* ?%", prose)} - allowed
        assert not typed, f"{page.name} types {typed}"


def test_the_book_shows_the_run_of_lowest_loss_or_says_that_its_weights_are_missing(make_record, monkeypatch, tmp_path):
    monkeypatch.setattr(book, "RESULTS", tmp_path)
    (tmp_path / "runs").mkdir()
    found = {}
    for seed, loss in enumerate((150.0, 140.0, 145.0)):
        record = make_record(seed=seed)
        name = f"{record.name}.safetensors"
        found[record.name] = replace(record, scores={"reconstruction": loss}, checkpoint=Checkpoint(name, "00"))
    monkeypatch.setattr(results, "records", lambda recipe: list(found.values()))
    (tmp_path / "runs" / "mnist-seed0.safetensors").touch()
    with pytest.raises(JointVAEError, match=r"shows mnist-seed1.*weights are not in"):
        book.chosen_run("mnist")
    (tmp_path / "runs" / "mnist-seed1.safetensors").touch()
    assert book.chosen_run("mnist").name == "mnist-seed1"
