"""`python -m jointvae`, or `jointvae` where it is installed: train, evaluate, reproduce, look after the machine.

Exit status: 0 done; 2 bad input, with one sentence that says what to do; 130 interrupted, and the same command goes on;
141 nobody reads the output any more; 1 a bug, with a traceback.
"""

import argparse
import io
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jointvae.errors import JointVAEError
from jointvae.structure import RUNS

if TYPE_CHECKING:  # torch takes seconds to import; --help need not wait for it
    from jointvae.evaluation import Evaluation
    from jointvae.model import JointVAE
    from jointvae.training import Config

PROGRAM = "jointvae" if Path(sys.argv[0]).stem == "jointvae" else "python -m jointvae"
LAYOUT = partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
ENGINES = ("local", "ray")
RECIPE = (
    "mnist, fashion or digits; mnist-short, fashion-short: a third of the epochs; NAME-augmented: c is read from "
    "transformed images"
)
CHANGES: dict[str, dict[str, Any]] = {  # to a recipe, on the command line; a sweep file takes the place of all of them
    "--dataset": {"help": "mnist, fashion or digits"},
    "--epochs": {"type": int, "help": "passes over the training set"},
    "--batch-size": {"type": int, "help": "images per step"},
    "--learning-rate": {"type": float, "help": "of Adam"},
    "--tau": {"type": float, "help": "temperature of the relaxed samples"},
    "--gamma": {"type": float, "help": "weight of the capacity terms"},
    "--c-z": {"type": float, "metavar": "NATS", "help": "final capacity of z"},
    "--c-c": {"type": float, "metavar": "NATS", "help": "final capacity of c"},
    "--z": {"type": int, "metavar": "UNITS", "help": "units of z (0 for none)"},
    "--categories": {"type": int, "nargs": "*", "metavar": "N", "help": "categories of each c (none: no c)"},
    "--image-size": {"type": int, "metavar": "PIXELS", "help": "32 or 64"},
    "--precision": {"metavar": "TYPE", "help": "of the layers: float32, or bfloat16 (faster if the processor has it)"},
}
EXAMPLES = f"""\
examples:
  {PROGRAM} train mnist --seed 3      one run of the paper's recipe
  {PROGRAM} train digits --epochs 20  on data that comes along
  {PROGRAM} claims                    claims of the paper, tested
  {PROGRAM} doctor                    is everything there?

exit status:
  0    done
  2    bad input, or something is missing: one sentence says what to do
  130  interrupted (Ctrl-C): the same command goes on
  1    a bug: the traceback says where
"""


class _Parser(argparse.ArgumentParser):
    """One line for what is wrong, as for all bad input; and whole options only: a new one would break short ones."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Say it and exit with status 2."""
        self.exit(2, f"error: {message:.200}; `{self.prog} --help` says what it takes.\n")


def parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """The command line."""
    top = _Parser(
        prog=program,
        description="Train, evaluate and reproduce JointVAE (Dupont 2018).",
        epilog=EXAMPLES,
        formatter_class=LAYOUT,
    )
    commands = top.add_subparsers(dest="command", metavar="command")

    train = _command(
        commands,
        "train",
        "train one run of a recipe and record it",
        "train mnist --seed 3",
        "train digits --categories 10 2 --z 4",
        "train mnist --c-z 10 --c-c 2.3 --out elsewhere",
    )
    _recipe_options(train, RECIPE)
    train.add_argument("--seed", type=int, default=0, help="decides weights, noise and order (default 0)")
    train.add_argument("--film", action="store_true", help="keep a picture of what each latent does after every epoch")

    sweep = _command(
        commands,
        "sweep",
        "train many seeds of a recipe, or what a sweep file asks for, side by side",
        "sweep mnist --seeds 8 --jobs 2",
        "sweep results/sweeps/objectives.yml",
        "sweep mnist --seeds 32 --together",
        "sweep digits --gamma 20 --first-seed 10",
        "sweep mnist --seeds 1000 --engine ray --out /shared/runs",
    )
    _recipe_options(sweep, f"{RECIPE}; or a sweep file (.yml)")
    sweep.add_argument("--first-seed", type=int, help="the others follow it (default 0)")
    sweep.add_argument("--seeds", type=int, help="how many (default 8)")
    sweep.add_argument("--jobs", type=int, help="runs at a time (default 2; with ray, as many as find room)")
    sweep.add_argument("--together", action="store_true", help="all seeds as one batched model, meant for a GPU")
    sweep.add_argument(
        "--engine",
        metavar="NAME",
        default="local",
        help="local (default), or ray: a cluster; --out may be a URL then",
    )
    sweep.add_argument(
        "--gpus-per-run", type=float, metavar="N", default=0.0, help="with ray: 1, or a share of one (default 0)"
    )

    collect = _command(
        commands,
        "collect",
        "copy records of runs into a results folder",
        "collect runs/mnist-short-*.json",
    )
    collect.add_argument("records", type=Path, nargs="+", help="JSON files that training left; weights stay there")
    collect.add_argument("--results", type=Path, help="a results folder (default: the book's)")

    partition = _command(
        commands,
        "partition",
        "keep which category each test image falls into, to compare runs",
        "partition runs/mnist-seed*.json",
    )
    partition.add_argument("records", type=Path, nargs="+", help="JSON files with their weights beside them")
    partition.add_argument("--results", type=Path, help="a results folder (default: the book's)")

    film = _command(
        commands,
        "film",
        "make the film of a run that was trained with --film",
        "film runs/mnist-seed2.json",
    )
    film.add_argument("record", type=Path, help="the run's JSON, with the folder NAME.film beside it")
    film.add_argument("--out", type=Path, help="folder of the films (default: results/films/ of the project)")

    evaluate = _command(
        commands,
        "evaluate",
        "score a trained model on a data set",
        "evaluate runs/mnist-seed3.safetensors --dataset mnist",
        "evaluate authors/mnist --authors --dataset mnist",
    )
    evaluate.add_argument("model", type=Path, help="a .safetensors file, or with --authors a model.pt or its folder")
    evaluate.add_argument("--dataset", required=True, help="mnist, fashion or digits")
    evaluate.add_argument("--split", help="train or test (default)")
    evaluate.add_argument("--authors", action="store_true", help="the file is a state dict of the paper's author")
    evaluate.add_argument("--record", metavar="NAME", help="with --authors: keep the result as results/reference/NAME")

    reproduce = _command(
        commands,
        "reproduce",
        "get the data and train what a tier of the book needs",
        "reproduce",
        "reproduce --tier cpu --seed 1",
    )
    reproduce.add_argument("--tier", default="auto", help="smoke, cpu, paper or auto (default: by the hardware)")
    reproduce.add_argument("--seed", type=int, default=0, help="of the first run (default 0)")

    claims = _command(
        commands,
        "claims",
        "print every claim with its verdict by the book's runs, and by yours",
        "claims",
        "claims --results results",
    )
    claims.add_argument("--results", type=Path, help="a results folder (default: the book's, and your runs/ beside it)")

    verify = _command(
        commands,
        "verify",
        "check every recorded result: schema, claim, weights, accuracy",
        "verify",
        "verify --results results",
    )
    verify.add_argument("--results", type=Path, help="a results folder (default: the book's)")

    export = _command(
        commands,
        "export",
        "write a model for the browser and as ONNX",
        "export results/runs/mnist-seed0.safetensors",
        "export runs/digits-seed3.safetensors --name digits",
    )
    export.add_argument("model", type=Path, help="a .safetensors file")
    export.add_argument("--out", type=Path, default=Path("exported"), help="folder of the files (default exported/)")
    export.add_argument("--name", help="of the files (default: the model's)")
    export.add_argument("--record", type=Path, help="of the run (default: the .json file beside the model, if any)")

    _command(commands, "doctor", "check what the book needs, and say how to mend each thing", "doctor")

    completion = _command(
        commands,
        "completion",
        "print a script that completes the command jointvae in a shell",
        "completion bash >> ~/.bash_completion",
        "completion zsh > ~/.zfunc/_jointvae",
        "completion fish > ~/.config/fish/completions/jointvae.fish",
    )
    completion.add_argument("shell", help="bash, zsh or fish")
    return top


def _command(
    commands: "argparse._SubParsersAction[_Parser]", name: str, purpose: str, *examples: str
) -> argparse.ArgumentParser:
    """A subcommand whose help ends with examples: each is what a reader types after the program's name."""
    return commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog="\n".join(["examples:", *(f"  {PROGRAM} {example}" for example in examples)]),
        formatter_class=LAYOUT,
    )


