"""The rows of the table for a GPU. There are no goals: there is no such machine to hold them on."""
from __future__ import annotations

from dataclasses import replace

from .measure import Row, key_of
from .rows import CONFIG, Context

DEVICE = "cuda:0"
BATCHES = (128, 512, 1024)

# libtorch reads this: matrix products of f32 go through TF32, as PyTorch's flag has it.
TF32 = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}


def rows(c: Context) -> list[Row]:
    return [*(step_row(c, batch, bf16) for bf16 in (True, False) for batch in BATCHES), *shared_rows(c)]


def step_row(c: Context, batch: int, bf16: bool) -> Row:
    """One process; the input lies on the GPU or is one fixed batch, so no data is decoded."""
    steps = c.pick(40, 5)
    precision, shown = ("bf16", "bf16") if bf16 else ("f32", "TF32")
    size = ["--size", 224, "--batch", batch, "--classes", 1000]
    args = [*size, "--device", DEVICE, "--steps", steps, "--warmup", 10, *([] if bf16 else ["--tf32"])]
    ours = c.ours.step(CONFIG, [*size, "--device", DEVICE], precision, steps, c.cores, {} if bf16 else TF32)
    return Row(
        name=f"gpu-{shown.lower()}-{batch}",
        work=f"AlexNet 224 on the GPU, batch {batch}, {shown}",
        unit="images/s",
        ours=replace(ours, setting=shown),
        theirs=[replace(task, setting=task.setting.replace("f32", "TF32")) for task in c.peers.alexnet(args, c.cores, bf16=bf16)],
        group=f"gpu-{shown}-{batch}",
        same_parameters=True,
    )


def shared_rows(c: Context) -> list[Row]:
    """Two workers share the GPU. gloo is the peer's only choice: NCCL refuses two processes on one device."""
    batch, steps, threads = 512, c.pick(40, 5), max(1, c.cores // 2)
    run = {"train.max_steps": steps + 10, "train.global_batch": 2 * batch}
    two = replace(c.ours.local(CONFIG, 2, run, threads, DEVICE), setting="bf16, bf16 on the wire")
    one = replace(c.ours.train(CONFIG, run, c.cores, DEVICE), setting="Ringleader, one process")
    args = ["--batch", batch, "--device", DEVICE, "--steps", steps, "--warmup", 10]
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
