"""How to differentiate a solve; the only package with functions of its own in PyTorch's autograd."""

from homojl.adjoints.ode import (
    AbstractODEAdjoint,
    BacksolveAdjoint,
    CheckpointAdjoint,
    DirectAdjoint,
    GaussAdjoint,
    ode_adjoint,
)

__all__ = [
    "AbstractODEAdjoint",
    "BacksolveAdjoint",
    "CheckpointAdjoint",
    "DirectAdjoint",
    "GaussAdjoint",
    "ode_adjoint",
]
