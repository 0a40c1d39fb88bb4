"""What some options of the layers choose between, for settings and the command line; loads no PyTorch."""

from __future__ import annotations

from homojl.errors import ConfigError

ACTIVATIONS = ("tanh", "softsign", "relu6", "sigmoid")
CONSTRAINTS = ("projection", "absolute")
INITIAL_POINTS = ("learned", "zero")


def groups_of(channels: int) -> int:
    """How many groups a group normalisation of so many channels has: 32, or one for each channel where there are fewer.

    Raises:
        ConfigError: if the channels cannot be divided into as many groups.
    """
    groups = min(32, channels)
    if channels % groups:
        raise ConfigError(f"channels must be at most 32 or a multiple of 32, got {channels}")
    return groups
