"""Sweep files: what they ask for, what they refuse, and how records come together."""

import json
import math
from dataclasses import asdict, replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jointvae import __main__ as cli
from jointvae import claims, data, results, runs, sweeps, training, verify
from jointvae.claims import Bounds, Claim, judge
from jointvae.errors import JointVAEError
from jointvae.objectives import AnnealedCapacity, BetaVAE, SplitCapacity
from jointvae.sweeps import Sweep

FILE = {
    "question": "What does it need?",
    "recipe": "digits",
    "seeds": [3, 1],
    "settings": {"recipe": {}, "short": {"epochs": 1}, "β = 2": {"objective": {"name": "beta_vae", "beta": 2.0}}},
}


@pytest.fixture
def write(tmp_path):
    """Writes a sweep file, `FILE` with changes."""

    def write(**changes):
        path = tmp_path / "sweep.yml"
        path.write_text(yaml.safe_dump(FILE | changes, allow_unicode=True), encoding="utf-8")
        return path

    return write


def test_a_sweep_asks_for_every_setting_with_the_first_seed_before_the_second(write):
    digits = training.recipe("digits")
    kinds = [digits, replace(digits, epochs=1), replace(digits, objective=BetaVAE(2.0))]
    assert sweeps.read(write()).configs() == [replace(kind, seed=seed) for seed in (3, 1) for kind in kinds]


@given(
    gamma=st.floats(0, 1e6),
    nats=st.floats(0, 100),
    steps=st.integers(1, 10**6),
    z=st.integers(1, 20),
    c=st.lists(st.integers(2, 12), min_size=1, max_size=3),
)
def test_changes_reach_the_config_and_leave_the_rest(gamma, nats, steps, z, c):
    changes = {"objective": {"gamma": gamma, "C_z": {"end": nats, "steps": steps}}, "latents": {"z": z, "c": c}}
    config = Sweep("?", "mnist", [0], {"changed": changes}).config("changed", 7)
    mnist = training.recipe("mnist")
    assert isinstance(config.objective, SplitCapacity)
    assert (config.objective.gamma, config.objective.C_z.end, config.objective.C_z.steps) == (gamma, nats, steps)
    assert (config.latents.z, config.latents.c, config.seed) == (z, tuple(c), 7)
    assert config.objective.C_c == replace(mnist.objective.C_c, ceiling=config.latents.max_kl_c)
    assert replace(config, latents=mnist.latents, objective=mnist.objective, seed=0) == mnist


@pytest.mark.parametrize("part", ["z", "c"])
def test_one_of_the_latents_can_be_changed_alone(part):
    value = {"z": 4, "c": [5]}[part]
    latents = Sweep("?", "digits", [0], {"changed": {"latents": {part: value}}}).config("changed", 0).latents
    assert training.as_fields(replace(training.recipe("digits"), latents=latents))["latents"] == {
        **training.as_fields(training.recipe("digits"))["latents"],
        part: value,
    }


