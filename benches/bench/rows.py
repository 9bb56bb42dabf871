"""The rows of the table: what is measured on the CPU, and what is to be reached there."""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Optional

from .environment import Data, made_pictures
from .measure import Goal, Row, Task, key_of
from .ours import Ours
from .peers import DECODERS, Peers
from .process import Figures

CONFIG = "benches/alexnet-224.toml"
IMAGENETTE = "configs/alexnet-imagenette.toml"
QUICK = "configs/alexnet-imagenette-quick.toml"
SMALL = "configs/alexnet-synthetic.toml"

# One gradient of AlexNet in its published widths, 62,378,344 numbers.
GRADIENT_BYTES = 249_513_376
TARGET = 0.72
NO_DATA = "no data: --data DIR with"


@dataclass(frozen=True)
class Context:
    """What the rows are made from."""

    ours: Ours
    peers: Peers
    data: Data
    python: Path
    cores: int
    quick: bool
    long: bool
    # Whether the processor has bf16 arithmetic. Where it has not, both sides train faster in f32.
    bf16: bool

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "f32"

    def pick(self, full: int, quick: int) -> int:
        return quick if self.quick else full


def at_least(bound: float) -> Goal:
    return Goal(bound, at_least=True)


def at_most(bound: float) -> Goal:
    return Goal(bound, at_least=False)


def rows(c: Context) -> list[Row]:
    return [*step_rows(c), *cluster_rows(c), *ring_rows(c), *input_rows(c), *learning_rows(c), *small_rows(c), first_step_row(c)]


def fewer_settings(row: Row) -> Row:
    """For a quick look: of the other side's settings, the plainest and the one with most turned on."""
    return replace(row, theirs=[row.theirs[0], row.theirs[-1]] if len(row.theirs) > 2 else row.theirs)


def step_rows(c: Context) -> list[Row]:
    """One process, all cores."""
    steps, size = c.pick(8, 2), ["--size", 224, "--batch", 32, "--classes", 1000]
    args = [*size, "--steps", steps, "--warmup", c.pick(2, 1)]

    def row(name: str, precision: str, goal: Goal, skip: str = "") -> Row:
        return Row(
            name=name,
            work=f"AlexNet 224, batch 32, one process, {c.cores} threads, {precision}",
            unit="images/s",
            ours=c.ours.step(CONFIG, size, precision, steps, c.cores),
            theirs=c.peers.alexnet(args, c.cores, bf16=precision == "bf16"),
            goal=goal,
            group=name,
            same_parameters=True,
            skip=skip,
        )

    without = "" if c.bf16 else "this processor has no bf16 arithmetic"
    return [row("step-f32", "f32", at_least(1.0)), row("step-bf16", "bf16", at_least(1.1), without)]


def cluster_rows(c: Context) -> list[Row]:
    """Workers on one machine, against DistributedDataParallel; all of one group, so that runs are shared."""
    rate = key_of("images_per_second")
    steps = c.pick(8, 2)
    run = {"train.max_steps": c.pick(14, 7), "train.global_batch": 64, "train.precision": c.precision}
    setting = f"{c.precision}, bf16 on the wire"
    ring = replace(c.ours.local(CONFIG, 2, run, 1), setting=setting)
    alone = replace(c.ours.train(CONFIG, run, c.cores), setting=f"Ringleader, one process, {c.cores} threads")
    ddp = c.peers.alexnet(["--batch", 32, "--steps", steps, "--warmup", c.pick(2, 1)], 1, world=2, bf16=c.bf16)
    small_run = {**run, "train.max_steps": c.pick(45, 10), "data.image_size": 64}
    small = replace(c.ours.local(CONFIG, 4, small_run, 1), setting=setting)
    small_args = ["--size", 64, "--batch", 16, "--steps", c.pick(40, 5), "--warmup", c.pick(5, 1)]
    small_ddp = c.peers.alexnet(small_args, 1, world=4, bf16=c.bf16)
    # Epochs of ten steps: shards move twice within the first 180.
    unlike_run = {
        "train.max_steps": c.pick(270, 90),
        "train.epochs": 100,
        "train.eval_epochs": 100,
        "train.checkpoint_steps": 1000,
        "train.global_batch": 128,
        "train.shards": 32,
        "train.precision": c.precision,
        "data.train": 1280,
    }
    return [
        Row(
            name="ring",
            work=f"AlexNet 224, global batch 64, 2 processes of 1 thread, {c.precision}",
            unit="images/s",
            ours=ring,
            theirs=ddp,
            goal=at_least(1.35),
            group="ring",
        ),
        Row(
            name="scaling",
            work=f"the same, against Ringleader in one process of {c.cores} threads",
            unit="images/s",
            ours=ring,
            theirs=[alone],
            goal=at_least(0.95),
            group="ring",
            against_own=True,
        ),
        Row(
            name="memory",
            work="peak memory of a worker in it (32 pictures each)",
            unit="MB",
            ours=ring,
            theirs=ddp,
            value=lambda f: key_of("peak_rss_bytes")(f) / 1e6,
            higher_is_better=False,
            goal=at_most(1.0),
            group="ring",
            choose_by=rate,
            choose_highest=True,
        ),
        Row(
            name="oversubscribed",
            work=f"AlexNet 64, global batch 64, 4 processes of 1 thread on {c.cores} cores, {c.precision}",
            unit="images/s",
            ours=small,
            theirs=small_ddp,
            goal=at_least(1.6),
            group="oversubscribed",
        ),
        Row(
            name="unlike",
            work=f"AlexNet 64, global batch 128, 2 workers of 1 thread, one at half its speed, 32 shards, {c.precision}",
            unit="images/s",
            ours=c.ours.unlike(SMALL, unlike_run, "shards by speed"),
            theirs=[c.ours.unlike(SMALL, {**unlike_run, "cluster.balance": "equal"}, "Ringleader, equal shards")],
            value=key_of("late_images_per_second"),
            goal=at_least(1.35),
            group="unlike",
            against_own=True,
        ),
    ]


