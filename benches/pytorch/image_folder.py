"""The input pipeline alone: ImageFolder and DataLoader with AlexNet's training augmentation; nothing is trained.

    python image_folder.py DIR --workers 2 --images 4000
"""
from __future__ import annotations

import argparse
import time

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision import transforms as T
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from net import emit

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Repeated(Dataset):
    """The first `length` samples of a dataset that starts over at its end."""

    def __init__(self, dataset: Dataset, length: int) -> None:
        self.dataset, self.length = dataset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        return self.dataset[index % len(self.dataset)]


def read_tensor(path: str) -> torch.Tensor:
    return decode_image(path, mode=ImageReadMode.RGB)


def image_folder(path: str, size: int, decode: str) -> datasets.ImageFolder:
    """Pictures through PIL, as most people have it, or as tensors through torchvision's own decoder."""
    if decode == "pil":
        steps = [T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.ColorJitter(0.4, 0.4, 0.4)]
        return datasets.ImageFolder(path, T.Compose([*steps, T.ToTensor(), T.Normalize(MEAN, STD)]))
    steps = [v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.ColorJitter(0.4, 0.4, 0.4)]
    whole = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    return datasets.ImageFolder(path, whole, loader=read_tensor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", help="a folder per class")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=0, help="read so many, starting over if there are fewer [all]")
    parser.add_argument("--decode", choices=["pil", "torchvision"], default="pil")
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = image_folder(args.dir, args.size, args.decode)
    samples = Repeated(folder, args.images or len(folder))
    loader = DataLoader(samples, args.batch, shuffle=True, num_workers=args.workers)
    start, read = time.perf_counter(), 0
    for _, labels in loader:
        read += len(labels)
    seconds = time.perf_counter() - start
    emit(images_per_second=read / seconds, images=read, seconds=seconds)


if __name__ == "__main__":
    main()
