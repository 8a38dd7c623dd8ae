"""Loss and accuracy of a small CNN on digits by normalizer and backward: docs/convert.md's table.

python docs/examples/digits.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sbnbench_kernels.convert import convert

STEPS, SEEDS = 100, 3
CONTENDERS = [("bn", {})] + [
    (name, {"ratio": 1 / 4, "backward": mode})
    for name in ("bs", "fs")
    for mode in ("exact", "sampled", "detached")
]


def network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (1, 16, 16):
        layers += [nn.Conv2d(channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))


def train(name: str, params: dict[str, object], seed: int) -> tuple[float, float]:
    """Mean training loss of the last ten steps; accuracy in eval() on the 797 digits held out."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    torch.manual_seed(seed)
    model = convert(network(), name, seed=seed, **params)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(STEPS):
        rows = torch.randint(1000, (64,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        right = (model.eval()(x[1000:]).argmax(1) == y[1000:]).float()
    return sum(losses[-10:]) / 10, right.mean().item()


def main() -> None:
    print("| normalizer | backward | training loss | accuracy in eval() |")
    print("| --- | --- | --- | --- |")
    for name, params in CONTENDERS:
        losses, accuracies = zip(*(train(name, params, s) for s in range(SEEDS)), strict=True)
        loss = " ".join(f"{v:.2f}" for v in losses)
        accuracy = " ".join(f"{v:.0%}" for v in accuracies)
        print(f"| {name} | {params.get('backward', '')} | {loss} | {accuracy} |", flush=True)


if __name__ == "__main__":
    main()
