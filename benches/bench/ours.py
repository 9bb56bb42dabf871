"""Ringleader's side: its two binaries, and the figures that their runs leave."""
from __future__ import annotations

import json
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator, Mapping, Optional, Sequence

from .environment import PROJECT, cache
from .measure import Task
from .process import LIMIT_S, Failed, Figures, JsonLines, at_half_speed, children, figures, finish, run, seconds_until, started, with_threads

# Steps that a run's summary leaves out, too.
WARM_UP = 5


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one run, on disk: a checkpoint of AlexNet does not belong into memory."""
    cache().mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="bench-run-", dir=cache()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_figures(run_dir: Path) -> Figures:
    """summary.json, and what metrics.jsonl tells beyond it."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text())
    except (OSError, ValueError) as e:
        raise Failed(f"the run left no summary.json: {e}") from e
    steps = [line for line in JsonLines(run_dir / "metrics.jsonl").new() if "step_ms" in line]
    warm = steps[WARM_UP:] or steps
    epochs: dict[int, float] = {}
    for step in steps:
        epochs[step["epoch"]] = epochs.get(step["epoch"], 0.0) + step["step_ms"] / 1e3
    # An epoch that the run ended in is not a whole one.
    sizes = {epoch: sum(s["samples"] for s in steps if s["epoch"] == epoch) for epoch in epochs}
    whole = [seconds for epoch, seconds in epochs.items() if sizes[epoch] == max(sizes.values())]
    total = sum(step["step_ms"] for step in warm)
    return {
        **summary,
        "epoch_seconds": min(whole, default=0.0),
        # Of all time, not of medians: a rare long wait counts too.
        "data_wait_share": sum(step["data_wait_ms"] for step in warm) / total if total else 0.0,
    }


class Ours:
    def __init__(self, binaries: Path) -> None:
        self.worker, self.coordinator = str(binaries / "worker"), str(binaries / "coordinator")

    def missing(self) -> list[str]:
        return [path for path in (self.worker, self.coordinator) if not Path(path).is_file()]

    def bench(
        self, args: Sequence[object], threads: int, setting: str = "", env: Optional[Mapping[str, str]] = None
    ) -> Task:
        """`worker bench`."""
        words = ["bench", *(str(a) for a in args), "--json"]
        return Task(
            key=" ".join(["worker", *words]),
            run=lambda: figures([self.worker, *words], with_threads(threads, env), PROJECT),
            setting=setting,
        )

    def pack(self, pictures: Path) -> Path:
        """A pack of a folder of pictures in the cache: made once."""
        folder = cache() / f"bench-pack-{pictures.name}"
        run([self.worker, "data", "pack", str(pictures), str(folder)], with_threads(1), PROJECT, LIMIT_S)
        return folder

    def step(
        self,
        config: str,
        args: Sequence[object],
        precision: str,
        steps: int,
        threads: int,
    ) -> Task:
        words = ["step", "--config", config, *args, "--threads", threads, "--precision", precision, "--steps", steps]
        return self.bench(words, threads, precision)

    def ring(self, size: int, world: int, wire: str, rounds: int, more: Sequence[object] = ()) -> Task:
        """Each rank is a process of its own with one thread."""
        return self.bench(["ring", "--world", world, "--bytes", size, "--wire", wire, "--rounds", rounds, *more], 1, wire)

    def local(
        self, config: str, workers: int, sets: Mapping[str, object], threads: int, devices: str = "cpu", limit_s: float = LIMIT_S
    ) -> Task:
        """`coordinator local`, to its end."""
        argv = [self.coordinator, "local", config, "--workers", str(workers), "--devices", devices, "-q"]
        return self.training(argv, {**sets, "train.threads": threads}, threads, limit_s)

    def unlike(self, config: str, sets: Mapping[str, object], setting: str) -> Task:
        """`coordinator local` with two workers of one thread, of which one is at half its speed from the first step on.

        `late_images_per_second` is that of the last third of the steps, when shards have moved that move.
        """
        words = ["local", config, "--workers", "2", "--devices", "cpu", "-q", *assignments({**sets, "train.threads": 1})]

        def carry_out() -> Figures:
            with scratch() as folder:
                run_dir, argv = folder / "run", [self.coordinator, *words, "--run-dir", str(folder / "run")]
                with started(argv, with_threads(1), PROJECT) as (process, out, err):
                    began, lines = time.perf_counter(), JsonLines(run_dir / "metrics.jsonl")
                    while not lines.new() and process.poll() is None and time.perf_counter() - began < LIMIT_S:
                        time.sleep(0.01)
                    workers = children(process.pid)
                    if len(workers) != 2:
                        finish(process, out, err, 1)
                        raise Failed(f"the run has {len(workers)} workers")
                    with at_half_speed(workers[1]):
                        finish(process, out, err, LIMIT_S)
                steps = [line for line in JsonLines(run_dir / "metrics.jsonl").new() if "step_ms" in line]
                late = steps[len(steps) * 2 // 3 :]
                rate = sum(s["samples"] for s in late) / sum(s["step_ms"] for s in late) * 1e3 if late else 0.0
                return {**run_figures(run_dir), "late_images_per_second": rate}

        return Task(key=" ".join(["coordinator", *words, "one at half speed"]), run=carry_out, setting=setting)

    def train(self, config: str, sets: Mapping[str, object], threads: int, device: str = "cpu") -> Task:
        """`worker train`, to its end."""
        argv = [self.worker, "train", config, "--devices", device, "-q"]
        return self.training(argv, {**sets, "train.threads": threads}, threads, LIMIT_S)

    def training(self, argv: Sequence[str], sets: Mapping[str, object], threads: int, limit_s: float) -> Task:
        words = [*argv, *assignments(sets)]

        def carry_out() -> Figures:
            with scratch() as folder:
                run([*words, "--run-dir", str(folder / "run")], with_threads(threads), PROJECT, limit_s)
                return run_figures(folder / "run")

        return Task(key=" ".join([Path(words[0]).name, *words[1:]]), run=carry_out)

    def first_step(self, config: str, workers: int) -> Task:
        """Seconds from the command until the first committed step is on the record."""
        return self.until(config, workers, {"train.threads": 1}, 1, "first step", lambda line: "step_ms" in line, LIMIT_S)

    def accuracy(self, config: str, workers: int, sets: Mapping[str, object], threads: int, target: float, limit_s: float) -> Task:
        """Seconds from the command until an evaluation reaches `target`."""

        def reached(line: dict) -> bool:
            return line.get("eval", {}).get("top1", 0.0) >= target

        return self.until(config, workers, {**sets, "train.threads": threads}, threads, f"top-1 {target}", reached, limit_s)

    def until(
        self,
        config: str,
        workers: int,
        sets: Mapping[str, object],
        threads: int,
        what: str,
        reached: Callable[[dict], bool],
        limit_s: float,
    ) -> Task:
        words = ["local", config, "--workers", str(workers), "--devices", "cpu", "-q", *assignments(sets)]

        def carry_out() -> Figures:
            with scratch() as folder:
                argv = [self.coordinator, *words, "--run-dir", str(folder / "run")]
                metrics = folder / "run/metrics.jsonl"
                return {"seconds": seconds_until(argv, with_threads(threads), PROJECT, metrics, reached, limit_s)}

        return Task(key=" ".join(["coordinator", *words, "until", what]), run=carry_out)


def assignments(sets: Mapping[str, object]) -> list[str]:
    return [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
