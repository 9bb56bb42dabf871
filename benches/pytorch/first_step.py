"""From the command to the first committed step of DistributedDataParallel.

    torchrun --standalone --nproc-per-node 2 first_step.py --started-at $(date +%s.%N)
"""
from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from net import alexnet, emit, parameters, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--started-at", type=float, required=True, help="when the command was given: seconds since 1970")
    parser.add_argument("--batch", type=int, default=32, help="pictures of each process")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo")
    net = alexnet(args.classes, args.size, "notes", args.width)
    model = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), 0.001)
    images, labels = torch.randn(args.batch, 3, args.size, args.size), torch.randint(0, args.classes, (args.batch,))
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    seconds = slowest([time.time() - args.started_at])[0]
    if dist.get_rank() == 0:
        emit(seconds=seconds, parameters=parameters(net), world=dist.get_world_size())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
