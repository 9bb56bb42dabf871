"""Writes class folders below ROOT/train and ROOT/val as shards of a few samples by webdataset: OUT/SPLIT-NNNNNN.tar."""
import sys
from pathlib import Path

import webdataset

root, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
for split in ("train", "val"):
    classes = sorted(p.name for p in (root / split).iterdir())
    with webdataset.ShardWriter(str(out / f"{split}-%06d.tar"), maxcount=5, verbose=0) as writer:
        number = 0
        for label, name in enumerate(classes):
            for file in sorted((root / split / name).iterdir()):
                ending = file.suffix.lower().lstrip(".").replace("jpeg", "jpg")
                writer.write({"__key__": f"{number:06}", ending: file.read_bytes(), "cls": label})
                number += 1
(out / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
