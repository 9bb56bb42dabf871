#!/usr/bin/env python3
"""Figures made by PyTorch that the worker's tests are held against. Those of LARS and LAMB,
which PyTorch lacks, are made by the formulas of their papers.

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


class Lars(torch.optim.Optimizer):
    """You, Gitman and Ginsburg 2017, algorithm 1; PyTorch has none. In f64."""

    def __init__(self, params, lr: float, trust: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "trust": trust, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for w in group["params"]:
                g, decay = w.grad, group["weight_decay"]
                # Biases have no rate of their own.
                local = group["trust"] * w.norm() / (g.norm() + decay * w.norm()) if w.dim() > 1 else 1.0
                v = self.state[w].setdefault("v", torch.zeros_like(w))
                v.mul_(group["momentum"]).add_(group["lr"] * local * (g + decay * w))
                w.sub_(v)


class Lamb(torch.optim.Optimizer):
    """You et al. 2019, algorithm 2, with the identity for phi; PyTorch has none. In f64."""

    def __init__(self, params, lr: float, weight_decay: float, betas=(0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for w in group["params"]:
                state = self.state[w]
                m = state.setdefault("m", torch.zeros_like(w))
                v = state.setdefault("v", torch.zeros_like(w))
                t = state["t"] = state.get("t", 0) + 1
                m.mul_(beta1).add_((1 - beta1) * w.grad)
                v.mul_(beta2).add_((1 - beta2) * w.grad**2)
                r = m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
                u = r + group["weight_decay"] * w
                ratio = w.norm() / u.norm() if w.dim() > 1 else 1.0
                w.sub_(group["lr"] * ratio * u)


def optimizers() -> list[dict]:
    """Six updates of 40 weights, each with a gradient of its own: a matrix and a bias."""

    def without_bias_decay(make, decay):
        """Groups, as PyTorch's users leave biases out."""
        return lambda w: make([{"params": [w[0]], "weight_decay": decay}, {"params": [w[1]], "weight_decay": 0.0}])

    made = {
        "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
        "sgd-momentum-decay": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01),
        "sgd-nesterov": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        "sgd-matrices-decay": without_bias_decay(lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9), 0.01),
        "adamw-matrices-decay": without_bias_decay(lambda w: torch.optim.AdamW(w, lr=0.01), 0.1),
        "lars": lambda w: Lars(w, lr=2.0, trust=0.02, momentum=0.9, weight_decay=0.01),
        "lamb": lambda w: Lamb(w, lr=0.05, weight_decay=0.01),
        "adam": lambda w: torch.optim.Adam(w, lr=0.01),
        "adam-decay": lambda w: torch.optim.Adam(w, lr=0.01, weight_decay=0.01),
        "adamw": lambda w: torch.optim.AdamW(w, lr=0.01, weight_decay=0.1, betas=(0.8, 0.99), eps=1e-6),
    }
    out = []
    for name, make in made.items():
        # By the formulas alone, nothing is rounded.
        kind = torch.float64 if name in ("lars", "lamb") else torch.float32
        cut = [lambda flat: flat[:32].reshape(4, 8), lambda flat: flat[32:]]
        weights = [nn.Parameter(part(numbers(40, 1)).to(kind)) for part in cut]
        optimizer = make(weights)
        for step in range(6):
            for parameter, part in zip(weights, cut):
                parameter.grad = part(numbers(40, 100 + step)).to(kind)
            optimizer.step()
        out.append({"name": name, "weights": torch.cat([w.detach().flatten() for w in weights]).tolist()})
    return out


def soft(labels: torch.Tensor, seconds: torch.Tensor, shares: torch.Tensor, classes: int) -> torch.Tensor:
    """The targets of mixed samples, as torchvision's `MixUp` and `CutMix` make them."""
    first, second = F.one_hot(labels, classes).float(), F.one_hot(seconds, classes).float()
    return first * (1 - shares).unsqueeze(1) + second * shares.unsqueeze(1)


