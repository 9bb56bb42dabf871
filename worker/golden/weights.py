#!/usr/bin/env python3
"""Makes the files of worker/golden/weights by PyTorch: small models in each format, and the scores that they give.

    python3 worker/golden/weights.py        # needs torch and safetensors

Models and pictures follow from the seed. The keys of torch.save's legacy format are addresses, all else is the same each time.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

OUT = Path(__file__).parent / "weights"


class Mlp(nn.Module):
    """mlp, hidden = [6, 6], tanh, on pictures of 3 x 2 x 2: its hidden dense layer is square."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(12, 6), nn.Linear(6, 6)])
        self.output = nn.Linear(6, 4)

    def forward(self, x):
        x = x.flatten(1)
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.output(x)


class Lenet(nn.Module):
    """lenet, ReLU and max pools, on grey pictures of 16 x 16: flattens 16 channels of 2 x 2."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.dense1 = nn.Linear(64, 120)
        self.dense2 = nn.Linear(120, 84)
        self.dense3 = nn.Linear(84, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2).flatten(1)
        return self.dense3(torch.relu(self.dense2(torch.relu(self.dense1(x)))))


def main():
    OUT.mkdir(exist_ok=True)
    torch.manual_seed(1)
    mlp, lenet = Mlp().eval(), Lenet().eval()
    state = mlp.state_dict()
    torch.save(state, OUT / "mlp.pth")
    torch.save(state, OUT / "mlp-legacy.pth", _use_new_zipfile_serialization=False)
    save_file(state, OUT / "mlp.safetensors")
    save_file({k: v.half() for k, v in state.items()}, OUT / "mlp-f16.safetensors")
    # As a training script keeps it: wrapped by DistributedDataParallel, beside other things.
    wrapped = {f"module.{k}": v for k, v in state.items()}
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "model": wrapped, "optimizer": optimizer}, OUT / "mlp-checkpoint.pt")
    torch.save({k: v.int() for k, v in state.items()}, OUT / "mlp-int.pth")
    torch.jit.save(torch.jit.trace(mlp, torch.zeros(1, 3, 2, 2)), OUT / "mlp-script.pt")
    torch.save(lenet.state_dict(), OUT / "lenet.pt")

    with torch.no_grad():
        scores = {}
        for name, model, shape in [("mlp", mlp, (2, 3, 2, 2)), ("lenet", lenet, (2, 1, 16, 16))]:
            x = torch.rand(shape)
            scores[name] = {"inputs": x.flatten().tolist(), "scores": model(x).flatten().tolist()}
    for file in OUT.iterdir():
        file.chmod(0o644)
    (OUT / "scores.json").write_text(json.dumps(scores) + "\n")


if __name__ == "__main__":
    main()
