"""What the chapters and `make reproduce` need: tiers, the reader's own runs, and the stamp under every page."""

import json
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from jointvae import claims, data, results, runs, structure, sweeps, training
from jointvae.claims import Judgement
from jointvae.errors import JointVAEError
from jointvae.evaluation import ACTIVE, Evaluation
from jointvae.files import write_atomic
from jointvae.results import RESULTS, Record, Reference

RUNS = structure.RUNS  # the reader's own records
TIERS = ("smoke", "cpu", "paper")
SEEDS = {"cpu": 1, "paper": 8}  # runs of each recipe
FALLBACK = RUNS / "DATA_FALLBACK"  # holds the sentence that the front page shows when MNIST can't be had


def choose_tier(name: str) -> str:
    """The tier of that name; `auto` is `paper` with a GPU and `cpu` without.

    Raises:
        JointVAEError: if there is no such tier.
    """
    if name == "auto":
        return "paper" if torch.cuda.is_available() else "cpu"
    if name not in TIERS:
        raise JointVAEError(f"There is no tier '{name}'; choose one of {', '.join(TIERS)} or auto.")
    return name


def check_parameters(TIER: object, SEED: object) -> None:
    """The first act of every chapter: refuse parameters that it can't run with.

    Raises:
        JointVAEError: with one sentence that names the parameter, its range and its value.
    """
    if TIER not in TIERS:
        raise JointVAEError(f"The parameter TIER must be {', '.join(TIERS[:-1])} or {TIERS[-1]}, not {TIER!r}.")
    if type(SEED) is not int or not 0 <= SEED <= training.LARGEST_SEED:
        raise JointVAEError(f"The parameter SEED must be from 0 to {training.LARGEST_SEED:,}, not {SEED!r:.60}.")


def plan(tier: str, seed: int) -> list[training.Config]:
    """The runs that a tier asks for before the chapters are executed."""
    if tier == "smoke":
        return []  # the chapters train the small recipe themselves, see reader_run
    return [config for name in ("mnist", "fashion") for config in runs.seeds(training.recipe(name), seed, SEEDS[tier])]


def fallback_sentence() -> str | None:
    """What to tell the reader if the last `reproduce` had to do without MNIST, else None."""
    return FALLBACK.read_text(encoding="utf-8").strip() if FALLBACK.exists() else None


def reproduce(tier: str, seed: int, say: runs.Say) -> list[Record]:
    """Train what the tier asks for, skipping what is recorded, going on with what was interrupted.

    Where MNIST or FashionMNIST can't be had it goes on with the digits that scikit-learn carries, and says so loudly.
    """
    tier = choose_tier(tier)
    check_parameters(tier, seed)
    configs = plan(tier, seed)
    missing: dict[str, data.DataUnavailableError] = {}
    for name in dict.fromkeys(config.dataset for config in configs):
        say(name, "checking the data")
        try:
            data.load(name, "train")
            data.load(name, "test")
        except data.DataUnavailableError as error:
            missing[name] = error
    configs = [config for config in configs if config.dataset not in missing]
    if "mnist" in missing:
        sentence = (
            f"WITHOUT MNIST: {missing['mnist']} Your runs below were made with the 1,797 small digits of scikit-learn."
        )
        say("ATTENTION", sentence)
        if fallback_sentence() != sentence:  # an unchanged file makes no chapter run again
            write_atomic(FALLBACK, (sentence + "\n").encode())
    elif tier != "smoke":  # the smoke tier needs no MNIST, so it proves nothing about it
        FALLBACK.unlink(missing_ok=True)
    if list(missing) == ["fashion"]:
        say(
            "ATTENTION",
            f"WITHOUT FASHIONMNIST: {missing['fashion']} Its runs are left out; the book shows the recorded ones.",
        )
    if not configs:
        return []
    planned = ", ".join(config.run_name for config in configs)
    say("plan", f"{len(configs)} full trainings, less those that are recorded in {RUNS.name}/: {planned}")
    jobs = 1 if torch.cuda.is_available() else min(len(configs), torch.get_num_threads())
    return runs.sweep(configs, RUNS, "auto", jobs, say)


