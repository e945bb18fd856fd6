"""The help, the exit status, the doctor and the completion of the command line."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console
from test_checkpoints import authors_layers

from jointvae import __main__ as cli
from jointvae import batched, checkpoints, claims, data, doctor, results
from jointvae.files import sha256
from jointvae.latents import LatentSpec
from jointvae.model import ImageShape
from jointvae.terminal import claims_table, runs_table

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "numpy", "scipy", "sklearn", "pandas", "matplotlib", "pydantic", "rich", "shtab"}


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def helped(*arguments: str) -> str:
    """What a command says to --help."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--help"])
    assert ended.value.code == 0
    return said.getvalue()


class TestHelp:
    @pytest.mark.parametrize("command", cli.COMMANDS)
    def test_every_command_shows_examples_that_can_be_parsed(self, command):
        said = helped(command)
        assert max(map(len, said.splitlines())) <= 80
        examples = [
            line.strip().removeprefix(cli.PROGRAM).split(">")[0] for line in said.split("examples:\n")[1].split("\n")
        ]
        examples = [example.split() for example in examples if example.strip()]
        assert examples
        for example in examples:
            assert cli.parser().parse_args(example).command == command

    @pytest.mark.parametrize("command", cli.COMMANDS)
    def test_every_option_is_explained(self, command):
        commands = next(action.choices for action in cli.parser()._actions if action.dest == "command")
        assert [action.dest for action in commands[command]._actions if not action.help] == []

    def test_the_top_lists_every_command_and_every_exit_status(self):
        said = helped()
        assert max(map(len, said.splitlines())) <= 80
        assert all(re.search(rf"^    {command}\s", said, re.MULTILINE) for command in cli.COMMANDS)
        assert all(f"\n  {status} " in said for status in (0, 2, 130, 1))

    def test_help_imports_nothing_that_takes_long(self):
        code = textwrap.dedent("""
            import contextlib, sys
            from jointvae import __main__ as cli
            for command in [None, *cli.COMMANDS]:
                with contextlib.suppress(SystemExit):
                    cli.main([command, "--help"] if command else ["--help"])
            print("imported:", *{name.partition(".")[0] for name in sys.modules})
        """)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        imported = set(done.stdout.partition("imported:")[2].split())
        assert "argparse" in imported
        assert imported & HEAVY == set()

    def test_without_a_command_the_help_and_status_2(self, capsys):
        assert cli.main([]) == 2
        said = capsys.readouterr()
        assert "examples:" in said.err
        assert said.out == ""


class TestExitStatus:
    @pytest.fixture
    def ends(self, monkeypatch):
        def end(error: BaseException | None) -> int:
            def command(options):
                if error:
                    raise error

            monkeypatch.setitem(cli.COMMANDS, "claims", command)
            return cli.main(["claims"])

        return end

    def test_done(self, ends):
        assert ends(None) == 0

    def test_a_package_that_is_missing(self, ends, capsys):
        assert ends(ModuleNotFoundError("no", name="sklearn.datasets")) == 2
        assert "'sklearn.datasets' is missing; `make env`" in capsys.readouterr().err

    def test_a_bug_keeps_its_traceback(self, ends):
        with pytest.raises(ZeroDivisionError):
            ends(ZeroDivisionError())
        with pytest.raises(ModuleNotFoundError):
            ends(ModuleNotFoundError("no", name="jointvae.nope"))

    def test_a_system_that_refuses(self, ends, capsys):
        assert ends(OSError(5, "Input/output error", "x.json")) == 2
        assert capsys.readouterr().err == "error: x.json: Input/output error.\n"

    @pytest.mark.parametrize(
        "words",
        ["train mnist --nope", "train mnist --epochs 1.5", "train mnist --epoch 3", "evaluate a.safetensors", "fly"],
    )
    def test_what_the_command_line_does_not_take_is_one_line(self, capsys, words):
        with pytest.raises(SystemExit) as ended:
            cli.main(words.split())
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert re.fullmatch(r"error: .*; `.* --help` says what it takes\.\n", said)

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8:strict"])
    def test_what_can_not_be_shown_does_not_end_a_command(self, encoding, tmp_path):
        """A dash of the table is no ASCII, and a path may be no Unicode."""
        folder = tmp_path / "r\udcff\u2013"
        folder.mkdir()
        (folder / "claims.yml").write_text("[{id: a, claim: x \u2013 y, source: s, criterion: k}]", encoding="utf-8")
        command = [sys.executable, "-m", "jointvae", "claims", "--results", str(folder)]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"not tested" in done.stdout

    def test_a_closed_output_is_no_bug(self):
        command = f"{sys.executable} -m jointvae completion bash >&-"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
    def test_a_full_disk_behind_the_output(self):
        command = f"{sys.executable} -m jointvae completion bash > /dev/full"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "No space left on device" in done.stderr

    def test_the_readme_says_the_same(self):
        text = (ROOT / "README.md").read_text()
        assert all(f"{status} " in text.partition("Exit status")[2].partition("\n")[0] for status in (0, 2, 130, 1))

    def test_a_reader_that_leaves_is_no_error(self):
        command = [sys.executable, "-m", "jointvae", "completion", "bash"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)
        process.stderr.close()

    def test_the_console_script_is_the_same_program(self):
        scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
        assert scripts == {"jointvae": "jointvae.__main__:main"}
        script = Path(sys.executable).with_name("jointvae")
        if not script.exists():
            pytest.skip("the package is not installed in this environment")
        done = subprocess.run([script, "doctor", "--help"], capture_output=True, text=True, check=True)
        assert "usage: jointvae doctor" in done.stdout


