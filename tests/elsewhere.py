"""A device that is none: tensors that say they are on another device, so that mixing shows and waits are counted.

Their device is "meta", but they hold values, which live on the CPU. An operation of such a tensor and one of the CPU
raises, as it would on an accelerator, and whatever needs a value on the host counts as a wait for the device.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

Tensor = torch.Tensor
aten = torch.ops.aten
DEVICE = torch.device("meta")

# Their results, or the shapes of those, depend on values.
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}
# Whose tensors may be on different devices.
COPIES = {aten._to_copy.default, aten.copy_.default, aten.set_.source_Tensor}


class There(torch.Tensor):
    """A tensor on that device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> There:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=False,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"There({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, None)


class Elsewhere(TorchDispatchMode):
    """Within it, tensors made on `DEVICE` hold values.

    Attributes:
        waits: how often the host has waited for the device, by operation.
        operations: how many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operations = 0

    def __enter__(self) -> Elsewhere:
        # PyTorch raises where this device is asked for autocast, and makes its tensors of numbers without the numbers.
        self._replaced = {name: getattr(torch, name) for name in ("is_autocast_enabled", "tensor", "as_tensor")}
        asked = torch.is_autocast_enabled
        torch.is_autocast_enabled = lambda device=None: device != DEVICE.type and asked(device or "cpu")
        for name in ("tensor", "as_tensor"):
            setattr(torch, name, _made_here_first(self._replaced[name]))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for name, function in self._replaced.items():
            setattr(torch, name, function)
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self)


def _made_here_first(function: Any) -> Any:
    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        if device is None or torch.device(device) != DEVICE or isinstance(data, There):
            return function(data, **options, **({} if isinstance(data, There) else {"device": device}))
        return function(data, **options).to(DEVICE)

    return made


def there(x: Tensor) -> Tensor:
    """The tensor on that device, a leaf of the same `requires_grad`."""
    return There(x.detach().clone()).requires_grad_(x.requires_grad)


def back(x: Tensor) -> Tensor:
    """Its values on the CPU."""
    return x.detach().inner if isinstance(x, There) else x.detach()


def _run(func: Any, args: Any, kwargs: Any, mode: Elsewhere | None) -> Any:
    leaves = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    device = kwargs.get("device")
    here = any(isinstance(x, There) for x in leaves)
    asked = device is not None and torch.device(device).type == "meta"
    if here and func not in COPIES:
        mixed = [x for x in leaves if not isinstance(x, There) and x.ndim > 0]
        if mixed and func not in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            raise RuntimeError(f"{func}: tensors on two devices, {[tuple(x.shape) for x in mixed]} on the CPU")
    values = pytree.tree_map_only(There, lambda x: x.inner, (args, kwargs))
    if asked:
        values[1]["device"] = torch.device("cpu")
    away = here and device is not None and not asked
    if mode is not None and here:
        mode.operations += 1
        if away or func in WAITS or _by_mask(func, args):
            mode.waits[str(func)] += 1
    result = func(*values[0], **values[1])
    if away or not (here or asked):
        return result
    if func in COPIES and func is not aten._to_copy.default:
        return args[0]
    alias = {id(i.inner): i for i in leaves if isinstance(i, There)}
    return pytree.tree_map_only(Tensor, lambda x: alias[id(x)] if id(x) in alias else There(_plain(x)), result)


def _plain(x: Tensor) -> Tensor:
    """Without the lazy conjugation of complex numbers, of which the tensor outside knows nothing."""
    return x.resolve_conj().resolve_neg()


def _by_mask(func: Any, args: Any) -> bool:
    """Whether elements are chosen by truth values, whose number the host has to know."""
    if func is not aten.index.Tensor:
        return False
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None)