def reader_run(name: str, tier: str, seed: int) -> tuple[Record, Path]:
    """The reader's own run for a chapter on the recipe `name`, and the folder of its weights.

    It is the recipe itself, as `make reproduce` left it. In the smoke tier, where MNIST can't be had, or where the
    recipe has not been trained, it is the small recipe on the embedded digits, trained on the spot: the full one takes
    longer than a page may.
    """
    config = replace(training.recipe(name), seed=seed)
    if tier == "smoke" or fallback_sentence() or not (RUNS / f"{config.run_name}.json").exists():
        # Never a stored run: a book built to test the code must be made by the code as it is.
        folder = Path(tempfile.mkdtemp(prefix="jointvae-"))
        return runs.run(replace(training.recipe("digits"), seed=seed), folder), folder
    return runs.run(config, RUNS), RUNS


def chosen_run(name: str) -> Record:
    """The recorded run of a recipe that the chapters show: the lowest reconstruction loss on the training set.

    Of all that followed the recipe to the letter. The choice sees no label.

    Raises:
        JointVAEError: if no finished run of the recipe is recorded, or the weights of the chosen one are not kept.
    """
    folder = RESULTS / "runs"
    plain = [record for record in results.records(recipe=name) if record.train and claims.is_plain(record)]
    if not plain:
        raise JointVAEError(f"No run of '{name}' is recorded in {folder}.")
    chosen = min(plain, key=lambda record: record.scores["reconstruction"])
    if not (chosen.checkpoint and (folder / chosen.checkpoint.file).exists()):
        raise JointVAEError(
            f"The book shows {chosen.name}, of the runs of '{name}' the one with the lowest loss, "
            f"but its weights are not in {folder}: copy them there from where it was trained."
        )
    return chosen


def your_records(folder: Path = RUNS) -> tuple[list[Record], list[str]]:
    """The reader's own finished runs, and a sentence for each file that can't be shown."""
    found, complaints = [], []
    seen: dict[str, Path] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = results.read(path)
        except JointVAEError as error:
            complaints.append(str(error))
            continue
        first = seen.setdefault(record.config.run_name, path)
        if first != path:
            complaints.append(f"{path} is left out: {first} is a record of the same run.")
        elif record.test is None:
            complaints.append(f"{record.name} has failed: {record.error}")
        else:
            found.append(record)
    return sorted(found, key=lambda record: (record.config.dataset, record.name)), complaints


def changes(config: training.Config) -> dict[str, Any]:
    """What a config has changed against its recipe, seed and name aside: the field's path and its value."""
    published = training.RECIPES.get(config.recipe, training.Config())
    before, after = (_flat(asdict(one)) for one in (published, config))
    return {name: value for name, value in after.items() if name != "seed" and before.get(name) != value}


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def changes_text(config: training.Config) -> str:
    """What a config has changed against its recipe, for a table."""
    changed = [f"{name} = {_plain(value)}" for name, value in changes(config).items()]
    return "; ".join(changed) or "the recipe as it is"


