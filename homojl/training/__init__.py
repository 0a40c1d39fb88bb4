"""Training: configuration, the loop, runs on disk."""

from homojl.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
