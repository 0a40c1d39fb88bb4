"""Which stepper takes an algorithm's steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from homojl.algorithms import (
    AbstractAdaptive,
    AbstractFixedStep,
    AbstractImplicit,
    AbstractImplicitFixedStep,
    AbstractODEAlgorithm,
    AdamsBashforth,
)
from homojl.backends.pytorch.adams import AdamsStepper
from homojl.backends.pytorch.grid import GridStepper
from homojl.backends.pytorch.implicit import ImplicitStepper
from homojl.backends.pytorch.steps import AbstractStepper, ExplicitStepper

# The first that fits.
STEPPERS: dict[type[AbstractODEAlgorithm], Callable[[Any], AbstractStepper]] = {
    AbstractImplicit: ImplicitStepper,
    AbstractImplicitFixedStep: ImplicitStepper,
    AdamsBashforth: AdamsStepper,
    AbstractAdaptive: lambda algorithm: ExplicitStepper(algorithm.explicit_tableau),
    AbstractFixedStep: lambda algorithm: ExplicitStepper(algorithm.explicit_tableau),
}


def stepper_for(algorithm: AbstractODEAlgorithm) -> AbstractStepper:
    """The stepper of an algorithm that has a tableau, or of an Adams method."""
    stepper = next(make for kind, make in STEPPERS.items() if isinstance(algorithm, kind))(algorithm)
    grid = algorithm.grid if isinstance(algorithm, AbstractFixedStep) else None
    return stepper if grid is None else GridStepper(stepper, grid)