def test_a_number_that_yaml_reads_as_text_is_named(write):
    with pytest.raises(JointVAEError, match=r"learning_rate is '1e-3', where 0\.001 was expected"):
        sweeps.read(write(settings={"a": {"learning_rate": "1e-3"}}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": "imagenet"}, "no recipe 'imagenet'"),
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"seeds": []}, "at least one"),
        ({"seeds": [1, 1]}, "different"),
        ({"seeds": [True]}, "seeds"),
        ({"seeds": [-1]}, "seed must be"),
        ({"seeds": [0, 2**31]}, "seed must be"),
        ({"settings": {}}, "no setting"),
        ({"settings": {"odd": {"epoks": 3}}}, "'odd': the field epoks is unknown"),
        ({"settings": {"odd": {"epochs": "3"}}}, "epochs"),
        ({"settings": {"odd": {"epochs": 0}}}, "epochs must be above zero"),
        ({"settings": {"odd": {"objective": {"gama": 3.0}}}}, "objective.gama"),
        ({"settings": {"odd": {"objective": {"gamma": "abc"}}}}, "objective.SplitCapacity.gamma: input should be a"),
        ({"settings": {"odd": {"objective": {"name": "annealed_capacity", "gamma": 30.0}}}}, "objective.C"),
        ({"settings": {"odd": {"objective": 3}}}, "objective"),
        ({"settings": {"one": {}, "two": {"epochs": 67}}}, "'one' and 'two' are the same"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_in_one_sentence(write, changes, named, capsys):
    path = write(**changes)
    assert cli.main(["sweep", str(path), "--out", str(path.parent / "runs")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert named in said
    assert str(path) in said
    assert not (path.parent / "runs").exists()


@pytest.mark.parametrize("field", list(FILE))
def test_a_missing_field_is_named(tmp_path, field):
    path = tmp_path / "sweep.yml"
    path.write_text(json.dumps({name: value for name, value in FILE.items() if name != field}))
    with pytest.raises(JointVAEError, match=field):
        sweeps.read(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "- a",
        "[" * 20_000,
        "question: [",
        '"\\ud800"',
        "!!python/object/apply:os.getcwd []",
        "seeds: [0]\nseeds: [1]",
    ],
)
def test_what_is_no_sweep_file_is_refused(tmp_path, content):
    path = tmp_path / "sweep.yml"
    path.write_text(content)
    with pytest.raises(JointVAEError, match=r"sweep\.yml"):
        sweeps.read(path)


def test_a_setting_that_stands_there_twice_is_not_dropped_without_a_word(tmp_path):
    path = tmp_path / "sweep.yml"
    path.write_text("question: '?'\nrecipe: digits\nseeds: [0]\nsettings:\n  a: {epochs: 1}\n  a: {epochs: 2}\n")
    with pytest.raises(JointVAEError, match=r"sweep\.yml has 'a' twice: leave one of them\."):
        sweeps.read(path)


@pytest.mark.parametrize("together", [[], ["--together"], ["--jobs", "1"]])
def test_a_setting_whose_images_there_are_not_stops_the_sweep_before_it_begins(tmp_path, capsys, together):
    settings = {"good": {"epochs": 1}, "bad": {"epochs": 1, "image": [3, 32]}}
    path = tmp_path / "sweep.yml"
    path.write_text(json.dumps({"question": "?", "recipe": "digits", "seeds": [0], "settings": settings}))
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "runs"), *together]) == 2
    assert capsys.readouterr().err == "error: The data set 'digits' has 1 channel, not 3: change `image`.\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", [["--gamma", "3"], ["--seeds", "2"], ["--first-seed", "0"], ["--categories"]])
def test_a_file_and_an_option_that_say_the_same_thing_are_refused(write, option, capsys):
    assert cli.main(["sweep", str(write()), *option]) == 2
    assert option[0] in capsys.readouterr().err


@pytest.mark.parametrize("together", [[], ["--together"]])
def test_a_sweep_is_trained_once_and_found_again(write, tmp_path, monkeypatch, digits, together, capsys):
    monkeypatch.setattr(data, "load", lambda name, split, size=32: replace(digits, split=split))
    monkeypatch.setattr(runs, "sweep", lambda configs, folder, *_: [runs.run(one, folder, "cpu") for one in configs])
    quick = {"epochs": 1, "batch_size": 80}
    path = write(settings={"recipe": quick, "gamma": quick | {"objective": {"gamma": 1.0}}})
    call = ["sweep", str(path), "--out", str(tmp_path / "runs"), "--device", "cpu", *together]
    assert cli.main(call) == 0
    table = capsys.readouterr().out
    assert "gamma, seed 3" in table
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(made) == 8  # a record and the weights of each
    found = sweeps.read(path).records(tmp_path / "runs")
    assert {setting: [one.config.seed for one in records] for setting, records in found.items()} == {
        "recipe": [3, 1],
        "gamma": [3, 1],
    }
    assert found["gamma"][0].config.objective.gamma == 1.0
    assert cli.main(call) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == made


def test_what_is_not_trained_yet_is_left_out(write, tmp_path):
    assert sweeps.read(write()).records(tmp_path) == {"recipe": [], "short": [], "β = 2": []}


# --- The sweeps of the book ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(sweeps.read_all()))
def test_the_settings_of_the_book_are_compared_at_the_same_budget(name):
    configs = sweeps.read_all()[name].configs()
    assert len({(c.dataset, c.epochs, c.image) for c in configs}) == 1  # so all see as many images
    if name != "beyond":  # which asks for these
        assert len({(c.batch_size, c.learning_rate, c.tau) for c in configs}) == 1


def test_ramps_take_the_same_share_of_the_steps_whatever_the_batch():
    sweep = sweeps.read_all()["beyond"]
    plain, wide = (sweep.config(name, 0) for name in ("recipe", "batch of 256, twice the learning rate"))
    assert wide.batch_size * wide.objective.C_z.steps == plain.batch_size * plain.objective.C_z.steps
    assert wide.batch_size * wide.objective.C_c.steps == plain.batch_size * plain.objective.C_c.steps