class TestEvaluateAndRecord:
    """`evaluate --record` keeps what `evaluate` prints, for both splits, and refuses what it refuses."""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch) -> Path:
        """Two models in the authors' layout, `grey` and `colour`; results would go to `results`."""
        import torch

        torch.manual_seed(0)
        for name, channels in (("grey", 1), ("colour", 3)):
            (tmp_path / name).mkdir()
            layers = authors_layers(LatentSpec(2, (3,)), ImageShape(channels, 32))
            torch.save(layers.state_dict(), tmp_path / name / "model.pt")
        checkpoints.save_model(tmp_path / "ours.safetensors", checkpoints.load_authors(tmp_path / "grey"))
        monkeypatch.setattr(results, "RESULTS", tmp_path / "results")
        return tmp_path

    def test_it_keeps_what_evaluate_prints(self, folder, capsys, monkeypatch):
        loads = []
        load = checkpoints.load_authors
        monkeypatch.setattr(checkpoints, "load_authors", lambda path: loads.append(path) or load(path))
        command = ["evaluate", str(folder / "grey"), "--authors", "--dataset", "digits"]
        assert cli.main([*command, "--record", "theirs"]) == 0
        assert len(loads) == 1
        capsys.readouterr()
        (kept,) = results.references(folder / "results" / "reference")
        assert (kept.name, kept.dataset, kept.sha256) == ("theirs", "digits", sha256(folder / "grey" / "model.pt"))
        for split, scores in (("train", kept.train), ("test", kept.test)):
            assert cli.main([*command, "--split", split]) == 0
            assert json.loads(capsys.readouterr().out) == asdict(scores)

    def test_the_scores_of_another_model_are_not_overwritten(self, folder, capsys):
        import torch

        command = ["evaluate", str(folder / "grey"), "--authors", "--dataset", "digits", "--record", "theirs"]
        assert cli.main(command) == 0
        assert cli.main(command) == 0  # the same model may be scored again
        torch.manual_seed(1)
        other = authors_layers(LatentSpec(2, (3,)), ImageShape(1, 32))
        torch.save(other.state_dict(), folder / "grey" / "model.pt")
        before = (folder / "results" / "reference" / "theirs.json").read_bytes()
        assert cli.main(command) == 2
        assert "holds another model" in capsys.readouterr().err
        assert (folder / "results" / "reference" / "theirs.json").read_bytes() == before

    @pytest.mark.parametrize(
        ("model", "options", "sentence"),
        [
            ("colour", ["--authors"], "takes 3 channels"),
            ("ours.safetensors", [], "add --authors"),
            ("grey", ["--authors", "--split", "nonsense"], "leave out --split"),
            ("grey", ["--authors", "--record", "../../x"], "letters, digits"),
            ("grey", ["--authors", "--record", ""], "letters, digits"),
            ("grey", ["--authors", "--dataset", "nope"], "no data set 'nope'"),
            ("nowhere", ["--authors"], "no checkpoint"),
        ],
    )
    def test_bad_input_is_refused_in_one_sentence(self, folder, capsys, model, options, sentence):
        before = sorted(folder.rglob("*"))
        command = ["evaluate", str(folder / model), "--dataset", "digits", "--record", "theirs"]
        assert cli.main([*command, *options]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert error.count("\n") == 1
        assert sorted(folder.rglob("*")) == before


def found(findings: list[doctor.Finding], what: str) -> doctor.Finding:
    return next(finding for finding in findings if finding.what == what)


class TestDoctor:
    @pytest.fixture(autouse=True)
    def own_folders(self, monkeypatch, tmp_path):
        monkeypatch.setattr(data, "DATA", tmp_path / "data")
        monkeypatch.setattr(doctor, "HERE", tmp_path)
        monkeypatch.setattr(doctor, "RUNS", tmp_path / "runs")
        monkeypatch.delenv("JOINTVAE_DATA", raising=False)

    def test_a_good_machine(self, capsys, tmp_path):
        import torch

        assert cli.main(["doctor"]) == 0
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines())) <= 80
        assert torch.__version__.partition("+")[0] in said
        assert "1,437 + 360 images" in said
        assert list(tmp_path.iterdir()) == []  # it leaves nothing behind

    def test_something_bad_ends_with_status_2_and_one_sentence(self, capsys, monkeypatch):
        monkeypatch.setattr(batched, "free_memory", lambda device: doctor.GIB // 2)
        assert cli.main(["doctor"]) == 2
        said = capsys.readouterr()
        assert said.err == "error: Not everything is in order (memory): the table says how to mend it.\n"
        assert "End other programs" in said.out

    @pytest.mark.parametrize(
        ("files", "free"),
        [
            ({}, "8.0"),
            ({"memory.max": "max", "memory.current": 5 * doctor.GIB}, "8.0"),
            ({"memory.max": 6 * doctor.GIB, "memory.current": 5 * doctor.GIB}, "1.5"),
            ({"memory.max": 64 * doctor.GIB, "memory.current": 5 * doctor.GIB}, "8.0"),
        ],
        ids=["machine", "no limit", "small container", "large container"],
    )
    def test_the_free_memory_is_that_of_the_machine_or_of_the_container(self, monkeypatch, tmp_path, files, free):
        class Memory:
            available = 8 * doctor.GIB

        for name, content in files.items():
            (tmp_path / name).write_text(f"{content}\n")
        (tmp_path / "memory.stat").write_text(f"anon 123\ninactive_file {doctor.GIB // 2}\n")
        monkeypatch.setattr(batched.psutil, "virtual_memory", lambda: Memory)
        monkeypatch.setattr(batched, "CONTAINER", tmp_path)
        assert doctor.memory().found == f"{free} GiB available"

    def test_what_is_not_good_says_how_to_mend_it(self, monkeypatch, tmp_path):
        monkeypatch.setenv("JOINTVAE_DATA", str(tmp_path / "nowhere"))
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs" / "DATA_FALLBACK").write_text("WITHOUT MNIST")
        monkeypatch.setattr(shutil, "which", lambda name: None)
        findings = doctor.examine()
        warned = {finding.what for finding in findings if finding.state == "warning"}
        assert warned >= {"mnist", "fashion", "JOINTVAE_DATA", "last reproduce", "Chromium", "make"}
        assert all(finding.mend.endswith(".") for finding in findings if finding.state != "good")
        assert all(finding.mend == "" for finding in findings if finding.state == "good")

    def test_a_damaged_file_of_the_data(self, tmp_path):
        raw = tmp_path / "data" / "MNIST" / "raw"
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte").write_bytes(b"half of it")
        finding = found(doctor.datasets(), "mnist")
        assert finding.state == "bad"
        assert "JOINTVAE_DATA" in finding.mend

    @pytest.mark.parametrize(("asked", "wrong"), [("torch>=99", "not >=99"), ("no-such-thing", "is missing")])
    def test_a_package_that_is_missing_or_too_old(self, asked, wrong):
        assert wrong in doctor.fault(Requirement(asked))

    def test_a_bad_package_stops_what_needs_it(self, monkeypatch):
        real = doctor.requirements()[1]
        asked = {**real, "": [*real[""], Requirement("no-such-thing")], "book": [Requirement("no-such-book")]}
        monkeypatch.setattr(doctor, "requirements", lambda: (">=3.99", asked))
        findings = doctor.examine()
        assert found(findings, "Python").state == "bad"
        assert found(findings, "packages").state == "bad"
        assert found(findings, "packages of the book").state == "warning"
        assert "device" not in {finding.what for finding in findings}

    def test_a_torch_that_torchvision_was_not_built_for(self, monkeypatch):
        monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["numpy", "torch==1.0"])
        asked = {"": [Requirement("torch"), Requirement("torchvision")]}
        assert "another torch" in found(doctor.packages(asked), "torchvision").found

    def test_a_torch_that_can_not_be_imported(self, monkeypatch):
        def fail(name):
            raise OSError("libnothing.so: no such file")

        monkeypatch.setattr(doctor.importlib, "import_module", fail)
        finding = found(doctor.packages({"": [Requirement("torch"), Requirement("torchvision")]}), "torch")
        assert (finding.state, "libnothing" in finding.found) == ("bad", True)

    def test_a_folder_that_can_not_be_written_to(self, tmp_path):
        (tmp_path / "runs").write_text("a file in the way")
        assert doctor.folder(tmp_path / "runs").state == "bad"

    @pytest.mark.parametrize(("free", "state"), [(0.1, "bad"), (1, "warning"), (50, "good")])
    def test_a_full_disk(self, monkeypatch, tmp_path, free, state):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free * doctor.GIB))
        assert doctor.folder(tmp_path / "not" / "yet").state == state

    def test_without_a_copy_of_the_repository_the_installed_package_tells(self, monkeypatch, tmp_path):
        here = doctor.requirements()
        monkeypatch.setattr(doctor, "PROJECT", tmp_path)
        try:
            python, asked = doctor.requirements()
        except doctor.metadata.PackageNotFoundError:
            pytest.skip("the package is not installed in this environment")
        assert python == here[0]
        assert {one.name for one in asked["book"]} == {one.name for one in here[1]["book"]}


