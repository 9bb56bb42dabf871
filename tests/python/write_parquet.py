"""Writes class folders below ROOT/train and ROOT/val as Parquet files by Hugging Face's datasets, as the Hub has them:
OUT/data/SPLIT-NNNNN-of-NNNNN.parquet, with a few rows in a row group."""
import sys
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

root, out = Path(sys.argv[1]), Path(sys.argv[2]) / "data"
out.mkdir(parents=True, exist_ok=True)
for split, hub, shards in (("train", "train", 2), ("val", "validation", 1)):
    classes = sorted(p.name for p in (root / split).iterdir())
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((root / split / name).iterdir())]
    rows = {"image": [{"bytes": f.read_bytes(), "path": f.name} for f, _ in files], "label": [label for _, label in files]}
    whole = Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=classes)}))
    for n in range(shards):
        part = whole.shard(shards, n, contiguous=True)
        part.to_parquet(out / f"{hub}-{n:05}-of-{shards:05}.parquet", batch_size=5)
