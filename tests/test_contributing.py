"""What CONTRIBUTING.md, CHANGELOG.md and the licences say holds: commands, paths, names, and code that is run."""

import re
import shlex
import tomllib
from typing import get_args

import pytest
import yaml
from test_book import HTML, ROOT, run_chapter

import jointvae
from jointvae import claims, results
from jointvae.__main__ import parser

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
FENCE = re.compile(r"^(?P<fence>`{3,})(?P<language>\w+)\n(?P<code>.*?)^(?P=fence)$", re.DOTALL | re.MULTILINE)
BLOCKS = [(found["language"], found["code"]) for found in FENCE.finditer(TEXT)]
PROSE = FENCE.sub("", TEXT)


def code(language: str) -> str:
    """The only block in that language."""
    (found,) = [code for name, code in BLOCKS if name == language]
    return found


def commands() -> list[str]:
    lines = "".join(code for name, code in BLOCKS if name == "bash").splitlines()
    found = [line.partition("#")[0].strip() for line in lines]
    return [command for command in found + re.findall(r"`(make [^`]*)`", PROSE) if command]


@pytest.mark.parametrize("command", commands())
def test_each_command_exists(command):
    program, *words = shlex.split(command)
    if program == "make":
        makefile = (ROOT / "Makefile").read_text()
        target, *variables = words
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
        for name, _, value in (variable.partition("=") for variable in variables):
            assert re.search(rf"^{name} \?=", makefile, re.MULTILINE)
            assert f"|{value}|" in makefile
        return
    assert (program, words[0]) == (".venv/bin/python", "-m")
    if words[1] == "jointvae":
        parser().parse_args(words[2:])
        return
    assert words[1:3] == ["pytest", "-m"]
    assert [file for file in words[4:] if not (ROOT / file).is_file()] == []


def test_each_path_is_there():
    paths = [path for path in re.findall(r"`([\w.-]*[/.][\w./-]*)`", PROSE) if not path.startswith(".")]
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_each_name_of_the_code_is_there():
    source = "\n".join(path.read_text() for path in (ROOT / "jointvae").glob("*.py"))
    names = re.findall(r"`([A-Z]\w+)`", PROSE)
    assert {"SCHEMA", "MIGRATIONS", "METRICS", "Objective", "JointVAEError"} <= set(names)
    assert [name for name in names if not re.search(rf"\b{name}\b", source)] == []


def test_the_objective_is_trained_and_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code("python"), "CONTRIBUTING.md", "exec"), {"__name__": "example"})
    (record,) = results.records(tmp_path / "runs")
    assert record.config.objective.name == "weighted"
    assert record.config.objective.settings == {"beta_z": 4.0, "beta_c": 1.0}
    assert str(record.test.accuracy) in capsys.readouterr().out


def test_the_claim_is_judged_and_can_be_quoted(tmp_path):
    path = tmp_path / "claims.yml"
    path.write_text(code("yaml"))
    (claim,) = claims.read_ledger(path)
    found = claims.judge(claim, results.records(), [])
    assert found.verdict in get_args(claims.Verdict)
    assert found.value is not None
    assert f"{{fact}}`claim.{claim.id}.value|" in PROSE
    assert claim.id not in {known.id for known in claims.read_ledger()}


@pytest.mark.slow
def test_the_chapter_runs(tmp_path):
    done = run_chapter(tmp_path, code("markdown"), tier="smoke")
    assert (done.returncode, done.stderr) == (0, "")
    assert "✓ eq-question-sure" in (tmp_path / "out" / "chapter.ipynb").read_text(encoding="utf-8")


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert {project["version"], str(citation["version"]), newest[1]} == {jointvae.__version__}


class TestLicences:
    CC = "https://creativecommons.org/licenses/by/4.0/"

    def test_the_code_is_under_the_mit_licence(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
        assert project["license"] == citation["license"] == "MIT"
        assert [(ROOT / file).read_text().splitlines()[0] for file in project["license-files"]] == ["MIT License"]

    def test_the_text_is_under_cc_by(self):
        notice = (ROOT / "LICENSE-TEXT").read_text()
        assert "SPDX-License-Identifier: CC-BY-4.0" in notice
        assert self.CC in notice

    @pytest.mark.parametrize("page", ["README.md", "book/cite.md"])
    def test_readers_are_told_which_is_which(self, page):
        text = (ROOT / page).read_text()
        assert [word for word in (self.CC, "MIT", "`LICENSE`", "`LICENSE-TEXT`") if word not in text] == []

    def test_both_have_the_same_owner(self):
        owners = {
            re.search(r"Copyright \(c\) .*", (ROOT / file).read_text())[0] for file in ("LICENSE", "LICENSE-TEXT")
        }
        assert len(owners) == 1


@pytest.mark.book
@pytest.mark.parametrize(("page", "file"), [("changes", "CHANGELOG.md"), ("contributing", "CONTRIBUTING.md")])
def test_the_book_has_the_whole_file(page, file):
    from bs4 import BeautifulSoup

    article = BeautifulSoup((HTML / f"{page}.html").read_text(encoding="utf-8"), "html.parser").select_one("article")
    headings = [heading.get_text().rstrip("#") for heading in article.select("h1, h2, h3")]
    assert headings == re.findall(r"^#+ (.*)$", FENCE.sub("", (ROOT / file).read_text()), re.MULTILINE)


def test_nothing_is_asked_of_the_environment_that_is_not_read():
    names = set(re.findall(r"`(JOINTVAE_\w+)`", TEXT))
    readers = "".join(path.read_text() for folder in ("jointvae", "tests") for path in (ROOT / folder).glob("*.py"))
    assert [name for name in names if f'"{name}"' not in readers] == []
