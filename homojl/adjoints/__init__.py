"""How to differentiate a solve; the only package with functions of its own in PyTorch's autograd."""

from homojl.adjoints.base import AbstractODEAdjoint
from homojl.adjoints.continuous import BacksolveAdjoint, GaussAdjoint
from homojl.adjoints.equilibrium import (
    AbstractFixedPointAdjoint,
    ImplicitAdjoint,
    OneStepAdjoint,
    PhantomAdjoint,
    UnrolledAdjoint,
    fixed_point_adjoint,
    jacobian_regularization,
)
from homojl.adjoints.ode import CheckpointAdjoint, DirectAdjoint, ode_adjoint

__all__ = [
    "AbstractFixedPointAdjoint",
    "AbstractODEAdjoint",
    "BacksolveAdjoint",
    "CheckpointAdjoint",
    "DirectAdjoint",
    "GaussAdjoint",
    "ImplicitAdjoint",
    "OneStepAdjoint",
    "PhantomAdjoint",
    "UnrolledAdjoint",
    "fixed_point_adjoint",
    "jacobian_regularization",
    "ode_adjoint",
]
