"""PyTorch's side: the scripts in `pytorch/`, and the settings that are tried."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Iterable, Sequence

from .environment import BENCHES, PROJECT
from .measure import Task
from .process import LIMIT_S, Failed, Figures, figures, with_threads

# What a PyTorch user can turn on for a training step: the flags, and their name in the table.
LAYOUTS = (((), ""), (("--channels-last",), "channels-last"))
OPTIMIZERS = (((), ""), (("--fused",), "fused SGD"))
# How its input pipeline can decode: as most people have it, and by torchvision's own decoder.
DECODERS = {"pil": "PIL", "torchvision": "decode_image"}


class Peers:
    def __init__(self, python: Path) -> None:
        self.python = str(python)

    def argv(self, script: str, args: Sequence[str], world: int = 1) -> list[str]:
        path = str(BENCHES / "pytorch" / script)
        if world == 1:
            return [self.python, path, *args]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
        return [self.python, *torchrun, path, *args]

    def task(
        self, script: str, args: Sequence[object], threads: int, world: int = 1, setting: str = "", limit_s: float = LIMIT_S
    ) -> Task:
        """`threads` are those of each process; `setting` is its name in the table."""
        words = [str(a) for a in args]
        key = " ".join(["torchrun x" + str(world) if world > 1 else "python", script, *words])
        return Task(
            key=key,
            run=lambda: figures(self.argv(script, words, world), with_threads(threads), PROJECT, limit_s),
            setting=setting or "default",
        )

    def alexnet(self, args: Sequence[object], threads: int, world: int = 1, bf16: bool = False, graph: bool = False) -> list[Task]:
        """AlexNet's steps in every setting; with `graph`, also each as a CUDA graph."""
        tasks = []
        for flags, names in settings(bf16, compress=world > 1, graph=graph):
            words = [*args, "--threads", threads, *flags]
            tasks.append(self.task("alexnet.py", words, threads, world, ", ".join(names)))
        return tasks

    def all_reduce(self, size: int, world: int, rounds: int) -> list[Task]:
        """gloo, each process with one thread of its own. A large gradient also in pieces, as DDP cuts it."""
        args = ["--bytes", size, "--rounds", rounds]
        whole = self.task("all_reduce.py", args, 1, world, "gloo, in one")
        if size < 64 << 20:
            return [whole]
        return [whole, self.task("all_reduce.py", [*args, "--piece-bytes", 25 << 20], 1, world, "gloo, 25 MB pieces")]

    def image_folder(self, folder: Path, images: int, cores: int, decode: str) -> Task:
        args = [folder, "--images", images, "--workers", cores, "--decode", decode]
        return self.task("image_folder.py", args, 1, setting=DECODERS[decode])

    def small(self, model: str, folder: Path, epochs: int, threads: int, by_hand: bool = False) -> list[Task]:
        args = [folder, "--model", model, "--epochs", epochs, "--threads", threads]
        how = ["--by-hand"] if by_hand else []
        name = "sliced by hand" if by_hand else "DataLoader"
        return [
            self.task("small.py", [*args, *how], threads, setting=f"{name}, f32"),
            self.task("small.py", [*args, *how, "--bf16"], threads, setting=f"{name}, bf16 autocast"),
        ]

    def imagenette(self, folder: Path, args: Sequence[object], threads: int, limit_s: float, bf16: bool) -> Task:
        """Time counts from here: the script is told when it was started."""
        words = [str(folder), "--threads", str(threads), *(str(a) for a in args), *([] if bf16 else ["--f32"])]
        return Task(
            key=" ".join(["python imagenette.py", *words]),
            run=lambda: self.since_now("imagenette.py", words, threads, 1, limit_s),
            setting="bf16 autocast, channels-last" if bf16 else "f32, channels-last",
        )

    def first_step(self, world: int) -> Task:
        return Task(
            key=f"torchrun x{world} first_step.py",
            run=lambda: self.since_now("first_step.py", [], 1, world, LIMIT_S),
            setting="torchrun, gloo",
        )

    def since_now(self, script: str, args: Sequence[str], threads: int, world: int, limit_s: float) -> Figures:
        argv = self.argv(script, [*args, "--started-at", repr(time.time())], world)
        found = figures(argv, with_threads(threads), PROJECT, limit_s)
        if found.get("target") is not None and not found.get("reached"):
            raise Failed(f"ended at {100 * (found.get('top1') or 0):.1f} % top-1, below the target")
        return found


def settings(bf16: bool, compress: bool, graph: bool) -> Iterable[tuple[list[str], list[str]]]:
    """Flags and names of every combination; `compress` adds gradients that travel as bf16, `graph` CUDA graphs."""
    first, name = (["--bf16"], ["bf16 autocast"]) if bf16 else ([], ["f32"])
    for layout, layout_name in LAYOUTS:
        for optimizer, optimizer_name in OPTIMIZERS:
            flags = [*first, *layout, *optimizer]
            names = [*name, *(n for n in (layout_name, optimizer_name) if n)]
            yield flags, names
            if compress and optimizer:
                yield [*flags, "--compress"], [*names, "bf16 gradients"]
            if graph and layout and optimizer:
                yield [*flags, "--graph"], [*names, "CUDA graph"]
