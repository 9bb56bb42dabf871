"""gloo's all-reduce of f32 under torchrun.

    torchrun --standalone --nproc-per-node 2 all_reduce.py --bytes 249513376 --rounds 15
"""
from __future__ import annotations

import argparse
import time

import torch
import torch.distributed as dist

from net import emit, median, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, required=True, help="of f32, on each process")
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--piece-bytes", type=int, default=0, help="cut the gradient into pieces and reduce them side by side, as DDP does"
    )
    args = parser.parse_args()
    if args.bytes < 4 or args.bytes % 4:
        parser.error(f"--bytes is {args.bytes}: it must be a multiple of 4")
    torch.set_num_threads(args.threads)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    gradient = torch.empty(args.bytes // 4)
    pieces = gradient.split(max(1, args.piece_bytes // 4)) if args.piece_bytes else (gradient,)
    times = []
    for _ in range(args.warmup + args.rounds):
        gradient.fill_(1.0)
        dist.barrier()
        start = time.perf_counter()
        for work in [dist.all_reduce(piece, async_op=True) for piece in pieces]:
            work.wait()
        times.append(time.perf_counter() - start)
    assert gradient[0] == world and gradient[-1] == world, "the sum is wrong"

    counted = slowest(times)[args.warmup :]
    if rank == 0:
        middle = median(counted)
        emit(
            world=world,
            bytes=args.bytes,
            median_ms=middle * 1e3,
            best_ms=min(counted) * 1e3,
            # As nccl-tests define it: what each process's link carries.
            bus_gb_per_s=args.bytes / middle * 2 * (world - 1) / world / 1e9,
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
