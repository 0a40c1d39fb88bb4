"""What a user says of an argument: whether it has a row for each sample of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class AbstractMark:
    """Whether an argument has a row for each sample of the batch, said by the user."""

    value: Any
    per_sample: ClassVar[bool]


@dataclass(frozen=True, eq=False)
class PerSample(AbstractMark):
    """An argument with a row for each sample of the batch, in its first dimension.

    Where samples end one by one, the others go on with their rows of it. An argument that is not marked and has as many
    rows as the batch is tried: as the samples' own, and as shared. Marking it says so.

    Args:
        value: a tensor (B, ...); what the function receives.
    """

    value: torch.Tensor
    per_sample: ClassVar[bool] = True


@dataclass(frozen=True, eq=False)
class Shared(AbstractMark):
    """An argument that all samples share, however many rows it has; see `PerSample`.

    Args:
        value: what the function receives.
    """

    per_sample: ClassVar[bool] = False


def unmarked(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments without their marks, as the function receives them."""
    return tuple(a.value if isinstance(a, AbstractMark) else a for a in args)
