"""The checks beside the identities of the book must be able to fail, and so must the pages that list them."""

import importlib.util
import re
from contextlib import suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("IPython")

from jointvae import checks

BOOK = Path(__file__).parent.parent / "book"
LABEL = "eq-test-identity"
DOUBLE = torch.float64


def extension(name: str) -> ModuleType:
    """One of the book's Sphinx extensions, by its path: book/_ext is no package."""
    for needed in ("sphinx", "docutils", "nbformat"):
        pytest.importorskip(needed)
    spec = importlib.util.spec_from_file_location(f"book_ext_{name}", BOOK / "_ext" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def shown(monkeypatch) -> list[SimpleNamespace]:
    """What the checks display, in order."""
    outputs: list[SimpleNamespace] = []

    def display(data: dict[str, str], *, raw: bool, metadata: dict[str, Any]) -> None:
        outputs.append(SimpleNamespace(data=data, raw=raw, metadata=metadata))

    monkeypatch.setattr(checks, "display", display)
    return outputs


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


class TestEqual:
    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (1.0, 1.0),
            (1.0, 1.0 + 1e-10),
            (1e-10, 0.0),
            (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])),
            (torch.tensor(2.0), 2.0),
            (1e6, 1e6 + 1e-4),  # the tolerance is relative to the largest expected number ...
            (torch.tensor([0.0, 1e6], dtype=DOUBLE), torch.tensor([1e-4, 1e6], dtype=DOUBLE)),
        ],
    )
    def test_passes_when_the_sides_meet(self, shown, found, expected):
        checks.equal(LABEL, found, expected)
        assert len(shown) == 1

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (1.0, 1.0 + 1e-8),
            (1e-8, 0.0),  # ... but not below 1
            (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
            (1e6, 1e6 + 1e-2),
            (float("nan"), 1.0),
            (1.0, float("nan")),
            (float("nan"), float("nan")),
            (float("inf"), 1.0),
            (1.0, float("inf")),
        ],
    )
    def test_fails_when_they_do_not(self, shown, found, expected):
        with pytest.raises(checks.CheckError, match=LABEL):
            checks.equal(LABEL, found, expected)
        assert shown == []

    def test_the_tolerance_is_the_one_given(self, shown):
        checks.equal(LABEL, 1.05, 1.0, 0.1)
        with pytest.raises(checks.CheckError, match=LABEL):
            checks.equal(LABEL, 1.2, 1.0, 0.1)
        assert len(shown) == 1

    @pytest.mark.parametrize(
        ("found", "expected"),
        [
            (torch.zeros(3), torch.zeros(1)),
            (torch.zeros(3), 0.0),
            (torch.zeros(3, 1), torch.zeros(3)),
            (torch.zeros(2, 3), torch.zeros(3, 2)),
        ],
    )
    def test_shapes_that_differ_are_refused_even_if_they_would_broadcast(self, shown, found, expected):
        with pytest.raises(checks.CheckError, match=f"{LABEL}.*shapes"):
            checks.equal(LABEL, found, expected)
        assert shown == []


class TestMonteCarlo:
    def test_false_alarms_are_rare(self, shown):
        repetitions = 2_000
        for draws in normal(repetitions, 200):
            checks.monte_carlo(LABEL, draws, 0.0)  # an alarm would raise
        assert len(shown) == repetitions

    def test_the_level_is_five_standard_errors(self):
        """At five, even a thousand times as many repetitions would see hardly one alarm; at three, these see some."""
        draws = normal(20_000, 200)
        ratios = draws.mean(1).abs() / (draws.std(1) / 200**0.5)
        assert checks.STANDARD_ERRORS == 5.0
        assert float(ratios.max()) < 5
        assert 10 < int((ratios > 3).sum()) < 150  # a normal mean: 54 expected

    @pytest.mark.parametrize("sign", [1, -1])
    def test_a_bias_of_eight_standard_errors_is_found(self, shown, sign):
        """It hides only where chance takes three of the eight back, once in 740 repetitions."""
        repetitions, n = 1_000, 400
        for draws in normal(repetitions, n) + sign * 8 / n**0.5:
            with suppress(checks.CheckError):
                checks.monte_carlo(LABEL, draws, 0.0)
        assert len(shown) < repetitions / 100

    def test_one_wrong_mean_of_many_is_found(self, shown):
        draws = normal(10_000, 2, 3)
        expected = torch.zeros(2, 3, dtype=DOUBLE)
        checks.monte_carlo(LABEL, draws, expected)
        expected[1, 2] = 0.1  # ten standard errors
        with pytest.raises(checks.CheckError, match=LABEL):
            checks.monte_carlo(LABEL, draws, expected)
        assert len(shown) == 1

    @pytest.mark.parametrize("value", [0.0, 0.3, -7.0, 1000.1])
    def test_constant_draws_that_hit_are_accepted(self, shown, value):
        checks.monte_carlo(LABEL, torch.full((999,), value, dtype=DOUBLE), value)
        assert len(shown) == 1

    @pytest.mark.parametrize("miss", [1e-6, -0.5])
    def test_constant_draws_that_miss_are_refused(self, shown, miss):
        with pytest.raises(checks.CheckError, match=LABEL):
            checks.monte_carlo(LABEL, torch.full((100,), 0.5, dtype=DOUBLE), 0.5 + miss)
        assert shown == []

    def test_draws_that_need_a_gradient_or_are_single_or_boolean_are_taken(self, shown):
        checks.monte_carlo(LABEL, normal(1_000).requires_grad_(), 0.0)
        checks.monte_carlo(LABEL, normal(1_000).float(), 0.0)
        checks.monte_carlo(LABEL, normal(1_000) > 0, 0.5)
        assert len(shown) == 3

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_a_draw_that_is_no_number_is_refused(self, shown, bad):
        draws = normal(1_000)
        draws[17] = bad
        with pytest.raises(checks.CheckError, match=LABEL):
            checks.monte_carlo(LABEL, draws, 0.0)
        assert shown == []


