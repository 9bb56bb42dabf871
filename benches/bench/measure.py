"""What a row of the table is, and how rows are measured: in turn, several times, medians."""
from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from typing import Callable, Optional, Sequence

from .process import Failed, Figures

Value = Callable[[Figures], float]
Say = Callable[[str], None]

# The turn in which a peer's settings are tried.
TRIAL = -1


@dataclass(frozen=True)
class Task:
    """Something to run. Tasks with the same key are the same work and are run once a turn."""

    key: str
    run: Callable[[], Figures] = field(compare=False)
    # How it was set up, for the table.
    setting: str = field(default="", compare=False)


@dataclass(frozen=True)
class Goal:
    """A bound on Ringleader's value, or on its ratio to the other side's."""

    bound: float
    at_least: bool
    of_ratio: bool = True

    def text(self, unit: str) -> str:
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.bound:g}x" if self.of_ratio else f"{sign} {self.bound:g} {unit}"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def key_of(name: str) -> Value:
    """The figure of that name."""

    def value(figures: Figures) -> float:
        found = figures.get(name)
        if not isinstance(found, (int, float)):
            raise Failed(f"its figures have no {name}")
        return float(found)

    return value


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    work: str
    unit: str
    ours: Task
    # The other side's settings, of which the best one counts; none where there is no other side.
    theirs: Sequence[Task] = ()
    value: Value = key_of("images_per_second")
    their_value: Optional[Value] = None
    higher_is_better: bool = True
    goal: Optional[Goal] = None
    # Rows of one group are measured in the same turns.
    group: str = ""
    # By which figure the other side's best setting is chosen, and whether more of it is better.
    choose_by: Optional[Value] = None
    choose_highest: Optional[bool] = None
    # The other side is Ringleader too.
    against_own: bool = False
    # Both sides must train the same number of parameters.
    same_parameters: bool = False
    turns: Optional[int] = None
    skip: str = ""
    note: str = ""


@dataclass
class Series:
    """One side's values over the turns, or why there are none."""

    values: list[float] = field(default_factory=list)
    setting: str = ""
    failure: str = ""

    @property
    def median(self) -> Optional[float]:
        return statistics.median(self.values) if self.values and not self.failure else None


@dataclass
class Outcome:
    """What became of a row."""

    row: Row
    ours: Series = field(default_factory=Series)
    theirs: Optional[Series] = None
    skipped: str = ""

    @property
    def ratio(self) -> Optional[float]:
        ours, theirs = self.ours.median, self.theirs.median if self.theirs else None
        return ours / theirs if ours is not None and theirs else None

    @property
    def met(self) -> Optional[bool]:
        """Whether the goal is reached; None where there is no goal or nothing was measured on purpose."""
        if self.row.goal is None or self.skipped:
            return None
        measured = self.ratio if self.row.goal.of_ratio else self.ours.median
        return measured is not None and self.row.goal.met(measured)


class Session:
    """Runs tasks, each at most once in a turn, and remembers their figures."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.done: dict[tuple[str, int], Figures] = {}
        self.failed: dict[str, Failed] = {}

    def figures(self, task: Task, turn: int) -> Figures:
        """Raises `Failed`; what has failed once is not tried again."""
        place = (task.key, turn)
        if place in self.done:
            return self.done[place]
        if task.key in self.failed:
            raise self.failed[task.key]
        start = time.perf_counter()
        try:
            self.done[place] = task.run()
            what = "done"
        except Failed as e:
            self.failed[task.key] = e
            what = f"failed: {e}"
        name = "trial" if turn == TRIAL else f"turn {turn + 1}"
        self.say(f"  {name:>6}  {task.key}: {what} in {time.perf_counter() - start:.1f} s")
        if task.key in self.failed:
            raise self.failed[task.key]
        return self.done[place]


def choose(session: Session, row: Row) -> Task:
    """The other side's best setting, from one trial of each."""
    if len(row.theirs) == 1:
        return row.theirs[0]
    by = row.choose_by or row.their_value or row.value
    highest = row.higher_is_better if row.choose_highest is None else row.choose_highest
    tried: list[tuple[float, Task]] = []
    failure = Failed("there is no setting")
    for task in row.theirs:
        try:
            tried.append((by(session.figures(task, TRIAL)), task))
        except Failed as e:
            failure = e
    if not tried:
        raise failure
    return (max if highest else min)(tried, key=lambda pair: pair[0])[1]


def series(session: Session, task: Task, value: Value, turns: int) -> Series:
    """The values of a task that has had its turns."""
    result = Series(setting=task.setting)
    for turn in range(turns):
        try:
            result.values.append(value(session.figures(task, turn)))
        except Failed as e:
            result.failure = str(e)
    return result


def same_net(session: Session, theirs: Task, ours: Task, turns: int) -> str:
    """Empty if both sides train as many parameters, as far as both tell."""
    for turn in range(turns):
        try:
            counts = [session.figures(task, turn).get("parameters") for task in (theirs, ours)]
        except Failed:
            continue
        if None not in counts and counts[0] != counts[1]:
            return f"the nets differ: {counts[0]:,} parameters against {counts[1]:,}"
    return ""


def measure(session: Session, rows: Sequence[Row], turns: int) -> list[Outcome]:
    """Measures rows of one group: A B A B."""
    outcomes: list[Outcome] = []
    chosen: list[tuple[Row, Outcome, Optional[Task]]] = []
    for row in rows:
        outcome = Outcome(row)
        outcomes.append(outcome)
        if row.skip:
            outcome.skipped = row.skip
            continue
        task = None
        if row.theirs:
            outcome.theirs = Series()
            try:
                task = choose(session, row)
            except Failed as e:
                outcome.theirs.failure = str(e)
        chosen.append((row, outcome, task))

    for turn in range(max([row.turns or turns for row, _, _ in chosen], default=0)):
        for row, _, theirs in chosen:
            for task in (row.ours, theirs):
                if task is None or turn >= (row.turns or turns):
                    continue
                try:
                    session.figures(task, turn)
                except Failed:
                    pass  # `series` takes note of it.

    for row, outcome, theirs in chosen:
        own = row.turns or turns
        outcome.ours = series(session, row.ours, row.value, own)
        if theirs is not None:
            outcome.theirs = series(session, theirs, row.their_value or row.value, own)
            if row.same_parameters and not outcome.theirs.failure:
                outcome.theirs.failure = same_net(session, theirs, row.ours, own)
    return outcomes