def _recipe_options(command: argparse.ArgumentParser, recipe: str) -> None:
    command.add_argument("recipe", help=recipe)
    command.add_argument("--out", default=str(RUNS), help="folder of the records (default: runs/ of the project)")
    command.add_argument("--device", default="auto", help="cpu, cuda, … (default: the GPU where there is one)")
    change = command.add_argument_group("changes to the recipe (the run gets a name of its own)")
    for option, settings in CHANGES.items():
        change.add_argument(option, **settings)


def configure(options: argparse.Namespace) -> "Config":
    """The recipe with the changes that the command line asks for.

    Raises:
        JointVAEError: if a change makes no sense, or does not go with the objective.
    """
    from dataclasses import replace

    from jointvae import training
    from jointvae.data import DATASETS
    from jointvae.latents import LatentSpec
    from jointvae.model import ImageShape
    from jointvae.objectives import SplitCapacity

    config = training.recipe(options.recipe)
    if options.dataset is not None and options.dataset not in DATASETS:
        raise JointVAEError(f"There is no data set '{options.dataset}'; choose one of {', '.join(DATASETS)}.")
    names = ("dataset", "epochs", "batch_size", "learning_rate", "tau", "precision")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    spec = config.latents
    latents = LatentSpec(
        spec.z if options.z is None else options.z, spec.c if options.categories is None else tuple(options.categories)
    )
    config = training.with_latents(config, latents)
    image = config.image if options.image_size is None else ImageShape(config.image.channels, options.image_size)
    objective = config.objective
    assert isinstance(objective, SplitCapacity), "every recipe has the paper's objective"
    C_z = objective.C_z if options.c_z is None else replace(objective.C_z, end=options.c_z)
    C_c = objective.C_c if options.c_c is None else replace(objective.C_c, end=options.c_c)
    gamma = objective.gamma if options.gamma is None else options.gamma
    return replace(config, image=image, objective=replace(objective, gamma=gamma, C_z=C_z, C_c=C_c), **changes)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or a file that can't show a character is no reason to end
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    if options.command is None:
        parser().print_help(sys.stderr)
        return 2
    try:
        COMMANDS[options.command](options)
        if sys.stdout:  # there is none if whoever started us has closed it
            sys.stdout.flush()  # here, where a reader that has left is no bug
    except JointVAEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "jointvae").partition(".")[0] == "jointvae":  # one of our own is missing: a bug
            raise
        way_out = "`make env` installs all that is needed into .venv, whose Python is .venv/bin/python"
        print(f"error: the package '{error.name}' is missing; {way_out}.", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads our output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries once more at its end
        return 141
    except OSError as error:
        print(
            f"error: {error.filename or 'a file, or what this command prints to'}: {error.strerror or error}.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        goes_on = "; the same command goes on from the last finished epoch" if options.command in TRAINING else ""
        print(f"\nInterrupted{goes_on}.", file=sys.stderr)
        return 130
    return 0


def _train(options: argparse.Namespace) -> None:
    from dataclasses import replace

    config = replace(configure(options), seed=options.seed)
    from jointvae import runs
    from jointvae.terminal import Display, runs_table

    if "://" in options.out:
        raise JointVAEError("A URL as --out is for a cluster: use `sweep` with --engine ray.")
    folder = Path(options.out)
    with Display() as display:
        say = partial(display.say, config.run_name)
        record = runs.run(config, folder, options.device, say, options.film, wait=False)
    display.console.print(runs_table([record]))
    display.console.print(f"Recorded in {folder / record.name}.json.", highlight=False, markup=False, soft_wrap=True)


def _sweep(options: argparse.Namespace) -> None:
    from jointvae import runs, sweeps
    from jointvae.terminal import Display, runs_table

    if any(given is not None and given < 1 for given in (options.seeds, options.jobs)):
        raise JointVAEError("--seeds and --jobs must be 1 or more.")
    if options.engine not in ENGINES:
        raise JointVAEError(f"There is no engine '{options.engine}'; choose one of {', '.join(ENGINES)}.")
    if options.together and options.jobs is not None:
        raise JointVAEError("--together trains all seeds in one process: leave out --jobs.")
    if options.engine == "ray" and options.together:
        raise JointVAEError("--together trains in one process, --engine ray on many machines: choose one.")
    if not 0 <= options.gpus_per_run < float("inf"):
        raise JointVAEError("--gpus-per-run must be 0 or more.")
    if options.engine == "local" and (options.gpus_per_run or "://" in options.out):
        raise JointVAEError("--gpus-per-run and a URL as --out are for a cluster: add --engine ray.")
    if options.recipe.endswith(sweeps.FILES):
        configs, names = _asked_by_file(options)
    else:
        configs = runs.seeds(configure(options), options.first_seed or 0, 8 if options.seeds is None else options.seeds)
        names = [config.run_name for config in configs]
    with Display() as display:
        if options.engine == "ray":
            from jointvae import cluster

            records = cluster.sweep(
                configs, options.out, options.device, options.jobs, display.say, options.gpus_per_run
            )
        elif options.together:
            records = runs.sweep_together(configs, Path(options.out), options.device, display.say)
        else:
            records = runs.sweep(configs, Path(options.out), options.device, options.jobs or 2, display.say)
    display.console.print(runs_table(records, names))


def _asked_by_file(options: argparse.Namespace) -> tuple[list["Config"], list[str]]:
    """The configs that a sweep file asks for, and what to call their runs."""
    from jointvae import sweeps

    for option in (*CHANGES, "--seeds", "--first-seed"):
        if getattr(options, option[2:].replace("-", "_")) is not None:
            raise JointVAEError(f"{options.recipe} says what to train: leave out {option}, or change the file.")
    sweep = sweeps.read(Path(options.recipe))
    names = [f"{setting}, seed {seed}" for seed in sweep.seeds for setting in sweep.settings]
    return sweep.configs(), names


def _collect(options: argparse.Namespace) -> None:
    from jointvae import results

    folder = (options.results or results.RESULTS) / "runs"
    new = results.collect(options.records, folder)
    print(f"{len(new)} of {len(options.records)} records are new in {folder}.")


def _partition(options: argparse.Namespace) -> None:
    from jointvae import partitions, results

    folder = (options.results or results.RESULTS) / "partitions"
    new = partitions.add(options.records, folder)
    print(f"{len(new)} of {len(options.records)} partitions are new in {folder}.")


def _film(options: argparse.Namespace) -> None:
    from jointvae import films

    print(f"The film is {films.make(options.record, options.out or films.FILMS)}.")


def _evaluate(options: argparse.Namespace) -> None:
    import json
    from dataclasses import asdict

    from jointvae import checkpoints

    if options.record is not None:
        _record_reference(options)
        return
    load = checkpoints.load_authors if options.authors else checkpoints.load_model
    split = "test" if options.split is None else options.split
    print(json.dumps(asdict(_scores(load(options.model), options.dataset, split)), indent=1))


def _scores(model: "JointVAE", dataset: str, split: str) -> "Evaluation":
    from jointvae import data
    from jointvae.evaluation import evaluate

    found = data.load(dataset, split, model.image.size)
    if found.images.shape[1] != model.image.channels:
        raise JointVAEError(f"The model takes {model.image.channels} channels, '{dataset}' has 1.")
    return evaluate(model, found)


def _record_reference(options: argparse.Namespace) -> None:
    from jointvae import checkpoints, data, results
    from jointvae.files import check_name, sha256

    if not options.authors:
        raise JointVAEError("--record keeps what a model of the paper's author scores: add --authors, or leave it out.")
    if options.split is not None:
        raise JointVAEError("--record keeps the scores on both splits: leave out --split.")
    check_name(options.record)
    model = checkpoints.load_authors(options.model)
    file = options.model / "model.pt" if options.model.is_dir() else options.model
    path, digest = results.RESULTS / "reference" / f"{options.record}.json", sha256(file)
    if path.exists():
        there: results.Reference = results.read(path, results.Reference)
        if (there.dataset, there.sha256) != (options.dataset, digest):
            raise JointVAEError(
                f"{path} holds another model or data set: nothing was changed; choose another name, or move it away."
            )
    train, test = (_scores(model, options.dataset, split) for split in data.SPLITS)
    reference = results.Reference(
        name=options.record,
        source="trained model published by the paper's author with the paper's code",
        dataset=options.dataset,
        sha256=digest,
        provenance=results.Provenance.now(),
        train=train,
        test=test,
    )
    results.write(path, reference)
    print(f"Recorded in {path}.")


def _reproduce(options: argparse.Namespace) -> None:
    from jointvae import book
    from jointvae.terminal import Display, runs_table

    with Display() as display:
        records = book.reproduce(options.tier, options.seed, display.say)
    if records:
        display.console.print(runs_table(records))


def _claims(options: argparse.Namespace) -> None:
    from rich.console import Console

    from jointvae import book, claims, results
    from jointvae.terminal import claims_table, runs_table

    folder = _results_folder(options.results)
    console, recorded = Console(), results.records(folder / "runs")
    title = f"Claims of the paper, then questions of the book, by the {len(recorded)} runs in {folder.name}/"
    console.print(claims_table(claims.judge_all(folder), title))
    console.print(runs_table(recorded))
    yours, complaints = ([], []) if options.results else book.your_records(book.RUNS)
    if yours:
        tested = claims.judge_runs(yours)
        if tested:
            console.print(
                claims_table(tested, f"The same claims by your {len(yours)} run(s) in {book.RUNS.name}/ alone")
            )
        console.print(runs_table(yours))
    for complaint in complaints:
        console.print(f"Not shown: {complaint}", highlight=False, markup=False, soft_wrap=True)


def _results_folder(named: Path | None) -> Path:
    """The results folder that a command is to read: the one that is named, or the book's.

    Raises:
        JointVAEError: if there is no such folder.
    """
    from jointvae import results

    folder = named or results.RESULTS
    if not folder.is_dir():
        raise JointVAEError(f"There is no results folder {folder}: name one that holds runs/ and claims.yml.")
    return folder


def _verify(options: argparse.Namespace) -> None:
    from rich.console import Console

    from jointvae import verify
    from jointvae.terminal import verify_table

    console = Console(highlight=False, soft_wrap=True)
    folder = _results_folder(options.results)
    findings = verify.examine(folder, lambda name: console.print(f"evaluating {name} …"))
    console.print(verify_table(findings), soft_wrap=False)
    for reason in dict.fromkeys(finding.note for finding in findings if finding.state == "left out"):
        left_out = [f"{finding.check} of {finding.result}" for finding in findings if finding.note == reason]
        more = f" and {len(left_out) - 3} more" if len(left_out) > 4 else ""
        named = ", ".join(left_out[:3] if more else left_out)
        console.print(f"Left out: {named}{more}: {reason}.", markup=False)
    bad = [finding for finding in findings if finding.state == "bad"]
    for finding in bad:
        console.print(f"Bad: {finding.result}: {finding.note}", markup=False)
    if bad:
        failed = f"{len(bad)} check{'s' * (len(bad) > 1)} of the recorded results failed"
        raise JointVAEError(f"{failed}, the first: {bad[0].result}: {bad[0].note}")


def _export(options: argparse.Namespace) -> None:
    from jointvae.export import export

    for path in export(options.model, options.out, options.name, options.record):
        print(f"{path}: {path.stat().st_size:,} bytes")


def _doctor(options: argparse.Namespace) -> None:
    from rich.console import Console

    from jointvae import doctor

    findings = doctor.examine()
    Console().print(doctor.table(findings))
    if bad := ", ".join(finding.what for finding in findings if finding.state == "bad"):
        raise JointVAEError(f"Not everything is in order ({bad}): the table says how to mend it.")


def _completion(options: argparse.Namespace) -> None:
    import shtab

    from jointvae import book, data, training

    shells = ("bash", "zsh", "fish")
    if options.shell not in shells:
        raise JointVAEError(f"There is no completion for '{options.shell}'; choose one of {', '.join(shells)}.")
    words = {
        "recipe": tuple(training.RECIPES),
        "dataset": data.DATASETS,
        "split": data.SPLITS,
        "tier": (*book.TIERS, "auto"),
        "device": ("auto", "cpu", "cuda"),
        "shell": shells,
        "engine": ENGINES,
    }
    top = parser("jointvae")
    commands = next(action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
    for command in commands.values():
        for action in command._actions:
            # Only for the script: at run time a word is refused by the package, in a sentence of its own.
            action.choices = words.get(action.dest)
            if action.type is Path or action.dest == "out":
                action.complete = shtab.FILE
    print(shtab.complete(top, options.shell))


COMMANDS = {
    "train": _train,
    "sweep": _sweep,
    "film": _film,
    "evaluate": _evaluate,
    "reproduce": _reproduce,
    "claims": _claims,
    "verify": _verify,
    "collect": _collect,
    "partition": _partition,
    "export": _export,
    "doctor": _doctor,
    "completion": _completion,
}
TRAINING = ("train", "sweep", "reproduce")  # commands that keep what they have trained so far

if __name__ == "__main__":
    sys.exit(main())