class TestHolds:
    @pytest.mark.parametrize("condition", [True, torch.tensor(True), torch.tensor([True, True])])
    def test_passes_when_true(self, shown, condition):
        checks.holds(LABEL, condition, "one is less than two")
        assert len(shown) == 1

    @pytest.mark.parametrize("condition", [False, torch.tensor(False), torch.tensor([True, False, True])])
    def test_fails_when_false_and_says_what(self, shown, condition):
        with pytest.raises(checks.CheckError, match=f"{LABEL}.*two is less than one"):
            checks.holds(LABEL, condition, "two is less than one")
        assert shown == []


class TestLine:
    """What a check leaves on the page."""

    def test_a_check_error_is_an_assertion_error(self):
        assert issubclass(checks.CheckError, AssertionError)

    def test_it_says_the_label_how_and_what(self, shown):
        checks.equal(LABEL, 1.0, 1.0)
        checks.monte_carlo(LABEL, normal(1_000), 0.0)
        checks.holds(LABEL, True, "a < b")
        notes = [output.metadata["check"] for output in shown]
        assert [set(output.metadata) for output in shown] == [{"check"}] * 3
        assert [note["label"] for note in notes] == [LABEL] * 3
        assert [note["how"] for note in notes] == ["both sides computed", "mean of 1,000 draws", "true or false"]
        assert notes[0]["what"] == "off by 0.0e+00, allowed 1e-09"
        assert re.fullmatch(r"off by \d\.\d standard errors, allowed 5", notes[1]["what"])
        assert notes[2]["what"] == "a < b"
        assert all(output.raw for output in shown)

    def test_it_links_to_the_formula_and_escapes_markup(self, shown):
        checks.holds(LABEL, True, "a < b & c")
        markup = shown[0].data["text/html"]
        assert f'href="#equation-{LABEL}"' in markup
        assert "a &lt; b &amp; c" in markup
        assert shown[0].data["text/plain"] == f"✓ {LABEL} (true or false): a < b & c"

    def test_ipython_keeps_the_metadata(self, monkeypatch):
        """Through the real display, as in a kernel; only the last step, to the front end, is replaced."""
        from IPython.core.interactiveshell import InteractiveShell
        from IPython.utils.capture import capture_output

        fresh = not InteractiveShell.initialized()
        InteractiveShell.instance()
        try:
            with capture_output() as captured:
                checks.equal(LABEL, 1.0, 1.0)
        finally:
            if fresh:
                InteractiveShell.clear_instance()
        assert [output.metadata for output in captured.outputs] == [
            {"check": {"label": LABEL, "how": "both sides computed", "what": "off by 0.0e+00, allowed 1e-09"}}
        ]
        assert set(captured.outputs[0].data) == {"text/plain", "text/html"}


def check_output(label: str, how: str = "both sides computed", what: str = "off by 0") -> Any:
    import nbformat

    note = {"check": {"label": label, "how": how, "what": what}}
    return nbformat.v4.new_output("display_data", data={"text/plain": "✓"}, metadata=note)


def write_page(folder: Path, name: str, *cells: str | list[Any]) -> None:
    """A notebook of Markdown cells (given as text) and code cells (given as their outputs)."""
    import nbformat

    new = nbformat.v4
    notebook = new.new_notebook(
        cells=[
            new.new_markdown_cell(cell) if isinstance(cell, str) else new.new_code_cell("1", outputs=cell)
            for cell in cells
        ]
    )
    nbformat.write(notebook, folder / f"{name}.ipynb")


def formula(label: str | None, body: str = "a = b .") -> str:
    return f"Here:\n\n$$\n{body}\n$$" + (f" ({label})" if label else "") + "\n\nand on."


