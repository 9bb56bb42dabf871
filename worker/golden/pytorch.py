#!/usr/bin/env python3
"""Figures made by PyTorch that the worker's tests are held against.

Writes figures.json beside itself. Needs torch (any 2.x, CPU); the tests need only
the file. Inputs follow from `number`, which src/replica/golden.rs has too.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

torch.set_num_threads(1)
MASK = 0xFFFFFFFF


def number(place: int, salt: int) -> float:
    """From -0.5 up to 0.5, exact in f32."""
    x = (place * 2654435761 + salt * 40503) & MASK
    x ^= x >> 16
    x = (x * 0x85EBCA6B) & MASK
    x ^= x >> 13
    return (x >> 8) / (1 << 24) - 0.5


def numbers(n: int, salt: int) -> torch.Tensor:
    return torch.tensor([number(i, salt) for i in range(n)], dtype=torch.float32)


def optimizers() -> list[dict]:
    """Six updates of 40 weights, each with a gradient of its own."""
    made = {
        "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
        "sgd-momentum-decay": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01),
        "adam": lambda w: torch.optim.Adam(w, lr=0.01),
        "adam-decay": lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=0.01),
        "adamw": lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-6),
    }
    out = []
    for name, make in made.items():
        weights = nn.Parameter(numbers(40, 1))
        optimizer = make([weights])
        for step in range(6):
            weights.grad = numbers(40, 100 + step)
            optimizer.step()
        out.append({"name": name, "weights": weights.tolist()})
    return out


def losses() -> list[dict]:
    """The summed loss of five samples of seven classes, and its gradient."""
    labels = torch.tensor([0, 6, 3, 3, 1])

    def one_hot(classes: int) -> torch.Tensor:
        return F.one_hot(labels % classes, classes).float()

    cases = {
        "cross-entropy": (7, lambda o: F.cross_entropy(o, labels, reduction="sum")),
        "cross-entropy-smoothed": (7, lambda o: F.cross_entropy(o, labels, reduction="sum", label_smoothing=0.1)),
        "mse": (7, lambda o: 0.5 * F.mse_loss(o, one_hot(7), reduction="sum")),
        # PyTorch divides by the number of classes.
        "margin": (7, lambda o: 7 * F.multi_margin_loss(o, labels, margin=1.5, reduction="sum")),
        "perceptron": (2, lambda o: torch.relu(-(o * one_hot(2)).sum(1)).sum()),
    }
    out = []
    for name, (classes, loss) in cases.items():
        logits = (4 * numbers(5 * classes, 2)).reshape(5, classes).requires_grad_()
        value = loss(logits)
        value.backward()
        out.append({"name": name, "loss": value.item(), "slope": logits.grad.flatten().tolist()})
    return out


def schedules() -> list[dict]:
    """The rate of each of 60 steps, six epochs of ten, the first one a warm-up."""
    out = []
    for name in ["constant", "step", "cosine"]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 10, total_iters=9)
        after = {
            "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            "step": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [20 - 10, 45 - 10], gamma=0.1),
            "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2 * 0.05),
        }[name]()
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, after], milestones=[10])
        rates = []
        for _ in range(60):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            both.step()
        out.append({"name": name, "rates": rates})
    return out


class Alexnet(nn.Module):
    """An eighth as wide as the course's, for 63 pixels and ten classes, without dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, 11, stride=4, padding=2)
        self.conv2 = nn.Conv2d(12, 32, 5, padding=2)
        self.conv3 = nn.Conv2d(32, 48, 3, padding=1)
        self.conv4 = nn.Conv2d(48, 48, 3, padding=1)
        self.conv5 = nn.Conv2d(48, 48, 3, padding=1)
        self.dense1 = nn.Linear(48, 512)
        self.dense2 = nn.Linear(512, 512)
        self.dense3 = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 3, 2)
        x = F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(x))))))
        x = F.max_pool2d(x, 3, 2).flatten(1)
        x = F.relu(self.dense2(F.relu(self.dense1(x))))
        return self.dense3(x)


def alexnet() -> dict:
    """Three steps of SGD with momentum, decay, clipping and label smoothing."""
    model = Alexnet()
    with torch.no_grad():
        for salt, (name, p) in enumerate(model.named_parameters()):
            dense, bias = name.startswith("dense"), name.endswith("bias")
            inputs = p[0].numel() if not bias else 1
            values = numbers(p.numel(), 10 + salt) * (0.1 if bias else (24 / inputs) ** 0.5)
            # In the flat state a dense layer's weight is [in, out].
            p.copy_(values.reshape(p.shape[1], p.shape[0]).T if dense and not bias else values.reshape(p.shape))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    steps = []
    for step in range(3):
        images = (4 * numbers(6 * 3 * 63 * 63, 50 + step)).reshape(6, 3, 63, 63)
        labels = torch.tensor([(7 * step + 3 * i) % 10 for i in range(6)])
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
        loss.backward()
        norms = [p.grad.norm().item() for p in model.parameters()]
        total = nn.utils.clip_grad_norm_(model.parameters(), 2.0).item()
        optimizer.step()
        steps.append({"loss": loss.item(), "gradient_norms": norms, "gradient_norm": total})
    weights = [{"name": name, "norm": p.norm().item(), "sum": p.sum().item()} for name, p in model.named_parameters()]
    return {"steps": steps, "weights": weights}


if __name__ == "__main__":
    figures = {
        "torch": torch.__version__,
        "optimizers": optimizers(),
        "losses": losses(),
        "schedules": schedules(),
        "alexnet": alexnet(),
    }
    Path(__file__).with_name("figures.json").write_text(json.dumps(figures, indent=1) + "\n")
