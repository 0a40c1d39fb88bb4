"""PyTorch's collectives, with a clear error if another process has ended, and batch normalisation over processes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from homojl.errors import ProcessError

Tensor = torch.Tensor


def call(collective: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Call one of `torch.distributed`'s functions.

    Raises:
        ProcessError: another process is gone.
    """
    try:
        collective(*args, **kwargs)
    except RuntimeError as error:
        raise ProcessError(lost(dist.get_rank(), dist.get_world_size(), f" ({first_line(error)})")) from None


def first_line(error: Exception) -> str:
    """An error's first sentence, without the place in gloo's source that it begins with."""
    text = re.sub(r"^\[\S+\] ", "", str(error).strip()).splitlines() or [type(error).__name__]
    return text[0].split(". ")[0]


def lost(rank: int, size: int, why: str = "") -> str:
    """The message of a process that waits for one that is gone."""
    return (
        f"process {rank} of {size} has lost the others: one was killed or does not answer{why}; go on from the last "
        "checkpoint with --resume"
    )


def local_rank() -> int:
    """The number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


class _Sum(torch.autograd.Function):
    """The sum of the processes' tensors; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        call(dist.all_reduce, total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _Sum.apply(grad)


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation over the parts of the batch that the processes have, also on CPUs.

    `torch.nn.SyncBatchNorm`, which says the same, is for GPUs alone.

    Args:
        own: the layer whose parameters, buffers and settings this one takes over.
    """

    def __init__(self, own: _BatchNorm) -> None:
        assert own.momentum is not None, "a cumulative average is not what the models have"
        super().__init__(own.num_features, own.eps, own.momentum)
        self._rate = own.momentum
        self.weight, self.bias = own.weight, own.bias
        self.running_mean, self.running_var = own.running_mean, own.running_var
        self.num_batches_tracked = own.num_batches_tracked

    def _check_input_dim(self, input: Tensor) -> None:
        pass  # the layer whose place this one takes has its input's shape

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims, shape = [0, *range(2, input.ndim)], (1, -1, *[1] * (input.ndim - 2))
        own_count = input.new_tensor([input.numel() // input.shape[1]])
        total = _Sum.apply(torch.cat([input.sum(dims), own_count]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centred = input - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self._rate)
            self.running_var.lerp_(variance * (count / (count - 1)), self._rate)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.view(shape), centred, scale.view(shape))


def replace_batch_norms(module: nn.Module) -> None:
    """Have the batch normalisation in a network see the whole batch."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, SharedBatchNorm(child).train(child.training))
        else:
            replace_batch_norms(child)
