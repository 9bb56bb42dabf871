"""Makes ILSVRC2012's files of class folders below ROOT/train and ROOT/val: OUT has tars in a tar, and Kaggle's two tables."""
import io
import sys
import tarfile
from pathlib import Path

WNIDS = {"n01440764": "tench, Tinca tinca", "n01443537": "goldfish, Carassius auratus", "n02129165": "lion, king of beasts"}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


root, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir(parents=True)
with tarfile.open(out / "ILSVRC2012_img_train.tar", "w") as outer:
    for wnid, folder in zip(WNIDS, sorted((root / "train").iterdir())):
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode="w") as tar:
            for n, file in enumerate(sorted(folder.iterdir())):
                add(tar, f"{wnid}_{n}.JPEG", file.read_bytes())
        add(outer, f"{wnid}.tar", inner.getvalue())
truth = ["ImageId,PredictionString"]
with tarfile.open(out / "ILSVRC2012_img_val.tar", "w") as tar:
    for wnid, folder in zip(WNIDS, sorted((root / "val").iterdir())):
        for file in sorted(folder.iterdir()):
            name = f"ILSVRC2012_val_{len(truth):08}"
            add(tar, f"{name}.JPEG", file.read_bytes())
            truth.append(f"{name},{wnid} 1 2 3 4")
(out / "LOC_val_solution.csv").write_text("\n".join(truth) + "\n")
(out / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {words}\n" for wnid, words in WNIDS.items()))