def test_the_shared_capacity_ends_where_the_two_end_together():
    sweep = sweeps.read_all()["objectives"]
    shared, split = (sweep.config(setting, 0).objective for setting in ("shared capacity", "split capacity"))
    assert isinstance(shared, AnnealedCapacity)
    assert isinstance(split, SplitCapacity)
    assert shared.gamma == split.gamma
    assert shared.C.steps == split.C_z.steps
    last = sum(split.capacities(10**6).values())
    assert shared.C(10**6) == pytest.approx(last, abs=1e-12)
    assert last == pytest.approx(5 + math.log(10), abs=1e-12)


def test_a_short_recipe_is_the_recipe_but_for_its_length():
    for name in ("mnist", "fashion"):
        whole, short = training.recipe(name), training.recipe(f"{name}-short")
        share = short.epochs / whole.epochs
        assert short.objective.C_z.steps == share * whole.objective.C_z.steps
        assert short.objective.C_c.steps == share * whole.objective.C_c.steps
        assert short.epochs * math.ceil(60_000 / short.batch_size) >= 30_000
        same = replace(short, recipe=name, epochs=whole.epochs, objective=whole.objective)
        assert same == whole


# --- Claims on a sweep -----------------------------------------------------------------------------------------------

SWEEP = Sweep("?", "mnist-short", [0, 1], {"plain": {}, "weak": {"objective": {"gamma": 1.0}}})


def on_a_sweep(**changes) -> Claim:
    fields = {"id": "x", "claim": "c", "source": "s", "criterion": "k", "sweep": "s", "settings": ["weak"]}
    return Claim(**fields | {"metric": "accuracy", "reproduced": Bounds(at_least=0.5)} | changes)


@pytest.fixture
def recorded(make_record):
    """A record for every run of `SWEEP`: 0.9 for the plain ones, 0.2 and 0.3 for the others."""
    accuracy = {("plain", 0): 0.9, ("plain", 1): 0.9, ("weak", 0): 0.2, ("weak", 1): 0.3}
    made = []
    for (setting, seed), value in accuracy.items():
        config = SWEEP.config(setting, seed)
        made.append(replace(make_record("mnist-short", accuracy=value), config=config, name=config.run_name))
    return made


def test_a_claim_on_a_sweep_is_judged_by_the_settings_that_it_names(recorded):
    found = judge(on_a_sweep(), recorded, [], {"s": SWEEP})
    assert (found.runs, found.value, found.verdict) == (2, pytest.approx(0.25), "not reproduced")
    found = judge(on_a_sweep(settings=["plain"]), recorded, [], {"s": SWEEP})
    assert (found.runs, found.verdict) == (2, "reproduced")
    assert judge(on_a_sweep(settings=["plain", "weak"], statistic="min"), recorded, [], {"s": SWEEP}).value == 0.2


def test_a_claim_on_a_sweep_or_setting_that_is_not_there_is_refused(recorded):
    with pytest.raises(JointVAEError, match="'other', which has no file"):
        judge(on_a_sweep(sweep="other"), recorded, [], {"s": SWEEP})
    with pytest.raises(JointVAEError, match="no setting 'strong'"):
        judge(on_a_sweep(settings=["strong"]), recorded, [], {"s": SWEEP})


@pytest.mark.parametrize("changes", [{"recipe": "mnist"}, {"settings": []}, {"sweep": None}])
def test_a_claim_is_about_one_thing(changes):
    with pytest.raises(ValueError, match="a claim"):
        on_a_sweep(**changes)


def test_every_run_of_a_sweep_is_evidence(recorded, tmp_path):
    weak = recorded[2]
    with pytest.raises(verify.LeftOutError):
        verify.check_claim(weak, [])
    verify.check_claim(weak, [], {weak.name})


def test_verify_names_a_sweep_file_that_is_wrong(tmp_path):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "s.yml").write_text("question: only")
    (tmp_path / "claims.yml").write_text("[]")
    bad = {finding.result for finding in verify.examine(tmp_path) if finding.state == "bad"}
    assert "sweeps/s.yml" in bad


def test_the_ledger_of_the_book_can_be_judged():
    assert {j.claim.id for j in claims.judge_all()} >= {"joint-beta-vae", "single-capacity", "split-capacity"}