class TestCollect:
    @pytest.fixture
    def collect(self):
        return extension("identities").collect

    def test_a_page_with_one_of_each(self, collect, tmp_path):
        import nbformat

        plain = nbformat.v4.new_output("stream", name="stdout", text="no check")
        write_page(
            tmp_path,
            "page",
            formula("eq-page-good"),
            [check_output("eq-page-good", what="off by 1e-16"), plain],
            formula("def-page-name"),
            formula(None),
            formula("eq-page-unchecked", "\\begin{aligned}\na &= b \\\\\n&= c\n\\end{aligned}"),
            [check_output("eq-page-good", "true or false", "it is so"), check_output("eq-page-stranger")],
        )
        found, wrong = collect(tmp_path)
        assert [tuple(identity) for identity in found] == [
            ("eq-page-good", "page", [("both sides computed", "off by 1e-16"), ("true or false", "it is so")]),
            ("eq-page-unchecked", "page", []),
        ]
        assert wrong == [
            "page: a displayed formula has no label",
            "page: eq-page-unchecked has no check",
            "page: a check names eq-page-stranger, which is no identity of this page",
        ]

    def test_a_good_page_has_nothing_wrong(self, collect, tmp_path):
        write_page(tmp_path, "page", formula("eq-page-good") + "\n\n" + formula("def-page-name"))
        write_page(tmp_path, "empty", "No formula but $x$ in a line, and `$$` in code.")
        assert collect(tmp_path)[1] == ["page: eq-page-good has no check"]
        write_page(tmp_path, "page", formula("eq-page-good"), [check_output("eq-page-good")])
        found, wrong = collect(tmp_path)
        assert [identity.label for identity in found] == ["eq-page-good"]
        assert wrong == []

    def test_a_definition_cannot_be_checked(self, collect, tmp_path):
        write_page(tmp_path, "page", formula("def-page-name"), [check_output("def-page-name")])
        found, wrong = collect(tmp_path)
        assert found == []
        assert wrong == ["page: a check names def-page-name, which is no identity of this page"]

    def test_a_check_on_another_page_does_not_count(self, collect, tmp_path):
        write_page(tmp_path, "b", formula("eq-b-identity"))
        write_page(tmp_path, "a", formula("eq-a-identity"), [check_output(f"eq-{page}-identity") for page in "ab"])
        found, wrong = collect(tmp_path)
        assert [identity.page for identity in found] == ["a", "b"]  # by the pages' names
        assert wrong == [
            "a: a check names eq-b-identity, which is no identity of this page",
            "b: eq-b-identity has no check",
        ]

    def test_every_formula_without_a_label_is_counted(self, collect, tmp_path):
        write_page(tmp_path, "page", formula(None) + "\n\n" + formula(None), formula(None))
        assert collect(tmp_path) == ([], ["page: a displayed formula has no label"] * 3)

    def test_what_is_left_of_a_failed_chapter_is_not_read(self, collect, tmp_path):
        write_page(tmp_path, "page.failed", formula(None))
        assert collect(tmp_path) == ([], [])


@pytest.fixture(scope="module")
def symbols() -> ModuleType:
    return extension("symbols")


@pytest.fixture(scope="module")
def known(symbols) -> dict[str, str]:
    """The symbols of the page of notation, with their meanings."""
    return symbols.meanings(BOOK / "notation.md")


class TestSymbols:
    @pytest.mark.parametrize("page", sorted(BOOK.glob("*.md")), ids=lambda page: page.stem)
    def test_every_symbol_used_has_a_row(self, known, page):
        used = re.findall(r"\{sym\}`([^`]*)`", page.read_text(encoding="utf-8"))
        assert sorted(set(used) - set(known)) == []

    def test_every_row_is_read_and_has_a_meaning(self, known):
        text = (BOOK / "notation.md").read_text(encoding="utf-8")
        assert sorted(known) == sorted(re.findall(r"\{defsym\}`([^`]*)`", text))
        assert [symbol for symbol, meaning in known.items() if not re.search(r"[a-z]{3}", meaning)] == []

    def test_the_anchors_are_distinct_and_fit_for_a_link(self, symbols, known):
        anchors = [symbols.anchor(symbol) for symbol in known]
        assert len(set(anchors)) == len(known)
        assert [anchor for anchor in anchors if not re.fullmatch(r"sym(-[a-z0-9]+)+", anchor)] == []

    def test_capitals_have_anchors_of_their_own(self, symbols):
        assert symbols.anchor("C_c") != symbols.anchor("c_c") != symbols.anchor("c_C")
        assert symbols.anchor("D") != symbols.anchor("d")

    def test_a_meaning_is_plain_text(self, symbols, tmp_path):
        page = tmp_path / "notation.md"
        rows = [
            r"| Symbol | In the code | Meaning |",
            r"|:--|:--|:--|",
            r"| {defsym}`a`, {defsym}`A_i` | `a` | the size, $a \| b$ of `it` |",
            r"| no symbol | `b` | not read |",
        ]
        page.write_text("\n".join(rows) + "\n", encoding="utf-8")
        found = symbols.meanings(page)
        assert set(found) == {"a", "A_i"}
        assert found["a"] == found["A_i"]
        assert found["a"].startswith("the size, a ")
        assert not set("$`\\") & set(found["a"])