def _plain(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def stamp(tier: str, seed: int, dataset: str, records: list[Record] | None = None) -> str:
    """A Markdown table that says what made the outputs of a page."""
    now = results.Provenance.now(runs.choose_device())
    rows = {
        "tier": tier,
        "seed": str(seed),
        "data": dataset,
        "hardware": f"{now.device}, {now.threads} thread{'s' * (now.threads != 1)}",
        "commit": _commit(now),
        "versions": f"jointvae {now.version}, torch {now.torch}, Python {now.python}",
        "made": now.started,
    }
    if records:
        rows["recorded runs"] = recorded_text(records)
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| This page was made by | |", "|:--|:--|", *lines])


def recorded_text(records: Iterable[Record]) -> str:
    """Recorded runs in a line: their seeds or names, and the command that trains them again."""
    parts = [f"{runs}, by `{command}`" for command, runs in _by_command(records).items()]
    return "; ".join([*parts, "commit and processor of each: {doc}`provenance`"])


def made_from(shown: Iterable[Record | Reference]) -> str:
    """What a figure or a table is made from, folded up: runs, commits, processors and the commands that make it again.

    Nothing for an empty list.
    """
    shown = list({one.name: one for one in shown}.values())
    if not shown:
        return ""
    ours = [one for one in shown if isinstance(one, Record)]
    theirs = [one for one in shown if isinstance(one, Reference)]
    title = [f"{len(ours)} recorded run{'s' * (len(ours) > 1)}"] * bool(ours) + ["the author's model"] * bool(theirs)
    sittings = [sitting for run in ours for sitting in run.provenance] + [model.provenance for model in theirs]
    commits, devices = (", ".join(dict.fromkeys(map(of, sittings))) for of in (_commit, lambda sitting: sitting.device))
    lines = [f"{runs}: trained by `{command}`" for command, runs in _by_command(ours).items()]
    lines += [f"`{model.name}`: published by the author, scored by `{_scoring(model)}`" for model in theirs]
    lines += [f"commits {commits}; {devices}", "drawn from their records by `make book`"]
    return _folded(f"Made from {' and '.join(title)}", lines)


def measured_by(script: str, found: dict[str, Any]) -> str:
    """The same for what a script in `benchmarks/` has recorded, named with its options."""
    made = results.Provenance(**found["provenance"])
    lines = [f"`python benchmarks/{script} --record`", f"commit {_commit(made)}; {made.device}; {made.started[:10]}"]
    return _folded("Made from a recorded experiment", [*lines, "drawn from its file by `make book`"])


def _folded(title: str, lines: list[str]) -> str:
    bullets = "\n".join(f"- {line}" for line in lines)
    return f'<details class="made-from"><summary>{title}</summary>\n\n{bullets}\n\n</details>'


def _scoring(model: Reference) -> str:
    return f"jointvae evaluate FOLDER --authors --dataset {model.dataset} --record {model.name}"


def _by_command(records: Iterable[Record]) -> dict[str, str]:
    """The command that trains runs again, and which runs it trains, in words: a setting by its name, with its seeds.

    A run that is given twice is named once.
    """
    seeds: dict[tuple[str, str], list[int]] = {}
    files = sweeps.read_all()
    for record in {record.name: record for record in records}.values():
        recipe, seed = record.config.recipe, record.config.seed
        if claims.is_plain(record):
            command, name = f"jointvae train {recipe} --seed SEED", recipe
        else:
            asked = next((name for name, sweep in files.items() if record.config in sweep.configs()), "FILE")
            command, name = (
                f"jointvae sweep results/sweeps/{asked}.yml",
                record.name.replace(f"-seed{seed}-", "-seedN-"),
            )
        seeds.setdefault((command, name), []).append(seed)
    found: dict[str, list[str]] = {}
    for (command, name), of in seeds.items():
        found.setdefault(command, []).append(f"`{name}`, {_seeds(sorted(of))}")
    return {command: "; ".join(names) for command, names in found.items()}


def _seeds(seeds: list[int]) -> str:
    """Seeds in words; three or more in a row by the first and the last."""
    if len(seeds) > 2 and seeds == [*range(seeds[0], seeds[-1] + 1)]:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def claims_table(judgements: list[Judgement]) -> str:
    """The claims ledger as a Markdown table, a badge for each verdict."""
    lines = ["| Claim, and its test | Paper | Here | Runs | Verdict |", "|:--|--:|--:|--:|:--|"]
    for judgement in judgements:
        claim, around = judgement.claim, claims.show_around(judgement)
        more = f" {around.replace('runs', 'Runs', 1)}." if around else ""
        more += f" Evidence: {{ref}}`{claim.section}`." if claim.section else ""
        cells = [
            f"{claim.claim} ({claim.source}.) *Test: {claim.criterion}.*{more}",
            claims.show(claim.paper, claim.unit),
            claims.show(judgement.value, claim.unit),
            str(judgement.runs),
            badge(judgement.verdict),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def badge(verdict: str) -> str:
    """A verdict as a coloured word."""
    return f'<span class="verdict-{verdict.replace(" ", "-")}">{verdict}</span>'


def runs_table(rows: list[tuple[str, Evaluation]]) -> str:
    """Evaluations as a Markdown table, a row each; divergences and information in nats."""
    lines = [
        "| Run | One-to-one | Majority | NMI | KL_z | KL_c | I(x; c) | Reconstruction |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, found in rows:
        nats = [sum(found.kl_z), sum(found.kl_c), sum(found.information), found.reconstruction]
        shares = [claims.show(found.accuracy, "share"), claims.show(found.accuracy_majority, "share")]
        nmi = "–" if found.nmi is None else f"{found.nmi:.3f}"
        whole = re.sub(r"seed (\d)", "seed\N{NO-BREAK SPACE}\\1", name)  # a narrow column would break it
        lines.append("| " + " | ".join([whole, *shares, nmi, *[f"{value:.2f}" for value in nats]]) + " |")
    return "\n".join(lines)


def provenance_table(records: list[Record]) -> str:
    """Where each recorded run was made, as a Markdown table; a run that was interrupted has a line per sitting."""
    lines = ["| Run | Started (UTC) | Commit | Device | Threads | torch |", "|:--|:--|:--|:--|--:|:--|"]
    for record in records:
        for sitting in record.provenance:
            cells = [f"`{record.name}`", sitting.started[:16].replace("T", " "), _commit(sitting), sitting.device]
            lines.append("| " + " | ".join([*cells, str(sitting.threads), sitting.torch]) + " |")
    return "\n".join(lines)


def outcome_text(started: list[Record]) -> str:
    """How many of the runs that were started have finished, and how each of the others failed, in words."""
    failed = [record for record in started if record.status == "failed"]
    said = f"{len(started) - len(failed)} of {len(started)} started runs finished."
    return " ".join([said, *(f"Seed {record.config.seed} failed: {record.error}" for record in failed)])


def opening_text(record: Record) -> str:
    """When the latents of a run opened, from its curves: a sentence or two."""
    totals = {name: [sum(row) for row in record.curves[f"kl_{name}"]] for name in "zc"}
    halves = {name: record.curves[f"C_{name}"][-1] / 2 for name in "zc"}
    moved = {name: _when(_first_epoch(totals[name], ACTIVE)) for name in "zc"}
    half = {name: _when(_first_epoch(totals[name], halves[name])) for name in "zc"}
    by_unit = enumerate(zip(*record.curves["kl_z"], strict=True), start=1)
    opened = sorted((epoch, unit) for unit, kl in by_unit if (epoch := _first_epoch(kl, ACTIVE)))
    order = ", ".join(f"$z_{{{unit}}}$ {_when(epoch)}" for epoch, unit in opened)
    return (
        f"$\\mathrm{{KL}}_c$ first reaches {ACTIVE} nats {moved['c']}, $\\mathrm{{KL}}_z$ {moved['z']}; "
        f"half of its last capacity $\\mathrm{{KL}}_c$ reaches {half['c']}, $\\mathrm{{KL}}_z$ {half['z']}. "
        f"Of the {record.config.latents.z} units of $z$, {len(opened)} ever carry {ACTIVE} nats: {order}."
    )


def _first_epoch(values: Iterable[float], level: float) -> int | None:
    return next((epoch for epoch, value in enumerate(values, start=1) if value >= level), None)


def _when(epoch: int | None) -> str:
    return f"in epoch {epoch}" if epoch else "never"


def benchmark(name: str) -> dict[str, Any]:
    """What `make bench` recorded under this name.

    Raises:
        JointVAEError: if it has not been recorded.
    """
    path = RESULTS / "benchmarks" / f"{name}.json"
    if not path.exists():
        raise JointVAEError(f"There is no {path}: run `make bench`.")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def your_benchmark(name: str) -> dict[str, Any] | None:
    """What the reader's own `make bench` measured under this name, if it ran."""
    path = RUNS / "benchmarks" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _commit(now: results.Provenance) -> str:
    if now.commit is None:
        return f"not a repository, package version {now.version}"
    return f"`{now.commit[:10]}`" + (" with local changes" if now.dirty else "")
