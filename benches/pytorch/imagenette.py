"""Time to accuracy: AlexNet on class folders (Imagenette), the way a PyTorch user trains it on a CPU.

    python imagenette.py DIR --target 0.72 --started-at $(date +%s.%N)

bf16 autocast unless told otherwise, channels-last, one-cycle learning rate. Prints a line of JSON after every epoch, and one more at the
end. Time counts from --started-at, so that what it takes to start Python and to import counts too.
"""
from __future__ import annotations

import time

IMPORTED_AT = time.time()

import argparse  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision import datasets  # noqa: E402
from torchvision import transforms as T  # noqa: E402

from net import alexnet, emit  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", help="with train/ and val/ below it")
    parser.add_argument("--target", type=float, help="stop when an evaluation reaches this top-1 accuracy")
    parser.add_argument("--started-at", type=float, default=IMPORTED_AT, help="seconds since 1970")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--f32", action="store_true", help="no autocast: faster on processors without bf16 arithmetic")
    parser.add_argument("--max-steps", type=int, help="stop after so many steps, without an evaluation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="DataLoader processes")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda:N")
    return parser.parse_args()


def loaders(args: argparse.Namespace) -> tuple[DataLoader, DataLoader, int]:
    """Training and validation batches, and the number of classes."""
    norm = T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    crop = T.Compose([T.RandomResizedCrop(args.size, scale=(0.35, 1)), T.RandomHorizontalFlip(), T.ToTensor(), norm])
    centre = T.Compose([T.Resize(int(args.size * 1.14)), T.CenterCrop(args.size), T.ToTensor(), norm])
    train, val = datasets.ImageFolder(f"{args.dir}/train", crop), datasets.ImageFolder(f"{args.dir}/val", centre)
    # What a PyTorch user turns on for a GPU.
    how = {"num_workers": args.workers, "pin_memory": args.device.type == "cuda", "persistent_workers": args.workers > 0}
    return (
        DataLoader(train, args.batch, shuffle=True, drop_last=True, **how),
        DataLoader(val, 128, **how),
        len(train.classes),
    )


def model(classes: int, size: int) -> nn.Module:
    net = alexnet(classes, size, "notes", dropout_first=True).to(memory_format=torch.channels_last)
    layers = [layer for layer in net if hasattr(layer, "weight")]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    nn.init.normal_(layers[-1].weight, 0, 0.01)
    return net


@torch.no_grad()
def top1(net: nn.Module, batches: DataLoader, bf16: bool, device: torch.device) -> float:
    net.eval()
    right = seen = 0
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        for images, labels in batches:
            images = images.to(device, memory_format=torch.channels_last)
            right += (net(images).argmax(1) == labels.to(device)).sum().item()
            seen += len(labels)
    return right / seen


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    train, val, classes = loaders(args)
    torch.backends.cudnn.benchmark = True
    net = model(classes, args.size).to(args.device)
    fused = True if args.device.type == "cuda" else None
    optimizer = torch.optim.SGD(net.parameters(), args.lr, momentum=0.9, weight_decay=5e-4, fused=fused)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.lr, total_steps=args.epochs * len(train), pct_start=0.15
    )
    most = args.max_steps or args.epochs * len(train)
    steps, accuracy, waited, worked, seen = 0, None, 0.0, 0.0, 0
    for epoch in range(args.epochs):
        net.train()
        total, in_epoch, mark = 0.0, 0, time.perf_counter()
        for images, labels in train:
            arrived = time.perf_counter()
            images = images.to(args.device, memory_format=torch.channels_last, non_blocking=True)
            labels = labels.to(args.device, non_blocking=True)
            optimizer.zero_grad()
            with torch.autocast(args.device.type, dtype=torch.bfloat16, enabled=not args.f32):
                loss = F.cross_entropy(net(images).float(), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
            steps, in_epoch = steps + 1, in_epoch + 1
            # The first steps fill caches and start threads and processes.
            if steps > 5:
                waited, worked = waited + arrived - mark, worked + time.perf_counter() - mark
                seen += len(images)
            mark = time.perf_counter()
            if steps >= most:
                break
        if args.max_steps and steps >= most:
            break
        accuracy = top1(net, val, not args.f32, args.device)
        seconds = time.time() - args.started_at
        emit(epoch=epoch, steps=steps, loss=total / in_epoch, top1=accuracy, seconds=seconds)
        if args.target is not None and accuracy >= args.target:
            break
    emit(
        reached=accuracy is not None and args.target is not None and accuracy >= args.target,
        target=args.target,
        top1=accuracy,
        steps=steps,
        seconds=time.time() - args.started_at,
        data_wait_share=waited / worked if worked else None,
        images_per_second=seen / worked if worked else None,
    )


if __name__ == "__main__":
    main()
