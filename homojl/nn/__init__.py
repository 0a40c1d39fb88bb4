"""Layers for networks of one's own: ordinary modules around a solve."""

from homojl.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
