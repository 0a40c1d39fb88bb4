"""Implicit models by name: the networks of the papers, from image to logits, each around a layer of `homojl.nn`."""

from homojl.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