def complete_in_bash(script: str, line: str) -> set[str]:
    words = " ".join(f"'{word}'" for word in line.split(" "))
    call = textwrap.dedent(f"""
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}
        _shtab_jointvae jointvae "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """)
    done = subprocess.run(["bash", "-c", script + call], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def complete_in_fish(script: str, line: str) -> set[str]:
    code = f"{script}\ncomplete -C '{line}'"
    done = subprocess.run(["fish", "-N", "-c", code], capture_output=True, text=True, check=True)
    return {offered.partition("\t")[0] for offered in done.stdout.splitlines()}


class TestCompletion:
    def script(self, shell: str) -> str:
        if not shutil.which(shell):
            pytest.skip(f"no {shell} on this machine")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert cli.main(["completion", shell]) == 0
        return said.getvalue()

    @pytest.mark.parametrize(("shell", "complete"), [("bash", complete_in_bash), ("fish", complete_in_fish)])
    def test_words_of_the_command_line_are_completed(self, shell, complete):
        text = self.script(shell)
        assert {"train", "doctor"} <= complete(text, "jointvae ")
        assert complete(text, "jointvae do") == {"doctor"}
        assert complete(text, "jointvae train dig") == {"digits", "digits-augmented"}
        assert "--film" in complete(text, "jointvae train mnist --f")
        assert complete(text, "jointvae reproduce --tier sm") == {"smoke"}

    def test_zsh_accepts_its_script(self):
        text = self.script("zsh")
        assert text.startswith("#compdef jointvae")
        subprocess.run(["zsh", "-n"], input=text, text=True, check=True)

    def test_another_shell_is_refused(self, capsys):
        assert cli.main(["completion", "cmd"]) == 2
        assert "choose one of bash, zsh, fish" in capsys.readouterr().err


class TestTables:
    """At 80 columns every word can be read whole."""

    def shown(self, table) -> str:
        console = Console(width=80, file=io.StringIO())
        console.print(table)
        return console.file.getvalue()

    def test_the_claims(self):
        said = self.shown(claims_table(claims.judge_all(results.RESULTS), "Claims"))
        assert max(map(len, said.splitlines())) <= 80
        assert "…" not in said
        assert "verdict" in said

    def test_the_runs(self):
        records = results.records()
        said = self.shown(runs_table(records))
        assert max(map(len, said.splitlines())) <= 80
        assert "…" not in said
        names = "".join(line.split("│")[1].strip() for line in said.splitlines() if line.startswith("│"))
        assert names == "".join(record.name for record in records)  # a long name goes on in the next line


@pytest.mark.parametrize(
    ("command", "goes_on"), [(["train", "digits"], True), (["claims"], False), (["verify"], False)]
)
def test_an_interrupted_command_promises_to_go_on_only_if_it_does(command, goes_on, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, command[0], interrupted)
    assert cli.main(command) == 130
    said = capsys.readouterr().err
    assert "Interrupted" in said
    assert ("goes on" in said) == goes_on
