#!/usr/bin/env python3
"""Pictures made by torchvision that the worker's augmentations are held against, to the byte.

Writes augment.json beside itself. Needs torchvision and Pillow; the tests need only the file.
The pictures follow from `picture`, which src/data/tests_of_augmentation.rs has too.
"""

import base64
import json
from pathlib import Path

import numpy
import PIL
import torchvision
from PIL import Image
from torchvision.transforms import autoaugment
from torchvision.transforms import functional as F

MASK = 0xFFFFFFFF
# Not even, and enough pixels for a step of equalisation.
SIZE = 17


def picture(channels: int) -> Image.Image:
    """Noise from 30 to 219 on a slope of colours."""
    values = []
    for place in range(SIZE * SIZE * channels):
        x = (place * 2654435761 + 40503) & MASK
        x ^= x >> 16
        x = (x * 0x85EBCA6B) & MASK
        x ^= x >> 13
        values.append(30 + (x >> 8) % 130 + 60 * (place % (SIZE * channels)) // (SIZE * channels))
    shape = (SIZE, SIZE, 3) if channels == 3 else (SIZE, SIZE)
    return Image.fromarray(numpy.array(values, dtype=numpy.uint8).reshape(shape))


def figure(name: str, strength: float, source: Image.Image, made: Image.Image) -> dict:
    pixels = base64.b64encode(numpy.asarray(made).tobytes()).decode()
    return {"name": name, "strength": strength, "channels": len(source.getbands()), "pixels": pixels}


def colours() -> list[dict]:
    """`ColorJitter` and `RandomGrayscale`, where they change something."""
    out = []
    for channels in (3, 1):
        source = picture(channels)
        for factor in (0.0, 0.3, 1.0, 1.7):
            out.append(figure("saturation", factor, source, F.adjust_saturation(source, factor)))
        for shift in (-0.5, -0.1, 0.0, 0.07, 0.4):
            out.append(figure("hue", shift, source, F.adjust_hue(source, shift)))
        out.append(figure("grey", 0.0, source, F.to_grayscale(source, num_output_channels=channels)))
    return out


POLICIES = {
    "randaugment": lambda size: autoaugment.RandAugment()._augmentation_space(31, (size, size)),
    "trivialaugment": lambda size: autoaugment.TrivialAugmentWide()._augmentation_space(31),
}


def magnitudes() -> list[dict]:
    """The strength of each operation at each of 31 magnitudes, for pictures of 224 pixels."""
    out = []
    for policy, space in POLICIES.items():
        for name, (values, signed) in space(224).items():
            strengths = values.tolist() if values.ndim > 0 else []
            out.append({"policy": policy, "name": name, "signed": signed, "strengths": strengths})
    return out


def operations() -> list[dict]:
    """What the operations make of the pictures."""
    out = []

    def add(policy: str, channels: int, magnitude: int, negative: bool) -> None:
        source = picture(channels)
        for name, (values, signed) in POLICIES[policy](SIZE).items():
            strength = float(values[magnitude].item()) if values.ndim > 0 else 0.0
            if negative and not signed:
                continue
            strength = -strength if negative else strength
            made = autoaugment._apply_op(source, name, strength, F.InterpolationMode.NEAREST, None)
            entry = figure(name, strength, source, made)
            out.append(entry | {"policy": policy, "magnitude": magnitude, "negative": negative})

    add("randaugment", 3, 9, False)
    add("randaugment", 3, 25, True)
    # A quarter turn, and the strongest.
    add("trivialaugment", 3, 20, False)
    add("trivialaugment", 3, 30, True)
    add("trivialaugment", 1, 11, True)
    add("trivialaugment", 1, 28, False)
    return out


if __name__ == "__main__":
    figures = {
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "size": SIZE,
        "colours": colours(),
        "magnitudes": magnitudes(),
        "operations": operations(),
    }
    Path(__file__).with_name("augment.json").write_text(json.dumps(figures, indent=1) + "\n")
