"""Folders of the user's cache that are filled once."""
import fcntl
import os
from pathlib import Path


def once(name, lock, fill):
    """The folder `name`, which `fill` is given to fill if that was not done before. Tests run side by side: one of
    those that take the same lock fills, and the others wait."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringleader"
    folder = cache / name
    done = folder / ".complete"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            fill(folder)
            done.touch()
    return folder
