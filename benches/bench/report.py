"""The table: on the terminal, and as Markdown with all that somebody needs to judge it."""
from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Optional, Sequence

from .measure import TRIAL, Outcome, Series, Session
from .process import Failed

HEAD = ("work", "PyTorch", "its best setting", "Ringleader", "ratio", "goal", "reached")
GAIN = {True: "higher is better", False: "lower is better"}


@dataclass(frozen=True)
class Line:
    """A row of the table as text, so that it can be kept from one run to the next."""

    name: str
    cells: list[str]
    spread: list[str]
    tried: str

    @classmethod
    def of(cls, outcome: Outcome, session: Session, measured: str) -> Line:
        row, theirs = outcome.row, outcome.theirs
        if outcome.skipped:
            cells = [row.work, "", "", f"skipped: {outcome.skipped}", "", goal_text(outcome), ""]
            return cls(row.name, cells, [], "")
        setting = theirs.setting if theirs else ""
        cells = [
            row.work,
            shown(theirs, row.unit) if theirs else "–",
            setting,
            shown(outcome.ours, row.unit),
            f"{outcome.ratio:.2f}x" if outcome.ratio is not None else "–",
            goal_text(outcome),
            {True: "yes", False: "no", None: ""}[outcome.met],
        ]
        spread = [row.work, GAIN[row.higher_is_better], span(theirs, row.unit), span(outcome.ours, row.unit), measured]
        return cls(row.name, cells, spread, tried(outcome, session))


def number(value: float) -> str:
    """Three figures or more, never an exponent."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.3g}"


def shown(side: Optional[Series], unit: str) -> str:
    if side is None:
        return "–"
    if side.failure:
        return f"failed: {textwrap.shorten(side.failure, 120)}"
    return f"{number(side.median)} {unit}" if side.median is not None else "–"


def span(side: Optional[Series], unit: str) -> str:
    """min..max over the turns."""
    if side is None or not side.values:
        return "–"
    return f"{number(min(side.values))}..{number(max(side.values))} {unit} ({len(side.values)})"


def goal_text(outcome: Outcome) -> str:
    return outcome.row.goal.text(outcome.row.unit) if outcome.row.goal else ""


def tried(outcome: Outcome, session: Session) -> str:
    """What each setting of the peer gave in its trial."""
    row, found = outcome.row, []
    if len(row.theirs) < 2:
        return ""
    for task in row.theirs:
        try:
            figures = session.figures(task, TRIAL)
            found.append(f"{task.setting} {number((row.their_value or row.value)(figures))}")
        except Failed as e:
            found.append(f"{task.setting} failed ({e})")
    return f"{row.work} ({row.unit}): {'; '.join(found)}"


def plain(lines: Sequence[Line]) -> str:
    """The table for a terminal."""
    rows = [list(HEAD), *(line.cells for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *(line(row) for row in rows)])


def markdown(title: str, command: str, facts: Sequence[tuple[str, str]], lines: Sequence[Line]) -> str:
    """RESULTS.md."""
    parts = [
        f"# {title}",
        f"Written by `{command}`; README.md beside this file says what each row measures. Take the ratios: absolute "
        "figures are those of one machine on one day.",
        table(("what", "which"), facts),
        table(HEAD, (line.cells for line in lines)),
    ]
    failed = [line.cells[0] for line in lines if line.cells[-1] == "no"]
    if failed:
        parts.append("Goals that are not reached:\n\n" + "\n".join(f"- {work}" for work in failed))
    spread = [line.spread for line in lines if line.spread]
    if spread:
        parts += ["## Spread", "Smallest and largest figure, and the number of turns; how busy the machine was before."]
        parts.append(table(("work", "", "PyTorch or baseline", "Ringleader", "measured"), spread))
    settings = list(dict.fromkeys(line.tried for line in lines if line.tried))
    if settings:
        parts += ["## Settings that were tried", "One trial each; the best one took its turns.", "\n".join(f"- {s}" for s in settings)]
    return "\n\n".join(parts) + "\n"


class Kept:
    """Rows of earlier runs on this machine, so that the table can be measured in parts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Line]:
        try:
            return {line["name"]: Line(**line) for line in json.loads(self.path.read_text())}
        except (OSError, ValueError, TypeError, KeyError):
            return {}

    def add(self, lines: Sequence[Line], order: Sequence[str]) -> list[Line]:
        """Keeps new lines in the place of older ones; a skipped row does not replace a measured one."""
        kept = self.read()
        for line in lines:
            skipped = line.cells[3].startswith("skipped")
            if not skipped or line.name not in kept:
                kept[line.name] = line
        whole = [kept[name] for name in order if name in kept]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps([line.__dict__ for line in whole], indent=1))
        return whole
