"""Tensors as Julia sees them: flat blocks of memory that PyTorch owns, shared and never copied.

Memory order differs between the two (the last dimension is contiguous here, the first there), so nothing but 1-D
vectors crosses; a tensor in channels_last is as good as a contiguous one, and one that is not dense is laid out once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from homojl.backends.base import EventCondition
from homojl.errors import ConfigError
from homojl.functions.layout import is_dense

Tensor = torch.Tensor

# From this many elements on, Julia's own arrays are viewed as tensors (0.7 microseconds a call) instead of being
# copied to and from fixed buffers (a tenth of that, and the time of two copies).
VIEWED_FROM = 8192


class StateForm:
    """Shape, strides, dtype and device of a state, and the way to and from a flat block.

    Args:
        like: the state; one that is not dense gets contiguous strides.
    """

    def __init__(self, like: Tensor) -> None:
        self.shape, self.dtype, self.device, self.n = like.shape, like.dtype, like.device, like.numel()
        self.strides = like.stride() if is_dense(like) else torch.empty(like.shape, device="meta").stride()

    def empty(self) -> Tensor:
        """A new state of this form."""
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)

    def fits(self, tensor: Tensor) -> bool:
        """Whether the tensor is a block of exactly this form."""
        return tensor.stride() == self.strides and tensor.shape == self.shape and tensor.dtype is self.dtype

    def laid_out(self, tensor: Tensor) -> Tensor:
        """The detached tensor in this form: itself where it fits, else a copy.

        Raises:
            ConfigError: if its shape or dtype is another one.
        """
        if tensor.shape != self.shape or tensor.dtype is not self.dtype:
            raise ConfigError(
                f"the function must return shape {tuple(self.shape)} and {self.dtype} at every call; "
                f"got {tuple(tensor.shape)}, {tensor.dtype}"
            )
        tensor = tensor.detach()
        return tensor if tensor.stride() == self.strides else self.empty().copy_(tensor)

    def flat(self, tensor: Tensor) -> Tensor:
        """The block of a tensor of this shape, (n,): a view where the tensor fits, else of a copy."""
        tensor = self.laid_out(tensor)
        return tensor.as_strided((self.n,), (1,), tensor.storage_offset())

    def state(self, flat: Tensor) -> Tensor:
        """A block (n,) as a state: a view."""
        return flat.as_strided(self.shape, self.strides, flat.storage_offset())

    def states(self, block: Tensor, count: int) -> Tensor:
        """A block (count * n,) as that many states, (count, *shape): a view."""
        return block.as_strided((count, *self.shape), (self.n, *self.strides), block.storage_offset())


class Callback:
    """A function of states in Python, in the two ways in which Julia calls it.

    The states that the function receives belong to the solver and change after the call: a function that wants to keep
    one clones it.

    Args:
        function: `function(*states) -> state`, with the time first if `timed`.
        form: the form of every state.
        n_inputs: how many states it takes.
        timed: whether it takes the time, a 0-d tensor.

    Attributes:
        time: the buffer of the time, (1,), or None.
        inputs: the buffers of the states, (n,) each; Julia writes them before `buffered()`.
    """

    def __init__(self, function: Callable[..., Tensor], form: StateForm, *, n_inputs: int = 1, timed: bool) -> None:
        self.function, self.form = function, form
        time = torch.zeros(1, dtype=form.dtype, device=form.device)
        self.time = time if timed else None
        self.inputs = [torch.zeros(form.n, dtype=form.dtype, device=form.device) for _ in range(n_inputs)]
        self._time_argument = (time.reshape(()),) if timed else ()
        self._arguments = (*self._time_argument, *(form.state(flat) for flat in self.inputs))
        self._result: Tensor | None = None

    def buffered(self) -> int:
        """Evaluate at what is in the buffers; the address of the result, valid until the next call."""
        result = self.function(*self._arguments)
        if not self.form.fits(result):
            result = self.form.laid_out(result)
        self._result = result
        return result.data_ptr()

    def viewed(self, result: Tensor, *states: Tensor) -> None:
        """Evaluate at states, views of Julia's arrays made by `view`, into `result`, another one."""
        result.copy_(self.function(*self._time_argument, *states))

    def view(self, address: int, owner: object) -> Tensor:
        """A vector of Julia's at an address as a state, which keeps its owner alive."""
        size = self.form.n * self.form.dtype.itemsize
        memory: Any = (ctypes.c_char * size).from_address(address)
        memory.owner = owner
        return self.form.state(torch.frombuffer(memory, dtype=self.form.dtype))

    def release(self) -> None:
        """Let go of the function and all memory; Julia keeps this object itself until it collects garbage."""
        self.__dict__.clear()

    @property
    def views_pay(self) -> bool:
        return self.form.n >= VIEWED_FROM and self.form.device.type == "cpu"


class Conditions:
    """An event's conditions as Julia calls them: it writes time and state into buffers and reads the values.

    Attributes:
        time, state: the buffers, (1,) and (n,).
        n: how many conditions there are.
        direction, passed: of the event.
    """

    def __init__(self, event: EventCondition, form: StateForm, t0: float, y0: Tensor) -> None:
        self.time = torch.full((1,), t0, dtype=form.dtype, device=form.device)
        self.state = form.flat(y0).clone()
        self.direction, self.passed = event.direction, event.passed
        self._condition = event.condition
        self._arguments = (self.time.reshape(()), form.state(self.state))
        self._values = self.state
        self.buffered()
        self.n = self._values.numel()

    @torch.no_grad()
    def buffered(self) -> int:
        """The address of the values, float64 on the CPU, at what is in the buffers."""
        values = self._condition(*self._arguments, None)
        self._values = values.detach().reshape(-1).to("cpu", torch.float64).contiguous()
        return self._values.data_ptr()

    def release(self) -> None:
        """Let go of the condition and all memory."""
        self.__dict__.clear()
