"""A small CNN on MNIST with each layer of homojl.nn in it, beside the CNN alone.

    python benchmarks/layers.py [--steps 200] [--seeds 1] [--data FOLDER]

Each network is conv - BN - ReLU - pool - conv - BN - ReLU - pool - [the layer] - linear at 16 channels, trained by an
ordinary loop: Adam at 3e-3, batch 64, one thread. What stands in `LAYERS` is what a user writes. Printed are the
accuracy on the 10,000 test images, its difference to the CNN alone, evaluations of the layer in the last step and in
evaluation, warnings, and the time of training over that of the CNN alone.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from rows import head, row
from torch import nn
from torch.nn.functional import cross_entropy

import homojl as hj
from homojl.data.augment import normalise


class Block(nn.Module):
    """A residual block with normalisation, as of a ResNet, with the input of the layer in it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(4, channels) for _ in range(3))

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(torch.relu(self.conv1(z)))
        return self.norm3(torch.relu(z + self.norm2(x + self.conv2(y))))


class Field(nn.Module):
    """Two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.conv2(torch.tanh(self.conv1(y)))


class Tanh(nn.Module):
    """One convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.conv(z) + x)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "the CNN alone": lambda channels: nn.Identity(),
    "Equilibrium, tanh(conv)": lambda channels: hj.nn.Equilibrium(Tanh(channels), hj.Anderson(rtol=1e-3)),
    "Equilibrium, residual block": lambda channels: hj.nn.Equilibrium(Block(channels), hj.Anderson(rtol=1e-3)),
    "ODE": lambda channels: hj.nn.ODE(Field(channels), hj.Tsit5(rtol=1e-3, atol=1e-3)),
    "HomoODE": lambda channels: hj.nn.HomoODE(channels),
    "DEQ": lambda channels: hj.nn.DEQ(channels),
    "PcDEQ": lambda channels: hj.nn.PcDEQ(channels),
    "MonDEQ": lambda channels: hj.nn.MonDEQ(channels),
}


def network(layer: Callable[[int], nn.Module], channels: int = 16) -> nn.Sequential:
    """The CNN with a layer."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2),
        layer(channels), nn.Flatten(), nn.Linear(channels * 49, 10),
    )  # fmt: skip


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, seed: int) -> float:
    """Train; the seconds that it took."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    started = time.perf_counter()
    for _ in range(steps):
        index = torch.randint(len(x), (64,), generator=generator)
        loss = cross_entropy(model(x[index]), y[index]) + hj.nn.regularization(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - started


@torch.no_grad()
def accuracy(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """In per cent, in evaluation mode."""
    model.eval()
    right = [(model(a).argmax(1) == b).sum() for a, b in zip(x.split(500), y.split(500), strict=True)]
    return 100 * float(torch.stack(right).sum()) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--data", type=Path, default=None, help="folder with MNIST's files")
    parser.add_argument("--only", default="", help="layers whose names hold this, beside the CNN alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = hj.load_dataset("mnist", root=options.data, progress=False)
    x, x_test = (normalise(images, data.mean, data.std) for images in (data.x_train, data.x_test))
    print(f"torch {torch.__version__}, 1 thread, {options.steps} steps, mean of {options.seeds} seed(s)")
    columns = ("accuracy [%]", "over the CNN alone", "evaluations, training", "evaluation", "warnings", "time, over")
    head("", *columns)
    said = []
    alone: tuple[float, float] | None = None
    for name, layer in LAYERS.items():
        if alone is not None and options.only not in name:
            continue
        scores, seconds, told, nfe = [], 0.0, 0, ["", ""]
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            model = network(layer)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                seconds += train(model, x, data.y_train, options.steps, seed)
                nfe[0] = "".join(str(report.nfe) for report in hj.nn.reports(model).values())
                scores.append(accuracy(model, x_test, data.y_test))
                nfe[1] = "".join(str(report.nfe) for report in hj.nn.reports(model).values())
            told += len(caught)
            for warning in caught:
                said.append(f"{name}: {warning.message}")
        score = sum(scores) / len(scores)
        alone = (score, seconds) if alone is None else alone
        row(name, f"{score:.2f}", f"{score - alone[0]:.2f}", *nfe, told, f"{seconds / alone[1]:.1f}")
    print("", *said, sep="\n")


if __name__ == "__main__":
    main()
