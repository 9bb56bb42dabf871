#!/usr/bin/env python3
"""Prints what Pillow makes of the files of a folder: see mod.rs. Needs Pillow 13 or newer."""
import hashlib
import sys
from pathlib import Path

from PIL import Image, ImageOps


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def rgb(picture: Image.Image) -> Image.Image:
    # Sixteen bits of grey: Pillow cuts off what exceeds eight, others take the upper half.
    if picture.mode.startswith("I;16"):
        picture = Image.frombytes("L", picture.size, picture.tobytes()[1::2])
    return picture.convert("RGB")


for path in sorted(Path(sys.argv[1]).iterdir()):
    content = path.read_bytes()
    try:
        with Image.open(path) as picture:
            upright = rgb(ImageOps.exif_transpose(picture))
        found = f"{upright.width}x{upright.height} {digest(upright.tobytes())}"
    except (OSError, SyntaxError, ValueError) as e:
        print(f"{path.name}: {e}", file=sys.stderr)
        found = "refused"
    print(path.name, digest(content), found)
