"""Writes class folders below ROOT/train and ROOT/val as Parquet files as Hugging Face's datasets writes them for the Hub:
OUT/data/SPLIT-NNNNN-of-NNNNN.parquet, with a few rows in a row group."""
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

root, out = Path(sys.argv[1]), Path(sys.argv[2]) / "data"
out.mkdir(parents=True, exist_ok=True)
for split, hub, shards in (("train", "train", 2), ("val", "validation", 1)):
    classes = sorted(p.name for p in (root / split).iterdir())
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((root / split / name).iterdir())]
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    schema = pa.schema(
        [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    each = -(-len(files) // shards)
    for n in range(shards):
        part = files[n * each : (n + 1) * each]
        rows = {"image": [{"bytes": f.read_bytes(), "path": f.name} for f, _ in part], "label": [label for _, label in part]}
        pq.write_table(pa.table(rows, schema), out / f"{hub}-{n:05}-of-{shards:05}.parquet", row_group_size=5)
