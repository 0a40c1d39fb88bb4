"""Models by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from homojl.errors import ConfigError
from homojl.models.settings import MODELS, model_settings
from homojl.names import did_you_mean
from homojl.own import is_given

if TYPE_CHECKING:
    from homojl.models.base import AbstractImplicitModel


def model_names() -> list[str]:
    """The names that `create_model` knows."""
    return sorted(MODELS)


def model_class(name: str) -> type[AbstractImplicitModel]:
    """The class of a model's name.

    Raises:
        ConfigError: for an unknown name.
    """
    return model_settings(name).model()


def create_model(
    name: str, *, input_shape: tuple[int, int, int], n_classes: int, **options: Any
) -> AbstractImplicitModel:
    """Build a model.

    Args:
        name: one of `model_names()`.
        input_shape: channels, height and width of one image.
        n_classes: number of classes.
        options: the model's own settings, such as `channels` or `dropout`, and `algorithm`, `adjoint`, `backend`.

    Raises:
        ConfigError: for an unknown name or option, or sizes that do not fit.
    """
    settings = model_settings(name)
    known = (*settings.defaults(), "algorithm", "adjoint", "backend")
    for key in options:
        if key not in known:
            raise ConfigError(f"model {name!r} has no option {key!r}; {did_you_mean(key, known)}")
    if is_given(name):
        raise ConfigError(
            f"the model {name} was given in Python, and comes back only there: hj.load_run(RUN, model=...)"
        )
    cls: Callable[..., AbstractImplicitModel] = settings.model()
    how = {key: options.pop(key) for key in ("algorithm", "adjoint", "backend") if key in options}
    if settings.own:
        how = {}
        if name not in MODELS:
            from homojl.models.own import OwnModel

            cls = functools.partial(OwnModel.of, name)
    model = cls(input_shape=input_shape, n_classes=n_classes, **options, **how)
    from homojl.models.base import Origin

    model.origin = Origin(name=name, options=options, input_shape=input_shape, n_classes=n_classes)
    return model
