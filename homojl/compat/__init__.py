"""torchdiffeq's functions over `solve`: the same names, arguments, defaults and meaning."""

from homojl.compat.events import odeint_event
from homojl.compat.odeint import odeint, odeint_adjoint, odeint_dense

__all__ = ["odeint", "odeint_adjoint", "odeint_dense", "odeint_event"]
