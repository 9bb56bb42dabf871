"""torchvision's AlexNet with random weights, and what comes back of it.

    torchvision_alexnet.py make FOLDER          writes alexnet.pth, checkpoint.pt (the same as a DDP script keeps it) and
                                                picture.png, and prints the scores of the picture
    torchvision_alexnet.py back FOLDER FILE...  prints the scores by the weights of each FILE, .pth or .safetensors, which
                                                must be those of alexnet.pth
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.models import alexnet

CLASSES = 10


def scores(folder, state):
    model = alexnet(num_classes=CLASSES).eval()
    model.load_state_dict(state, strict=True)
    picture = torch.from_numpy(np.asarray(Image.open(folder / "picture.png"), np.float32) / 255)
    with torch.no_grad():
        print(json.dumps(model(((picture - 0.5) / 0.25).permute(2, 0, 1)[None])[0].tolist()))


def main():
    what, folder, files = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    torch.manual_seed(7)
    if what == "make":
        state = alexnet(num_classes=CLASSES).state_dict()
        torch.save(state, folder / "alexnet.pth")
        wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 90, "arch": "alexnet", "state_dict": wrapped}, folder / "checkpoint.pt")
        pixels = np.random.default_rng(7).integers(0, 256, (224, 224, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "picture.png")
        scores(folder, state)
    original = torch.load(folder / "alexnet.pth", weights_only=True)
    for file in files:
        if file.endswith(".pth"):
            state = torch.load(file, weights_only=True)
        else:
            from safetensors.torch import load_file

            state = load_file(file)
        # In a state dict's order, which PyTorch keeps.
        if file.endswith(".pth"):
            assert list(state) == list(original), list(state)
        assert all(torch.equal(state[name], tensor) for name, tensor in original.items())
        scores(folder, state)


main()
