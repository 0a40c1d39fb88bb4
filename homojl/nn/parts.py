"""Parts of the layers: the field of HomoODE, its initial point and its normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from homojl.draws import draw_rows
from homojl.errors import ConfigError
from homojl.nn.choices import groups_of

Tensor = torch.Tensor


class _GroupNorm(nn.GroupNorm):
    """Group normalisation of what needs no gradient too, as the last state of a solve that failed at its start.

    For such an input in channels-last order PyTorch's backward pass on the CPU (seen in 2.13) writes the gradient that
    it was told to leave out, to address 0, and the process is gone.
    """

    def forward(self, input: Tensor) -> Tensor:
        wanted = input.requires_grad or not torch.is_grad_enabled()
        return super().forward(input if wanted else input.contiguous())


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with min(32, channels) groups.

    Raises:
        ConfigError: if the channels cannot be divided into as many groups.
    """
    return _GroupNorm(groups_of(channels), channels)


def channel_dropout_mask(like: Tensor, p: float, part: tuple[int, int] | None = None) -> Tensor:
    """A mask (B, C, 1, 1) that keeps each channel of each sample with probability 1 - p, scaled by 1 / (1 - p).

    Drawn from PyTorch's global generator, for the batch that the samples are `part` of: see `draw_rows`. Variational
    dropout uses one mask for a whole solve.
    """

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - p).div_(1 - p)

    return draw_rows(draw, (*like.shape[:2], 1, 1), part)


class ConditionedField(nn.Module):
    """HomoODE's vector field F(z; x) = GN(drop(conv2(relu(GN(conv1(z))) + x))), no time input.

    The input enters as a condition at every evaluation; the dropout mask is an argument so that one mask serves a
    whole solve, and its recomputation. Source: math of the HomoODE paper's published architecture, (17).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)

    def forward(self, t: Tensor, z: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """State z and condition x, both (B, C, H, W), mask (B, C, 1, 1) or None -> dz/ds, (B, C, H, W)."""
        # In place where the operation before does not need its result for the gradient.
        y = F.relu_(self.norm1(self.conv1(z)))
        y = self.conv2(y + x)
        if mask is not None:
            y = y.mul_(mask)
        return self.norm2(y)


class InitialPoint(nn.Module):
    """A start shared by all inputs: one number per channel, broadcast over the batch and the map.

    The classification loss never reaches it; its own loss draws it towards the mean equilibrium. A learned point
    starts from standard normal numbers (ours; the paper does not say): at zero, the field's first normalisation
    divides by almost nothing.

    Args:
        channels: C.
        learned: whether `loss` is to be minimised; otherwise the point is zero and stays there.
    """

    def __init__(self, channels: int, *, learned: bool) -> None:
        super().__init__()
        start = torch.zeros(1, 1, channels)
        if learned and not start.is_meta:  # where there are no numbers, drawing them would load PyTorch's compiler
            start.normal_()
        self.value = nn.Parameter(start, requires_grad=learned)

    def expand_like(self, x: Tensor) -> Tensor:
        """The point as a state of x's shape (B, C, H, W) and memory format, without gradient."""
        return torch.empty_like(x).copy_(self._map().detach())

    def loss(self, z_star: Tensor) -> Tensor:
        """E |z* - z0|^2 with z* (B, C, H, W) held constant: squared over channels, mean over batch and map; 0-d.

        One SGD step with learning rate eta moves the point by 2 eta towards the mean of z*.
        Source: HomoODE paper, (18), (32).
        """
        return (z_star.detach() - self._map()).square().sum(dim=1).mean()

    def _map(self) -> Tensor:
        return self.value.permute(0, 2, 1).unsqueeze(-1)  # (1, C, 1, 1)


class MovingPoint(InitialPoint):
    """An initial point that follows its rule (18) by itself, without an optimiser, as BatchNorm's statistics do.

    z0 <- z0 + 2 rate (mean of z* - z0), which is a step of SGD with that learning rate on `loss`. It is a buffer: no
    optimiser finds it among the parameters, and DistributedDataParallel gives every process that of the first.

    Args:
        channels: C.
        learned: whether it moves; otherwise the point is zero and stays there.
        rate: eta, in (0, 0.5].
        every: how many calls of `follow_` there are for each move; the first of them moves it.

    Source: HomoODE paper, (18), (32), Table 5.
    """

    value: Tensor  # type: ignore[assignment]  # a parameter of the class that this one specialises

    def __init__(self, channels: int, *, learned: bool, rate: float = 0.02, every: int = 20) -> None:
        super().__init__(channels, learned=learned)
        if not 0 < rate <= 0.5:
            raise ConfigError(f"rate of the initial point must lie in (0, 0.5], got {rate}")
        if every < 1:
            raise ConfigError(f"every must be at least 1, got {every}")
        value = self.value.detach()
        del self.value
        self.register_buffer("value", value)
        self.learned, self.rate, self.every, self._calls = learned, rate, every, 0

    @torch.no_grad()
    def follow_(self, z_star: Tensor) -> None:
        """Move towards the mean of z* (B, C, H, W), where it is time; a mean that is not finite does not count."""
        if not self.learned:
            return
        self._calls += 1
        if (self._calls - 1) % self.every == 0:
            mean = z_star.detach().mean(dim=(0, 2, 3)).to(self.value.dtype)
            self.value.lerp_(torch.where(mean.isfinite(), mean, self.value[0, 0])[None, None], 2 * self.rate)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._calls)

    def set_extra_state(self, state: Tensor) -> None:
        self._calls = int(state)
