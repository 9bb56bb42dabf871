"""Softmax regression, an MLP and LeNet on MNIST's IDX files, with DataLoader and SGD: seconds an epoch.

    python small.py DIR --model mlp --epochs 3
"""
from __future__ import annotations

import argparse
import gzip
import pathlib
import struct
import time
from typing import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from net import emit, parameters

LEARNING_RATES = {"softmax": 0.1, "mlp": 0.1, "lenet": 0.9}


def idx(path: pathlib.Path) -> torch.Tensor:
    """The numbers of an IDX file, plain or gzipped."""
    raw = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    dimensions = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    return torch.from_numpy(values.reshape(dimensions).copy())


def split(folder: pathlib.Path, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = idx(folder / f"{name}-images-idx3-ubyte").float().div(255).unsqueeze(1)
    return images, idx(folder / f"{name}-labels-idx1-ubyte").long()


def network(name: str) -> nn.Sequential:
    if name == "softmax":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))
    lenet = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10),
    )  # fmt: skip
    for layer in lenet:
        # With PyTorch's default weights, sigmoids do not leave their plateau.
        if hasattr(layer, "weight"):
            nn.init.xavier_uniform_(layer.weight)
    return lenet


def slices(images: torch.Tensor, labels: torch.Tensor, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Shuffled batches without a DataLoader: what the data allows that lies in memory as one tensor."""
    for places in torch.randperm(len(labels)).split(batch):
        yield images[places], labels[places]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path, help="with MNIST's four IDX files, plain or gzipped")
    parser.add_argument("--model", choices=sorted(LEARNING_RATES), default="softmax")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="autocast")
    parser.add_argument("--by-hand", action="store_true", help="slice the tensors instead of using a DataLoader")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images, labels = split(args.dir, "train")
    test_images, test_labels = split(args.dir, "t10k")
    net = network(args.model)
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATES[args.model])
    loader = DataLoader(TensorDataset(images, labels), args.batch, shuffle=True)
    times = []
    for _ in range(args.epochs):
        start = time.perf_counter()
        for x, y in slices(images, labels, args.batch) if args.by_hand else loader:
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.bf16):
                loss = F.cross_entropy(net(x).float(), y)
            loss.backward()
            optimizer.step()
        times.append(time.perf_counter() - start)
    with torch.no_grad():
        accuracy = (net(test_images).argmax(1) == test_labels).float().mean().item()
    emit(model=args.model, epoch_seconds=min(times), epochs=args.epochs, top1=accuracy, parameters=parameters(net))


if __name__ == "__main__":
    main()
