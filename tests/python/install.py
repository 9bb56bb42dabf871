"""Installs the packages that a file beside this one names, such as requirements.txt, into the user's cache, once, and
prints the folder in which they are. Ends with an error where they cannot be had."""
import hashlib
import subprocess
import sys
from pathlib import Path

from once import once

requirements = Path(__file__).resolve().with_name(sys.argv[1])


def install(packages):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # A place that is out of reach is to be found out soon.
    pip += ["--retries", "1", "--timeout", "20", "--target", str(packages), "-r", str(requirements)]
    outcome = subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if outcome.returncode != 0:
        sys.exit(f"the packages of {requirements.name} cannot be installed: {outcome.stderr}")


print(once(f"tests-python-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}", "tests-python.lock", install))