def ring_rows(c: Context) -> list[Row]:
    """The all-reduce alone. Ringleader's is encrypted and authenticated, gloo's neither."""
    result = []

    def row(name: str, size: int, world: int, text: str, wire: str, rounds: int, goal: Optional[Goal], packet: int = 0) -> Row:
        how = f", {packet}-byte packets" if packet else ""
        return Row(
            name=name,
            work=f"all-reduce of {text}, {world} processes" + (", bf16 on the wire" if wire == "bf16" else "") + how,
            unit="ms",
            ours=c.ours.ring(size, world, wire, rounds, ["--packet", packet] if packet else []),
            theirs=c.peers.all_reduce(size, world, rounds),
            value=key_of("median_ms"),
            higher_is_better=False,
            goal=goal,
            group=f"all-reduce-{size}-{world}",
        )

    rounds = c.pick(15, 3)
    for world in (2, 4):
        name, text = f"all-reduce-{world}", "249.5 MB"
        result.append(row(name, GRADIENT_BYTES, world, text, "f32", rounds, at_most(1.0)))
        result.append(row(f"{name}-bf16", GRADIENT_BYTES, world, text, "bf16", rounds, at_most(0.6)))
        if world == 2:
            # What an Ethernet with an MTU of 1500 bytes carries; no goal.
            result.append(row(f"{name}-1452", GRADIENT_BYTES, world, text, "f32", rounds, None, 1452))
    result.append(row("all-reduce-1mb", 1 << 20, 2, "1 MB", "f32", c.pick(100, 10), at_most(1.2)))
    result.append(row("all-reduce-4kb", 4096, 2, "4 KB", "f32", c.pick(400, 20), at_most(2.0)))
    result.append(
        Row(
            name="ring-sim",
            work="the ring's simulator against measurements: largest error",
            unit="%",
            ours=c.ours.bench(["ring-sim", "--check"], 1, "prediction"),
            value=largest_error,
            higher_is_better=False,
            goal=Goal(20.0, at_least=False, of_ratio=False),
            group="ring-sim",
            turns=1,
        )
    )
    return result


def later(key: str, setting: str, make: Callable[[], Task]) -> Task:
    """A task that is made when it is its turn: until then its folder may not exist."""
    return Task(key=key, run=lambda: make().run(), setting=setting)


def largest_error(figures: Figures) -> float:
    checks: list[dict] = figures["checks"]  # type: ignore[assignment]
    return max(abs(check["error"]) for check in checks) * 100


