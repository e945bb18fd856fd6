"""What the command line shows: live progress of one or many runs, and tables."""

import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from jointvae import claims, training, verify
from jointvae.results import Record

PLAIN_EVERY = 30.0  # seconds between two lines of one run where there is no terminal to draw on


class Display:
    """A line per run: reconstruction, KL_z, KL_c, capacities (nats per image), images/s and the time left.

    On a terminal the lines are redrawn in place; elsewhere (a log file) a plain line appears now and then.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.last: dict[str, float] = {}

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.progress.stop()

    def say(self, name: str, news: training.Progress | str) -> None:
        """Show the progress of the run `name`, or its last word."""
        if isinstance(news, str):
            if name in self.tasks:  # the lines are for what is running: a small terminal has no room for more
                self.progress.remove_task(self.tasks.pop(name))
            self.console.print(f"{name}: {news}", highlight=False, markup=False, soft_wrap=True)
            return
        text = losses(news)
        if not self.console.is_terminal:
            self._plain(name, news, text)
            return
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=news.steps, losses=text)
        self.progress.update(self.tasks[name], completed=news.step, losses=text)

    def _plain(self, name: str, news: training.Progress, text: str) -> None:
        if time.monotonic() - self.last.get(name, -PLAIN_EVERY) < PLAIN_EVERY:
            return
        self.last[name] = time.monotonic()
        line = f"{name}: step {news.step:,} of {news.steps:,}, {text}"
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def losses(news: training.Progress) -> str:
    """The state of a run in one line, capacities after a slash."""
    capacity = {name: f"/{value:.2f}" for name, value in news.capacities.items()}
    return (
        f"rec {news.reconstruction:.1f}  KL_z {news.kl_z:.2f}{capacity.get('C_z', '')}  "
        f"KL_c {news.kl_c:.2f}{capacity.get('C_c', '')}{capacity.get('C', '')}  {news.images_per_second:,.0f} images/s"
    )


def claims_table(judgements: list[claims.Judgement], title: str) -> Table:
    """The claims ledger with its computed verdicts: first what the paper says, then what the book asks."""
    colours = {"reproduced": "green", "partly": "yellow", "not reproduced": "red", "not tested": "dim"}
    table = Table(title=title, title_justify="left", show_lines=False)
    for heading in ("claim", "paper", "here", "runs", "verdict"):
        table.add_column(heading, justify="right" if heading in ("paper", "here", "runs") else "left")
    for of_the_paper in (True, False):
        for judgement in judgements:
            claim, colour = judgement.claim, colours[judgement.verdict]
            if claim.of_the_paper == of_the_paper:
                values = (claims.show(claim.paper, claim.unit), claims.show(judgement.value, claim.unit))
                table.add_row(escape(claim.claim), *values, str(judgement.runs), f"[{colour}]{judgement.verdict}[/]")
        table.add_section()
    return table


def runs_table(records: list[Record], names: list[str] | None = None) -> Table:
    """A row per run, failed ones included; every accuracy is on the test set. `names` take the place of the runs'."""
    table = Table(title="Runs on the test set; rec is the reconstruction loss; nats per image", title_justify="left")
    for heading in ("run", "one-to-one", "majority", "KL_z", "KL_c", "I(x;c)", "rec"):
        table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
    for name, record in zip(names or [record.name for record in records], records, strict=True):
        if record.test is None:
            table.add_row(escape(name), f"[red]failed: {escape(str(record.error))}[/]")
            continue
        nats = [sum(record.test.kl_z), sum(record.test.kl_c), sum(record.test.information), record.test.reconstruction]
        shares = [record.test.accuracy, record.test.accuracy_majority]
        cells = [claims.show(share, "share") for share in shares] + [f"{value:.2f}" for value in nats]
        table.add_row(escape(name), *cells)
    return table


def verify_table(findings: list[verify.Finding]) -> Table:
    """A row per recorded result, a column per check; what is left out has a dash."""
    words = {"good": "[green]good[/]", "left out": "[dim]–[/]", "bad": "[bold red]BAD[/]"}
    table = Table(title="Recorded results, checked", title_justify="left")
    table.add_column("result", overflow="fold")
    for check in verify.CHECKS:
        table.add_column(check)
    for result in dict.fromkeys(finding.result for finding in findings):
        found = {finding.check: words[finding.state] for finding in findings if finding.result == result}
        table.add_row(escape(result), *(found.get(check, "") for check in verify.CHECKS))
    return table
