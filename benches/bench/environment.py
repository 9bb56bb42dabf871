"""Where things are: the user's cache, PyTorch's environment, data, and what this machine is."""
from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

from .process import Failed, figures, run, with_threads

PROJECT = Path(__file__).resolve().parents[2]
BENCHES = PROJECT / "benches"
PACKAGES = ("torch==2.9.0", "torchvision==0.24.0")


def cache() -> Path:
    """The project's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringleader"


def pytorch(told: Optional[Path], say: Callable[[str], None]) -> Path:
    """A Python that has PyTorch: the one that was named, or one of our own, made the first time."""
    if told:
        check_pytorch(told)
        return told
    venv = cache() / "bench-venv"
    python, complete = venv / "bin/python", venv / ".complete"
    wanted = "\n".join(PACKAGES) + "\n"
    if not complete.exists() or complete.read_text() != wanted:
        say(f"installing {' and '.join(PACKAGES)} into {venv} (once; some gigabytes)")
        here = with_threads(1)
        run(["python3", "-m", "venv", str(venv)], here, PROJECT, 600)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run([*pip, *PACKAGES], here, PROJECT, 3600)
        check_pytorch(python)
        complete.write_text(wanted)
    return python


def check_pytorch(python: Path) -> None:
    try:
        pytorch_versions(python)
    except Failed as e:
        raise Failed(f"{python} cannot import torch and torchvision: {e}") from e


def pytorch_versions(python: Path) -> dict:
    """Versions, and the GPU that PyTorch sees, if it sees one."""
    code = (
        "import json, platform, torch, torchvision; gpu = torch.cuda.is_available(); "
        "print(json.dumps({'torch': torch.__version__, 'torchvision': torchvision.__version__, "
        "'python': platform.python_version(), 'gpu': torch.cuda.get_device_name(0) if gpu else None}))"
    )
    return figures([str(python), "-c", code], with_threads(1), PROJECT, 300)


def gpu_problem() -> str:
    """Why nothing can be measured on a GPU; empty if it can."""
    try:
        names = run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], os.environ, PROJECT, 60)
    except Failed as e:
        return f"there is no GPU here: {e}"
    return "" if names.strip() else "there is no GPU here: nvidia-smi lists none"


def pin_cores(count: int) -> int:
    """Keeps this process and all that it starts on `count` cores; returns how many it got. 0 leaves all."""
    if not hasattr(os, "sched_setaffinity"):
        return min(count or sys.maxsize, os.cpu_count() or 1)  # Not every system can.
    allowed = sorted(os.sched_getaffinity(0))
    if 0 < count < len(allowed):
        allowed = allowed[:count]
        os.sched_setaffinity(0, allowed)
    return len(allowed)


@dataclass(frozen=True)
class Data:
    """Folders of data, where there are any."""

    imagenette: Optional[Path]
    samples: Optional[Path]
    mnist: Optional[Path]

    @classmethod
    def below(cls, folder: Optional[Path]) -> Data:
        def there(name: str, holds: str) -> Optional[Path]:
            found = folder.resolve() / name if folder else None
            return found if found and any(found.glob(holds)) else None

        return cls(
            imagenette=there("imagenette", "train/*/*") and there("imagenette", "val/*/*"),
            samples=there("imagenet-samples", "*/*"),
            mnist=there("mnist", "train-images-idx3-ubyte*"),
        )


def made_pictures(python: Path, width: int, height: int) -> Path:
    """A folder of made JPEG pictures in the cache, for where there are no real ones."""
    folder = cache() / f"bench-pictures-{width}x{height}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        script = [str(python), str(BENCHES / "pytorch/pictures.py"), str(folder)]
        figures([*script, "--width", str(width), "--height", str(height)], with_threads(1), PROJECT, 600)
    return folder


def said(argv: list[str]) -> str:
    """The first line that a short command prints; empty if it fails."""
    try:
        done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def cpuinfo() -> list[str]:
    """What the system says of its processors, a line a fact; nothing where it says nothing."""
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def cpu_model() -> str:
    names = [line.split(":", 1)[1].strip() for line in cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers; else libraries make them out of f32, several times as slowly."""
    flags = next((line.split() for line in cpuinfo() if line.startswith(("flags", "Features"))), None)
    return flags is None or not {"avx512_bf16", "bf16"}.isdisjoint(flags)


def commit() -> str:
    """The short hash, with a mark when the tree has other changes than the results themselves."""
    changed = said(["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benches/RESULTS*.md"])
    return (said(["git", "rev-parse", "--short", "HEAD"]) or "unknown") + (" with changes" if changed else "")


def machine(cores: int) -> str:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    bf16 = "with bf16" if has_bf16() else "without bf16"
    return f"{cpu_model()} {bf16}, {cores} cores used of {os.cpu_count()}, {memory:.0f} GiB, {platform.system()} {platform.release()}"


def today() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
