"""Comparisons: several models, seeds and variations of settings, trained on one dataset with one budget."""

from homojl.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