def losses() -> list[dict]:
    """The summed loss of five samples of seven classes, and its gradient."""
    labels = torch.tensor([0, 6, 3, 3, 1])
    mixed = soft(labels, torch.tensor([2, 6, 1, 0, 5]), torch.tensor([0.5, 0.25, 0.0, 0.125, 0.4375]), 7)

    def one_hot(classes: int) -> torch.Tensor:
        return F.one_hot(labels % classes, classes).float()

    cases = {
        "cross-entropy": (7, lambda o: F.cross_entropy(o, labels, reduction="sum")),
        "cross-entropy-smoothed": (7, lambda o: F.cross_entropy(o, labels, reduction="sum", label_smoothing=0.1)),
        "cross-entropy-mixed": (7, lambda o: F.cross_entropy(o, mixed, reduction="sum")),
        "cross-entropy-mixed-smoothed": (7, lambda o: F.cross_entropy(o, mixed, reduction="sum", label_smoothing=0.1)),
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


def one_cycle() -> dict:
    """The rate of each of 60 steps. It has a warm-up of its own."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=60, cycle_momentum=False)
    rates = []
    for step in range(60):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < 59:
            cycle.step()
    return {"name": "onecycle", "rates": rates}


def plateaus() -> list[dict]:
    """The rate after each of 40 evaluations: a metric that rises by less and less, and falls at
    times, as top-1; and one minus it as a loss."""
    metrics = [round(0.5 - 0.5 / (1 + n) + 0.06 * number(n, 3), 6) for n in range(40)]
    out = []
    for name, mode, patience, floor in [("top1", "max", 2, 0.0), ("loss", "min", 0, 0.001), ("top1", "max", 10, 0.0)]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode, factor=0.1, patience=patience, min_lr=0.2 * floor)
        values, rates = [], []
        for metric in metrics:
            values.append(metric if mode == "max" else 1 - metric)
            plateau.step(values[-1])
            rates.append(optimizer.param_groups[0]["lr"])
        out.append({"metric": name, "patience": patience, "floor": floor, "values": values, "rates": rates})
    return out


def averages() -> list[float]:
    """An exponential moving average of six updates' weights."""
    module = nn.Linear(8, 5, bias=False)
    with torch.no_grad():
        module.weight.copy_(numbers(40, 1).reshape(5, 8))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for step in range(6):
        module.weight.grad = numbers(40, 100 + step).reshape(5, 8)
        optimizer.step()
        average.update_parameters(module)
    return average.module.weight.flatten().tolist()


def schedules() -> list[dict]:
    """The rate of each of 60 steps, six epochs of ten, the first one a warm-up."""
    out = [one_cycle()]
    for name in ["constant", "step", "cosine", "polynomial"]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 10, total_iters=9)
        after = {
            "constant": lambda: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
            "step": lambda: torch.optim.lr_scheduler.MultiStepLR(optimizer, [20 - 10, 45 - 10], gamma=0.1),
            "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2 * 0.05),
            "polynomial": lambda: torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=50, power=2.0),
        }[name]()
        both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm_up, after], milestones=[10])
        rates = []
        for _ in range(60):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            both.step()
        out.append({"name": name, "rates": rates})
    return out


def is_bias(name: str) -> bool:
    return name.endswith("bias")


def is_matrix(name: str) -> bool:
    """Whether this is a dense layer's weight, which is [in, out] in the flat state."""
    return name.startswith("dense") and not is_bias(name)


class Alexnet(nn.Module):
    """An eighth as wide as the course's, for 63 pixels and ten classes. `masks` are what dropout
    multiplies the outputs of the first two dense layers by."""

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
        with torch.no_grad():
            for salt, (name, p) in enumerate(self.named_parameters()):
                inputs = 1 if is_bias(name) else p[0].numel()
                values = numbers(p.numel(), 10 + salt) * (0.1 if is_bias(name) else (24 / inputs) ** 0.5)
                p.copy_(values.reshape(p.shape[1], p.shape[0]).T if is_matrix(name) else values.reshape(p.shape))

    def forward(self, x: torch.Tensor, masks: tuple[torch.Tensor | float, torch.Tensor | float] = (1.0, 1.0)) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 3, 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 3, 2)
        x = F.relu(self.conv5(F.relu(self.conv4(F.relu(self.conv3(x))))))
        x = F.max_pool2d(x, 3, 2).flatten(1)
        x = F.relu(self.dense1(x)) * masks[0]
        x = F.relu(self.dense2(x)) * masks[1]
        return self.dense3(x)


def alexnet(mixed: bool) -> dict:
    """Three steps of SGD with momentum, decay, clipping and label smoothing; of `mixed` samples,
    each has two labels."""
    model = Alexnet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    steps = []
    for step in range(3):
        images = (4 * numbers(6 * 3 * 63 * 63, 50 + step)).reshape(6, 3, 63, 63)
        labels = torch.tensor([(7 * step + 3 * i) % 10 for i in range(6)])
        seconds = torch.tensor([(3 * step + 7 * i + 1) % 10 for i in range(6)])
        target = soft(labels, seconds, torch.tensor([i / 12 for i in range(6)]), 10) if mixed else labels
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, target, label_smoothing=0.1)
        loss.backward()
        norms = [p.grad.norm().item() for p in model.parameters()]
        total = nn.utils.clip_grad_norm_(model.parameters(), 2.0).item()
        optimizer.step()
        steps.append({"loss": loss.item(), "gradient_norms": norms, "gradient_norm": total})
    weights = [{"name": name, "norm": p.norm().item(), "sum": p.sum().item()} for name, p in model.named_parameters()]
    return {"steps": steps, "weights": weights}


def gradient_with_dropout() -> list[dict]:
    """The gradient of twelve samples, of which dropout keeps half of the dense layers' outputs:
    for each parameter, its largest value and every few of all."""
    model = Alexnet()
    images = (4 * numbers(12 * 3 * 63 * 63, 50)).reshape(12, 3, 63, 63)
    labels = torch.tensor([(3 * i) % 10 for i in range(12)])
    masks = tuple(2.0 * (numbers(12 * 512, salt) >= 0).float().reshape(12, 512) for salt in (60, 61))
    F.cross_entropy(model(images, masks), labels).backward()
    out = []
    for name, p in model.named_parameters():
        flat = (p.grad.T if is_matrix(name) else p.grad).flatten()
        out.append({"name": name, "largest": flat.abs().max().item(), "values": flat[:: max(1, len(flat) // 100)].tolist()})
    return out


if __name__ == "__main__":
    figures = {
        "torch": torch.__version__,
        "optimizers": optimizers(),
        "losses": losses(),
        "schedules": schedules(),
        "plateaus": plateaus(),
        "average": averages(),
        "alexnet": alexnet(False),
        "alexnet_mixed": alexnet(True),
        "gradient_with_dropout": gradient_with_dropout(),
    }
    Path(__file__).with_name("figures.json").write_text(json.dumps(figures, indent=1) + "\n")
