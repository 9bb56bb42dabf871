"""Runs one process at a time and takes its figures: the last line of JSON that it prints."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, Callable, Iterator, Mapping, Optional, Sequence

from contextlib import contextmanager

Figures = dict[str, float]

# How long a process may take that was not given a limit of its own, in seconds.
LIMIT_S = 1200
# How long a process gets to end by itself once it has been asked to.
GRACE_S = 60


class Failed(Exception):
    """A process that did not give figures; the text is one line that says why."""


def with_threads(threads: int, more: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """The environment of a process that computes on so many threads, whatever library counts them."""
    count = str(threads)
    return {**os.environ, "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, **(more or {})}


def last_json(text: str) -> Optional[dict]:
    for line in reversed(text.splitlines()):
        if line.lstrip().startswith("{"):
            try:
                return json.loads(line)
            except ValueError:
                continue
    return None


def reason(text: str, status: Optional[int]) -> str:
    """The line of a failed process's stderr that says most."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # torchrun puts a report of its own after the error of the process that it ran.
    own = [line for line in lines if "ChildFailedError" not in line and "error_file" not in line]
    named = [line for line in own if "Error:" in line or line.lower().startswith("error")]
    said = (named or own or ["it said nothing"])[-1]
    return f"exit code {status}: {said}" if status is not None else said


@contextmanager
def started(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> Iterator[tuple[subprocess.Popen, IO[str], IO[str]]]:
    """A process with its children in a group of their own, none of which outlives this block."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(
            list(argv), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            yield process, out, err
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    """Kills what is left of a process's group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def children(pid: int) -> list[int]:
    """The children of a process, in the order in which they were started."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            # pid (name) state ppid ...
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split() if entry.name.isdigit() else []
        except (OSError, IndexError):
            continue
        if len(fields) > 1 and fields[0] != "Z" and fields[1] == str(pid):
            found.append(int(entry.name))
    return sorted(found)


@contextmanager
def at_half_speed(pid: int, slice_s: float = 0.004) -> Iterator[None]:
    """Stops a process half of the time, in slices that are short against a step."""
    over = threading.Event()

    def slow() -> None:
        try:
            while not over.is_set():
                os.kill(pid, signal.SIGSTOP)
                time.sleep(slice_s)
                os.kill(pid, signal.SIGCONT)
                time.sleep(slice_s)
        except ProcessLookupError:
            pass

    thread = threading.Thread(target=slow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def text_of(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def finish(process: subprocess.Popen, out: IO[str], err: IO[str], limit_s: float) -> str:
    """Waits for the end; returns what was printed."""
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {limit_s:.0f} s; {reason(text_of(err), None)}") from None
    if status != 0:
        raise Failed(reason(text_of(err), status))
    return text_of(out)


def run(argv: Sequence[str], env: Mapping[str, str], cwd: Path, limit_s: float = LIMIT_S) -> str:
    """Runs to the end and returns what was printed."""
    try:
        with started(argv, env, cwd) as (process, out, err):
            return finish(process, out, err, limit_s)
    except OSError as e:
        raise Failed(f"could not start {argv[0]}: {e.strerror}") from e


def figures(argv: Sequence[str], env: Mapping[str, str], cwd: Path, limit_s: float = LIMIT_S) -> Figures:
    """Runs to the end and returns the last line of JSON."""
    found = last_json(run(argv, env, cwd, limit_s))
    if found is None:
        raise Failed("it printed no figures")
    return found


def seconds_until(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    path: Path,
    reached: Callable[[dict], bool],
    limit_s: float = LIMIT_S,
    poll_s: float = 0.005,
) -> float:
    """Starts a process and returns how long it takes until some line of the JSON lines in `path` satisfies `reached`.

    Then the process is asked to stop.
    """
    start = time.perf_counter()
    try:
        with started(argv, env, cwd) as (process, out, err):
            lines = JsonLines(path)
            while True:
                # Whether it had ended is asked before the file is read, so that its last lines are seen.
                ended = process.poll() is not None
                if any(reached(line) for line in lines.new()):
                    seconds = time.perf_counter() - start
                    break
                if ended and process.returncode != 0:
                    raise Failed(reason(text_of(err), process.returncode))
                if ended:
                    raise Failed("it ended before it got there")
                if time.perf_counter() - start > limit_s:
                    raise Failed(f"not there after {limit_s:.0f} s")
                time.sleep(poll_s)
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(GRACE_S)
                except subprocess.TimeoutExpired:
                    pass
            return seconds
    except OSError as e:
        raise Failed(f"could not start {argv[0]}: {e.strerror}") from e


class JsonLines:
    """The whole lines of a growing file, each once."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def new(self) -> list[dict]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
