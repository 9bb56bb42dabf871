"""Writes the licences of all crates that are linked into the binaries into one file.

    scripts/licenses.py cpu|cuda|flex FILE
"""
import hashlib
import json
import subprocess
import sys
from pathlib import Path

kind, out = sys.argv[1], Path(sys.argv[2])
features = ["--no-default-features", "--features", "worker/flex,worker/parquet,coordinator/parquet"] if kind == "flex" else []
host = next(line.split()[1] for line in subprocess.check_output(["rustc", "-vV"], text=True).splitlines() if line.startswith("host:"))
metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--filter-platform", host, *features]))
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

# What is linked: normal dependencies, from the two binaries on.
linked, waiting = set(), [p["id"] for p in packages.values() if p["name"] in ("worker", "coordinator") and p["source"] is None]
while waiting:
    package = waiting.pop()
    if package not in linked:
        linked.add(package)
        normal = (d for d in nodes[package]["deps"] if any(kind["kind"] is None for kind in d["dep_kinds"]))
        waiting += [dependency["pkg"] for dependency in normal]

crates = sorted((packages[p] for p in linked if packages[p]["source"] is not None), key=lambda p: (p["name"], p["version"]))
texts, lines = {}, []
for crate in crates:
    folder = Path(crate["manifest_path"]).parent
    names = ("license", "licence", "copying", "notice", "copyright", "unlicense")
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.lower().startswith(names))
    numbers = []
    for file in files:
        text = file.read_text(errors="replace").strip()
        key = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
        number, _ = texts.setdefault(key, (len(texts) + 1, text))
        numbers.append(number)
    where = "texts " + ", ".join(map(str, numbers)) if numbers else f"see {crate['repository'] or 'https://crates.io/crates/' + crate['name']}"
    lines.append(f"{crate['name']} {crate['version']}: {crate['license'] or 'see its text'}; {where}")

with open(out, "w") as file:
    file.write(f"The binaries contain code of these {len(crates)} crates.\n\n" + "\n".join(lines) + "\n")
    for number, text in texts.values():
        file.write(f"\n{'=' * 78}\nText {number}\n{'=' * 78}\n{text}\n")
print(f"dist: licences of {len(crates)} crates, {len(texts)} texts", file=sys.stderr)