# --- Two records of one run ------------------------------------------------------------------------------------------


def test_records_are_collected_without_their_weights(recorded, tmp_path, capsys):
    for record in recorded:
        results.write(tmp_path / "runs" / f"{record.name}.json", record)
    files = [str(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert cli.main(["collect", *files, "--results", str(tmp_path / "results")]) == 0
    assert "4 of 4" in capsys.readouterr().out
    found = results.records(tmp_path / "results" / "runs")
    assert sorted(one.name for one in found) == sorted(one.name for one in recorded)
    assert cli.main(["collect", *files, "--results", str(tmp_path / "results")]) == 0
    assert "0 of 4" in capsys.readouterr().out


def test_a_record_that_disagrees_is_not_collected_and_nothing_else_is(recorded, tmp_path, capsys):
    there = tmp_path / "results" / "runs" / f"{recorded[1].name}.json"
    results.write(there, recorded[1])
    before = there.read_bytes()
    other = replace(recorded[1], test=replace(recorded[1].test, accuracy=0.1))
    for record in (recorded[0], other):
        results.write(tmp_path / "runs" / f"{record.name}.json", record)
    files = [str(path) for path in sorted((tmp_path / "runs").iterdir())]
    assert cli.main(["collect", *files, "--results", str(tmp_path / "results")]) == 2
    said = capsys.readouterr().err
    assert "test.accuracy" in said
    assert there.name in said
    assert said.count("\n") == 1
    assert there.read_bytes() == before
    assert [path.name for path in there.parent.iterdir()] == [there.name]


def test_the_time_that_a_run_took_is_no_disagreement(recorded, tmp_path):
    first = recorded[0]
    assert results.disagreement(first, replace(first, seconds=9.0, images_per_second=1.0, checkpoint=None)) is None
    assert "accuracy" in results.disagreement(first, replace(first, test=replace(first.test, accuracy=0.1)))


def test_two_files_of_one_run_are_named(recorded, tmp_path):
    results.write(tmp_path / "a.json", recorded[0])
    results.write(tmp_path / "b.json", recorded[0])
    with pytest.raises(JointVAEError, match=r"a\.json and .*b\.json are records of the same run: "):
        results.records(tmp_path)
    results.write(tmp_path / "b.json", replace(recorded[0], test=replace(recorded[0].test, nmi=0.1)))
    with pytest.raises(JointVAEError, match=r"disagree \(.*test\.nmi"):
        results.records(tmp_path)


def test_a_record_of_another_schema_is_named(recorded, tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(asdict(recorded[0]) | {"schema": 99}))
    with pytest.raises(JointVAEError, match=r"r\.json has schema 99"):
        results.collect([path], tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_record_under_another_runs_name_is_not_collected(recorded, tmp_path):
    results.write(tmp_path / "edited.json", recorded[0])
    content = json.loads((tmp_path / "edited.json").read_text())
    for name in ("../../escaped", "digits-seed0", "a\0b"):
        (tmp_path / "edited.json").write_text(json.dumps(content | {"name": name}))
        with pytest.raises(JointVAEError, match=r"calls itself .*nothing was changed"):
            results.collect([tmp_path / "edited.json"], tmp_path / "results")
        assert not (tmp_path / "results").exists()


def test_other_latents_end_C_c_where_they_can_carry_no_more():
    capped = {"latents": {"c": [10, 2]}, "objective": {"C_c": {"ceiling": 1.0}}}
    sweep = Sweep("?", "digits", [0], {"two": {"latents": {"c": [10, 2]}}, "capped": capped, "recipe": {}})
    ceilings = {setting: sweep.config(setting, 0).objective.C_c.ceiling for setting in sweep.settings}
    assert ceilings == pytest.approx({"two": math.log(20), "capped": 1.0, "recipe": math.log(10)})
    by_command = cli.configure(cli.parser().parse_args(["train", "digits", "--categories", "10", "2"]))
    assert sweep.config("two", 0) == by_command


@pytest.mark.parametrize(
    ("setting", "sentence"), [({"seed": 5}, "its seeds stand in"), ({"dataset": "chairs"}, "no data set 'chairs'")]
)
def test_a_setting_is_looked_at_before_anything_is_trained(setting, sentence):
    with pytest.raises(ValueError, match=sentence):
        sweeps.Sweep("?", "digits", [0], {"good": {}, "typo": setting})
