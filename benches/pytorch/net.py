"""What the scripts here share: AlexNet with Ringleader's layer sizes, and small helpers."""
from __future__ import annotations

import json
import resource
import statistics
from typing import Any, Sequence

import torch
from torch import nn

# Channels of the five convolutions: `model.preset` of Ringleader's configs.
PRESETS = {
    "notes": (96, 256, 384, 384, 384),
    "original": (96, 256, 384, 384, 256),
}
HIDDEN = 4096


def alexnet(
    classes: int = 1000, size: int = 224, preset: str = "original", width: float = 1.0, dropout_first: bool = False
) -> nn.Sequential:
    """AlexNet for square pictures of `size` pixels; `width` scales channels and hidden units.

    Dropout follows each hidden dense layer, or precedes it with `dropout_first`, as in torchvision's model.
    At 224 pixels and 1000 classes `notes` has 81,695,208 parameters, `original` 62,378,344.
    """
    c1, c2, c3, c4, c5 = (max(1, round(channels * width)) for channels in PRESETS[preset])
    hidden = max(1, round(HIDDEN * width))

    def pooled(side: int) -> int:
        return (side - 3) // 2 + 1

    side = pooled(pooled(pooled((size + 2 * 2 - 11) // 4 + 1)))
    features = [
        nn.Conv2d(3, c1, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c1, c2, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(c2, c3, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(c4, c5, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(),
    ]  # fmt: skip
    dense1, dense2, dense3 = nn.Linear(c5 * side * side, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes)
    if dropout_first:
        classifier = [nn.Dropout(), dense1, nn.ReLU(), nn.Dropout(), dense2, nn.ReLU(), dense3]
    else:
        classifier = [dense1, nn.ReLU(), nn.Dropout(), dense2, nn.ReLU(), nn.Dropout(), dense3]
    return nn.Sequential(*features, *classifier)


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in model.parameters())


def peak_rss_bytes() -> int:
    """The most memory this process has held. Linux gives KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def slowest(times: Sequence[float]) -> list[float]:
    """The slowest rank's time of each round: a step or a sum is over when all have it."""
    together = torch.tensor(times, dtype=torch.float64)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
    return together.tolist()


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def emit(**figures: Any) -> None:
    """Prints figures as one line of JSON; the driver reads the last one."""
    print(json.dumps(figures), flush=True)
