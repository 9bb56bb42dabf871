"""Installs the packages that a file beside this one names, such as requirements.txt, into the user's cache, once, and
prints the folder in which they are. Ends with an error where they cannot be had."""
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

requirements = Path(__file__).resolve().with_name(sys.argv[1])
cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ringleader"
packages = cache / f"tests-python-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
done = packages / ".complete"
cache.mkdir(parents=True, exist_ok=True)
# Tests run side by side; one of them installs, and the others wait.
with open(cache / "tests-python.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # A place that is out of reach is to be found out soon.
        pip += ["--retries", "1", "--timeout", "20", "--target", str(packages), "-r", str(requirements)]
        outcome = subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if outcome.returncode != 0:
            sys.exit(f"the packages of {requirements.name} cannot be installed: {outcome.stderr}")
        done.touch()
print(packages)
