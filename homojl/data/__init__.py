"""Image datasets by name or from a user's file, in memory as uint8, with splits and batched augmentation."""

from homojl.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
