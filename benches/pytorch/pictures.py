"""Makes JPEG pictures to measure decoding with, where there are no real ones: soft shapes under noise.

    python pictures.py OUT --classes 10 --each 100 --width 224 --height 224
"""
from __future__ import annotations

import argparse
import os
import pathlib

import numpy as np
from PIL import Image

from net import emit


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """About as many bytes a pixel as a photograph has: large shapes, some detail, a little noise."""
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((4, 0.6), (24, 0.3), (96, 0.1)):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    total += rng.normal(0.0, 4.0, total.shape)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--each", type=int, default=100, help="pictures of each class")
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--height", type=int, default=224)
    args = parser.parse_args()
    rng = np.random.default_rng(1)
    size = 0
    # Under another name until all are there, so that a folder is whole or absent.
    making = args.out.with_name(f"{args.out.name}.{os.getpid()}.new")
    for label in range(args.classes):
        folder = making / f"class-{label:03}"
        folder.mkdir(parents=True)
        for place in range(args.each):
            path = folder / f"{place:04}.jpg"
            picture(rng, args.width, args.height).save(path, quality=90)
            size += path.stat().st_size
    making.rename(args.out)
    emit(pictures=args.classes * args.each, mean_bytes=size / (args.classes * args.each))


if __name__ == "__main__":
    main()
