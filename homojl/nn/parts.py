"""Parts of the layers: the field of HomoODE, its initial point and its normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from homojl.errors import ConfigError
from homojl.functions.draws import draw_rows
from homojl.nn.choices import groups_of

Tensor = torch.Tensor


class _GroupNorm(nn.GroupNorm):
    """Group normalisation also of inputs without a gradient, such as the last state of a solve that failed at once.

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


class MovingPoint(nn.Module):
    """A start shared by all inputs that follows the mean of where they end, as BatchNorm's statistics do.

    One number per channel, broadcast over the batch and the map. z0 <- z0 + 2 rate (mean of z* - z0) is a step of SGD
    with that learning rate on the loss (18), E |z* - z0|^2, squared over channels, mean over batch and map. The point
    is a buffer: the classification's loss never reaches it, no optimiser finds it among the parameters, and
    DistributedDataParallel gives every process that of the first. A learned point starts from standard normal numbers
    (ours; the paper does not say): at zero, the field's first normalisation divides by almost nothing.

    Args:
        channels: C.
        learned: whether it moves; otherwise the point is zero and stays there.
        rate: eta, positive; at 0.5 a move goes all the way to the mean.
        every: how many calls of `follow_` there are for each move; the first of them moves it.

    Attributes:
        value: the point, (1, 1, C).
        loss: (18) at the last call of `follow_`, before its move, 0-d; None where it did not move.
        total: sums a tensor over the processes that have parts of the batch; None: there is one.

    Source: HomoODE paper, (18), (32), Table 5.
    """

    value: Tensor

    def __init__(self, channels: int, *, learned: bool, rate: float = 0.02, every: int = 20) -> None:
        super().__init__()
        if not 0 < rate < math.inf:
            raise ConfigError(f"rate of the initial point must be positive, got {rate}")
        if every < 1:
            raise ConfigError(f"every must be at least 1, got {every}")
        start = torch.zeros(1, 1, channels)
        if learned and not start.is_meta:  # where there are no numbers, drawing them would load PyTorch's compiler
            start.normal_()
        self.register_buffer("value", start)
        self.learned, self.rate, self.every, self._calls = learned, rate, every, 0
        self.loss: Tensor | None = None
        self.total: Callable[[Tensor], Tensor] | None = None

    def expand_like(self, x: Tensor) -> Tensor:
        """The point as a state of x's shape (B, C, H, W) and memory format."""
        # A sum, since ONNX has no copy that broadcasts.
        return torch.zeros_like(x) + self.value.permute(0, 2, 1).unsqueeze(-1).to(x.dtype)

    @torch.no_grad()
    def follow_(self, z_star: Tensor) -> None:
        """Move towards the mean of z* (B, C, H, W), where it is time; a mean that is not finite does not count."""
        self.loss = None
        if not self.learned:
            return
        self._calls += 1
        if (self._calls - 1) % self.every == 0:
            z, before = z_star.detach(), self.value[0, 0]
            distance = (z - before.view(1, -1, 1, 1)).square().sum()
            sums = torch.cat([z.sum(dim=(0, 2, 3)), distance[None], z.new_tensor([z[:, 0].numel()])])
            if self.total is not None:
                sums = self.total(sums)
            *_, self.loss = means = (sums[:-1] / sums[-1]).to(before.dtype)
            mean = torch.where(means[:-1].isfinite(), means[:-1], before)
            self.value.lerp_(mean[None, None], 2 * self.rate)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self._calls)

    def set_extra_state(self, state: Tensor) -> None:
        self._calls = int(state)
