#!/usr/bin/env python3
"""Runs Ringleader and PyTorch in turn, prints a table, and writes RESULTS.md. `make bench` calls it after building."""
from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Iterator

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench import environment, gpu, report, rows  # noqa: E402
from bench.measure import Outcome, Row, Session, measure  # noqa: E402
from bench.ours import Ours  # noqa: E402
from bench.peers import Peers  # noqa: E402
from bench.process import Failed  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="list the rows and measure nothing")
    parser.add_argument("--only", metavar="NAME,...", help="measure these rows only")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="turns of each side [3]")
    parser.add_argument("--quick", action="store_true", help="few steps, one turn: shows that it works; nothing is written")
    parser.add_argument("--long", action="store_true", help="also what takes an hour")
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU")
    parser.add_argument("--no-goals", action="store_true", help="exit 0 although goals are not reached")
    parser.add_argument("--data", type=Path, default=os.environ.get("RINGLEADER_DATA"), metavar="DIR",
                        help="with imagenette/, imagenet-samples/ and mnist/ below it [$RINGLEADER_DATA]")  # fmt: skip
    parser.add_argument("--bin", type=Path, default=environment.PROJECT / "target/release", metavar="DIR",
                        help="where the two binaries are [target/release]")  # fmt: skip
    parser.add_argument("--python", type=Path, metavar="FILE", help="a Python that has torch and torchvision")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="cores to use; 0 for all [2; all with --gpu]")
    args = parser.parse_args()
    if args.repeat < 1:
        parser.error(f"--repeat is {args.repeat}: it must be at least 1")
    return args


def selected(all_rows: list[Row], only: str | None) -> list[Row]:
    if only is None:
        return all_rows
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = {row.name for row in all_rows}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Failed(f"there is no row {', '.join(unknown)}; there are {', '.join(row.name for row in all_rows)}")
    return [row for row in all_rows if row.name in names]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def carry_out(chosen: list[Row], turns: int, session: Session) -> Iterator[list[Outcome]]:
    """Group by group, in the order of the table."""
    for group in dict.fromkeys(row.group for row in chosen):
        mine = [row for row in chosen if row.group == group]
        say(f"{', '.join(row.name for row in mine)}")
        yield measure(session, mine, turns)


def facts(python: Path, cores: int) -> list[tuple[str, str]]:
    versions = environment.pytorch_versions(python)
    found = [
        ("machine", environment.machine(cores)),
        ("PyTorch", f"torch {versions['torch']}, torchvision {versions['torchvision']}, Python {versions['python']}"),
        ("Ringleader", f"commit {environment.commit()}, {environment.said(['rustc', '--version']) or 'rustc unknown'}"),
        ("date", environment.today()),
    ]
    return found + ([("GPU", versions["gpu"])] if versions["gpu"] else [])


def main() -> int:
    args = arguments()
    if args.gpu and not args.list:
        problem = environment.gpu_problem()
        if problem:
            raise Failed(f"{problem}; nothing was measured")
    cores = environment.pin_cores(0 if args.gpu else args.cores)
    ours = Ours(args.bin.resolve())
    rows_of = gpu.rows if args.gpu else rows.rows

    def listed(python: Path) -> list[Row]:
        data = environment.Data.below(args.data)
        made = rows_of(rows.Context(ours, Peers(python), data, python, cores, args.quick, args.long, environment.has_bf16()))
        return [rows.fewer_settings(row) for row in made] if args.quick else made

    chosen = selected(listed(Path("python")), args.only)
    if args.list:
        for row in chosen:
            print(f"{row.name:<18} {row.work}{f' (skipped: {row.skip})' if row.skip else ''}")
        return 0
    if ours.missing():
        raise Failed(f"{' and '.join(ours.missing())} is missing: run make build, or name another folder with --bin")
    python = environment.pytorch(args.python, say)
    if args.gpu and not environment.pytorch_versions(python)["gpu"]:
        raise Failed("PyTorch sees no GPU here; nothing was measured")
    all_rows = listed(python)
    chosen = selected(all_rows, args.only)
    busy = os.getloadavg()[0]
    if busy > 0.5:
        say(f"note: other work is running here (load {busy:.1f}): figures will suffer")
    turns = 1 if args.quick else args.repeat
    session, start = Session(say), time.monotonic()
    measured = f"{environment.commit()}, {environment.today()}, load {busy:.1f}"
    about, order = facts(python, cores), [row.name for row in all_rows]
    outcomes: list[Outcome] = []
    lines: list[report.Line] = []
    for group in carry_out(chosen, turns, session):
        outcomes += group
        new = [report.Line.of(outcome, session, measured) for outcome in group]
        lines += new
        if not args.quick:
            # After every group: whoever stops it keeps what is measured.
            write(args.gpu, about, new, order)
    print(report.plain(lines))
    say(f"measured in {(time.monotonic() - start) / 60:.0f} minutes")
    if lines and not args.quick:
        say(f"written: {results(args.gpu).relative_to(environment.PROJECT)}")
    unmet = [outcome.row.name for outcome in outcomes if outcome.met is False]
    if unmet:
        say(f"goals that are not reached: {', '.join(unmet)}")
    return 1 if unmet and not args.no_goals else 0


def results(on_gpu: bool) -> Path:
    return environment.BENCHES / f"RESULTS{'-gpu' if on_gpu else ''}.md"


def write(on_gpu: bool, about: list[tuple[str, str]], lines: list[report.Line], order: list[str]) -> None:
    """RESULTS.md, with the rows that earlier runs here measured in the place of those that this one did not."""
    path = results(on_gpu)
    whole = report.Kept(environment.cache() / f"bench-{path.stem.lower()}.json").add(lines, order)
    title = "Ringleader and PyTorch, on a GPU" if on_gpu else "Ringleader and PyTorch, side by side"
    command = "make bench-gpu" if on_gpu else "make bench"
    path.write_text(report.markdown(title, command, about, whole))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as e:
        sys.exit(f"bench: error: {e}")
    except KeyboardInterrupt:
        sys.exit("bench: stopped")
