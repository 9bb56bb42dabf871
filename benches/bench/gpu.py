"""The rows of the table for a GPU. There are no goals: there is no such machine to hold them on."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .measure import Row, key_of
from .process import LIMIT_S
from .rows import CONFIG, IMAGENETTE, NO_DATA, Context

DEVICE = "cuda:0"
BATCHES = (128, 512, 1024)

# Steps before those that count.
WARM_UP = 10


def rows(c: Context) -> list[Row]:
    steps = [step_row(c, batch, bf16) for bf16 in (True, False) for batch in BATCHES]
    return [*steps, pictures_row(c), *shared_rows(c)]


def pictures_row(c: Context) -> Row:
    """Real training on real pictures: decoding, augmentation, copies and all."""
    batch, steps = 512, c.pick(80, 10)
    pictures = c.data.imagenette or Path("imagenette")
    run = {"data.path": pictures, "train.precision": "bf16", "train.global_batch": batch, "train.max_steps": steps}
    args = ["--max-steps", steps, "--batch", batch, "--device", DEVICE, "--workers", c.cores]
    return Row(
        name="gpu-pictures",
        work=f"training on Imagenette at 128 pixels, batch {batch}, bf16, pictures decoded by {c.cores} cores",
        unit="images/s",
        ours=replace(c.ours.train(IMAGENETTE, run, c.cores, DEVICE), setting="bf16"),
        theirs=[c.peers.imagenette(pictures, args, c.cores, LIMIT_S, True)],
        group="gpu-pictures",
        skip="" if c.data.imagenette else f"{NO_DATA} imagenette/train and imagenette/val",
    )


def step_row(c: Context, batch: int, bf16: bool) -> Row:
    """One process; the input lies on the GPU on both sides."""
    steps = c.pick(40, 5)
    precision, shown = ("bf16", "bf16") if bf16 else ("tf32", "TF32")
    size = ["--size", 224, "--batch", batch, "--classes", 1000]
    args = [*size, "--device", DEVICE, "--steps", steps, "--warmup", WARM_UP, *([] if bf16 else ["--tf32"])]
    ours = c.ours.step(CONFIG, [*size, "--devices", DEVICE, "--resident", "--warm-up", WARM_UP], precision, steps, c.cores)
    return Row(
        name=f"gpu-{shown.lower()}-{batch}",
        work=f"AlexNet 224 on the GPU, batch {batch}, {shown}",
        unit="images/s",
        ours=replace(ours, setting=shown),
        theirs=[replace(task, setting=task.setting.replace("f32", "TF32")) for task in c.peers.alexnet(args, c.cores, bf16=bf16, graph=True)],
        group=f"gpu-{shown}-{batch}",
        same_parameters=True,
    )


def shared_rows(c: Context) -> list[Row]:
    """Two workers share the GPU. gloo is the peer's only choice: NCCL refuses two processes on one device."""
    batch, steps, threads = 512, c.pick(40, 5), max(1, c.cores // 2)
    run = {"train.max_steps": steps + WARM_UP, "train.global_batch": 2 * batch}
    two = replace(c.ours.local(CONFIG, 2, run, threads, f"{DEVICE},{DEVICE}"), setting="bf16, bf16 on the wire")
    one = replace(c.ours.train(CONFIG, run, c.cores, DEVICE), setting="Ringleader, one process")
    args = ["--batch", batch, "--device", DEVICE, "--steps", steps, "--warmup", WARM_UP]
    share = key_of("data_wait_share")
    return [
        Row(
            name="gpu-ring",
            work=f"two workers share the GPU, global batch {2 * batch}, bf16",
            unit="images/s",
            ours=two,
            theirs=c.peers.alexnet(args, threads, world=2, bf16=True),
            group="gpu-ring",
        ),
        Row(
            name="gpu-scaling",
            work="the same, against Ringleader in one process",
            unit="images/s",
            ours=two,
            theirs=[one],
            group="gpu-ring",
            against_own=True,
        ),
        Row(
            name="gpu-data-wait",
            work="share of its step spent waiting for generated pictures",
            unit="%",
            ours=two,
            value=lambda f: share(f) * 100,
            higher_is_better=False,
            group="gpu-ring",
        ),
    ]
