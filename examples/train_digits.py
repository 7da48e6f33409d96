"""Trains the zoo's `digits` with torch and writes its weights.

    pip install ".[train]"
    python examples/train_digits.py

Writes zoo/digits.safetensors, which zoo/digits.cnn reads, and examples/digit.png, one of the held
out images. Takes about a minute, and gives the same weights every time on the same machine.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from digits import Digits, split_digits
from PIL import Image
from safetensors.numpy import save_file
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).parent.parent
CHANNELS = (16, 32, 48)


class Network(nn.Module):
    """What zoo/digits.cnn says, in torch; gives logits, without the softmax."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (1, *CHANNELS)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False)
            for before, after in zip(inputs, CHANNELS, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) for c in CHANNELS)
        self.dense = nn.Linear(CHANNELS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = torch.relu(norm(conv(x)))
            if i == 1:
                x = functional.max_pool2d(x, 2)
        return self.dense(x.mean(dim=(2, 3)))

    def weights(self) -> dict[str, np.ndarray]:
        """The weights by their paths in zoo/digits.cnn."""
        found: dict[str, Tensor] = {}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            found[f"cbr[{i}].conv[0].weight"] = conv.weight
            found[f"cbr[{i}].bn[0].scale"] = norm.weight
            found[f"cbr[{i}].bn[0].shift"] = norm.bias
            found[f"cbr[{i}].bn[0].mean"] = norm.running_mean
            found[f"cbr[{i}].bn[0].variance"] = norm.running_var
        found["dense[0].weight"] = self.dense.weight
        found["dense[0].bias"] = self.dense.bias
        return {name: tensor.detach().numpy().copy() for name, tensor in found.items()}


def distort(images: Tensor) -> Tensor:
    """Each image turned, scaled and moved a little, at random."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * math.radians(20)
    scale = 1 + (torch.rand(count, 2) - 0.5) * 0.2
    shift = (torch.rand(count, 2) - 0.5) * 0.25  # of half the width: up to half a pixel
    rows = [
        torch.stack([torch.cos(angle) * scale[:, 0], -torch.sin(angle), shift[:, 0]], dim=1),
        torch.stack([torch.sin(angle), torch.cos(angle) * scale[:, 1], shift[:, 1]], dim=1),
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(images.shape), False)
    return functional.grid_sample(images, grid, align_corners=False)


def train(data: Digits, epochs: int) -> Network:
    """Trains for a fixed number of epochs; the held out part plays no role in it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the order of sums must not depend on the machine's processors
    torch.use_deterministic_algorithms(True)
    network = Network()
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    batch = 64
    steps = -(-len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.01, total_steps=epochs * steps
    )
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(batch):
            logits = network(distort(images[chosen]))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if (epoch + 1) % 10 == 0:
            print(f"epoch {epoch + 1:3}: loss {total / len(images):.4f}")
    return network.eval()


def main() -> None:
    """Trains, tells the accuracy on the held out part, writes the weights and an image."""
    parser = argparse.ArgumentParser(description="Trains zoo/digits.cnn.")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--weights", type=Path, default=ROOT / "zoo" / "digits.safetensors")
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "digit.png")
    options = parser.parse_args()
    training, held_out = split_digits()
    network = train(training, options.epochs)
    with torch.no_grad():
        guesses = network(torch.from_numpy(held_out.images)).argmax(dim=1).numpy()
    right = int((guesses == held_out.labels).sum())
    print(f"held out: {right} of {len(guesses)} right, {100 * right / len(guesses):.2f} %")
    save_file(network.weights(), options.weights)
    pixels = np.rint(held_out.images[0, 0] * 255).astype(np.uint8)
    Image.fromarray(pixels).save(options.image)
    print(f"wrote {options.weights} and {options.image}, which shows a {held_out.labels[0]}")


if __name__ == "__main__":
    main()
