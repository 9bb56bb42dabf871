"""The residual network of examples/own-model in PyTorch.

    resnet.py BLOCKS WIDTH CLASSES FILE PICTURE...  prints the scores of each picture by the weights of FILE, .pth or .safetensors
"""

import json
import sys

import numpy as np
import torch
from PIL import Image
from torch import nn


def convolution(inputs, outputs, kernel, stride):
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = convolution(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
        self.shortcut = convolution(inputs, outputs, 1, stride) if inputs != outputs else None

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    def __init__(self, blocks, width, classes):
        super().__init__()
        self.conv, self.bn = convolution(3, width, 3, 1), nn.BatchNorm2d(width)
        stack, inputs = [], width
        for stage, outputs in enumerate([width, 2 * width, 4 * width]):
            for block in range(blocks):
                stack.append(Block(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*stack)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def main():
    blocks, width, classes, file, *pictures = sys.argv[1:]
    model = ResNet(int(blocks), int(width), int(classes)).eval()
    if file.endswith(".pth"):
        state = torch.load(file, weights_only=True)
    else:
        from safetensors.torch import load_file

        state = load_file(file)
    model.load_state_dict(state, strict=True)
    for path in pictures:
        picture = torch.from_numpy(np.asarray(Image.open(path), np.float32) / 255)
        with torch.no_grad():
            print(json.dumps(model(((picture - 0.5) / 0.25).permute(2, 0, 1)[None])[0].tolist()))


main()
