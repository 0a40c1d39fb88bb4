"""homojl: implicit deep models on ODE and equilibrium solvers.

Importing the package is light: every public name is loaded on first use, so neither PyTorch nor Julia
starts until something needs it. The names are those of `__init__.pyi`.
"""

from homojl.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
