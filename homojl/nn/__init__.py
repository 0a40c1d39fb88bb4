"""Layers for networks of one's own: ordinary modules around a solve."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_EXPORTS = {
    **dict.fromkeys(["AbstractLayer", "Report", "regularization", "reports", "watch"], "homojl.nn.layer"),
    **dict.fromkeys(["ODE"], "homojl.nn.ode"),
    **dict.fromkeys(["Equilibrium"], "homojl.nn.equilibrium"),
    **dict.fromkeys(["DEQ", "HomoODE"], "homojl.nn.homoode"),
    **dict.fromkeys(["MonDEQ"], "homojl.nn.mondeq"),
    **dict.fromkeys(["PcDEQ"], "homojl.nn.pcdeq"),
    **dict.fromkeys(["contract_", "growth"], "homojl.nn.contraction"),
    **dict.fromkeys(["MovingPoint", "group_norm"], "homojl.nn.parts"),
}

__all__ = sorted(_EXPORTS)


if not TYPE_CHECKING:

    def __getattr__(name: str):
        # The layers need torch; what they may be told, in homojl.nn.choices, does not.
        if name in _EXPORTS:
            value = getattr(importlib.import_module(_EXPORTS[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})


if TYPE_CHECKING:
    from homojl.nn.contraction import contract_ as contract_
    from homojl.nn.contraction import growth as growth
    from homojl.nn.equilibrium import Equilibrium as Equilibrium
    from homojl.nn.homoode import DEQ as DEQ
    from homojl.nn.homoode import HomoODE as HomoODE
    from homojl.nn.layer import AbstractLayer as AbstractLayer
    from homojl.nn.layer import Report as Report
    from homojl.nn.layer import regularization as regularization
    from homojl.nn.layer import reports as reports
    from homojl.nn.layer import watch as watch
    from homojl.nn.mondeq import MonDEQ as MonDEQ
    from homojl.nn.ode import ODE as ODE
    from homojl.nn.parts import MovingPoint as MovingPoint
    from homojl.nn.parts import group_norm as group_norm
    from homojl.nn.pcdeq import PcDEQ as PcDEQ
