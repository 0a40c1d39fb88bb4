"""How to differentiate a solve; the only package with functions of its own in PyTorch's autograd."""

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
from homojl.adjoints.ode import AbstractODEAdjoint, CheckpointAdjoint, DirectAdjoint
from homojl.errors import ConfigError
from homojl.names import did_you_mean

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

ODE_ADJOINTS: dict[str, type[AbstractODEAdjoint]] = {
    "direct": DirectAdjoint,
    "checkpoint": CheckpointAdjoint,
    "backsolve": BacksolveAdjoint,
    "gauss": GaussAdjoint,
}


def ode_adjoint(name: str) -> AbstractODEAdjoint:
    """The adjoint of a name such as "checkpoint".

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in ODE_ADJOINTS:
        raise ConfigError(f"unknown adjoint {name!r}; {did_you_mean(name, ODE_ADJOINTS)}")
    return ODE_ADJOINTS[name]()