def input_rows(c: Context) -> list[Row]:
    """Read, decode, crop, flip, colour: nothing is trained."""

    def row(
        name: str, text: str, real: Optional[Path], width: int, height: int, images: int, goal: float, packed: bool = False
    ) -> Row:
        def folder() -> Path:
            return real or made_pictures(c.python, width, height)

        def ours() -> Task:
            args = ["--size", 224, "--threads", c.cores, "--augment", "crop,flip,colour", "--images", images]
            return c.ours.bench(["data", c.ours.pack(folder()) if packed else folder(), *args], c.cores)

        def theirs(decode: str) -> Task:
            return later(
                f"python image_folder.py {name}, {decode}",
                f"{DECODERS[decode]}, {c.cores} workers",
                lambda: c.peers.image_folder(folder(), images, c.cores, decode),
            )

        return Row(
            name=name,
            work=f"input pipeline, {text if real else f'made pictures of {width}x{height}'}, at 224, crop, flip, colour"
            + (", here from a pack of them" if packed else ""),
            unit="images/s",
            ours=later(f"worker bench data {name}", f"{c.cores} threads", ours),
            theirs=[theirs(decode) for decode in DECODERS],
            goal=at_least(goal),
            group=name,
        )

    train = c.data.imagenette / "train" if c.data.imagenette else None
    return [
        row("input-224", "Imagenette", train, 224, 224, c.pick(6000, 400), 4.0),
        row("input-full-size", "full-size ImageNet samples", c.data.samples, 500, 375, c.pick(3000, 200), 2.2),
        row("input-packed", "full-size ImageNet samples", c.data.samples, 500, 375, c.pick(3000, 200), 6.0, packed=True),
    ]


def learning_rows(c: Context) -> list[Row]:
    """Real training, with real pictures."""
    missing = "" if c.data.imagenette else f"{NO_DATA} imagenette/train and imagenette/val"
    pictures = c.data.imagenette or Path("imagenette")
    steps = c.pick(74, 10)
    limit_s = 3600.0
    share = key_of("data_wait_share")
    sets = {"data.path": pictures, "train.precision": c.precision}
    return [
        Row(
            name="data-wait",
            work="share of a training step spent waiting for data, Imagenette, 2 workers",
            unit="%",
            ours=replace(c.ours.local(IMAGENETTE, 2, {**sets, "train.max_steps": steps}, 1), setting="2 workers"),
            theirs=[c.peers.imagenette(pictures, ["--max-steps", steps], c.cores, limit_s, c.bf16)],
            value=lambda f: share(f) * 100,
            higher_is_better=False,
            goal=Goal(2.0, at_least=False, of_ratio=False),
            group="data-wait",
            skip=missing,
            turns=1,
        ),
        Row(
            name="time-to-accuracy",
            work=f"from the command to {TARGET:.0%} top-1 on Imagenette, 2 workers".replace("%", " %"),
            unit="s",
            ours=replace(c.ours.accuracy(QUICK, 2, sets, 1, TARGET, limit_s), setting="2 workers"),
            theirs=[c.peers.imagenette(pictures, ["--target", TARGET], c.cores, limit_s, c.bf16)],
            value=key_of("seconds"),
            higher_is_better=False,
            goal=at_most(0.75),
            group="time-to-accuracy",
            skip=missing or ("" if c.long else "takes an hour: --long"),
            turns=1,
        ),
    ]


def small_rows(c: Context) -> list[Row]:
    """An epoch of MNIST, batch 256."""
    missing = "" if c.data.mnist else f"{NO_DATA} mnist/*.gz"
    folder = c.data.mnist or Path("mnist")
    epochs = c.pick(4, 1)
    result = []
    for model, text, bound in (("softmax", "softmax", 1 / 3), ("mlp", "MLP 256", 1 / 2), ("lenet", "LeNet", 0.8)):
        sets: dict[str, object] = {"data.path": folder, "train.epochs": epochs, "train.eval_epochs": epochs}
        if not c.bf16:
            sets["train.precision"] = "f32"
        if model == "lenet":
            # The config trains by Adam; here both sides do the same work.
            sets.update({"train.optimizer": "sgd", "train.lr": 0.9, "train.momentum": 0.0})
        base = Row(
            name=model,
            work=f"an epoch of MNIST, {text}, batch 256",
            unit="s",
            ours=replace(c.ours.train(f"configs/{model}.toml", sets, c.cores), setting="the config's precision" if c.bf16 else "f32"),
            theirs=c.peers.small(model, folder, epochs, c.cores),
            value=key_of("epoch_seconds"),
            higher_is_better=False,
            goal=at_most(round(bound, 3)),
            group=model,
            skip=missing,
        )
        by_hand = c.peers.small(model, folder, epochs, c.cores, by_hand=True)
        result += [base, replace(base, name=f"{model}-by-hand", work=f"the same, {text} without DataLoader", theirs=by_hand, goal=None)]
    return result


def first_step_row(c: Context) -> Row:
    return Row(
        name="first-step",
        work="from the command to the first committed step, 2 workers here",
        unit="s",
        ours=c.ours.first_step(SMALL, 2),
        theirs=[c.peers.first_step(2)],
        value=key_of("seconds"),
        higher_is_better=False,
        goal=Goal(3.0, at_least=False, of_ratio=False),
        group="first-step",
    )
