"""From a configuration to live objects: device, data, model, optimisers."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.utils import _pytree as pytree

from homojl.backends import choose_backend
from homojl.data.datasets import ImageDataset, load_dataset
from homojl.errors import ConfigError, HomoJLError
from homojl.models import AbstractImplicitModel, create_model, model_settings
from homojl.models.base import lay_out
from homojl.models.own import OwnModel
from homojl.nn.parts import MovingPoint
from homojl.training.config import ExperimentConfig, OptimConfig, with_solver
from homojl.training.form import ModelForm
from homojl.training.optimizers import SGD, AbstractOptimizer, Adam, AdamW
from homojl.training.solver import SolverConfig

Tensor = torch.Tensor


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: if PyTorch does not know it or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device).tolist()  # "meta", a device without numbers, has no list
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        # A resumed run must repeat the killed one's numbers.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS needs for that
        torch.use_deterministic_algorithms(True, warn_only=True)
    return device


def load_data(config: ExperimentConfig, *, download: bool = True) -> ImageDataset:
    """The configured dataset."""
    return load_dataset(config.data.dataset, root=config.data.root, download=download)


def resolved(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with "auto" replaced by the backend chosen here, so that a resumed run uses the same one."""
    return with_solver(config, backend=backend_name(config))


def backend_name(config: ExperimentConfig) -> str:
    """The name of the backend that the configuration means on this machine.

    Raises:
        ConfigError, BackendUnavailable: it cannot solve so.
    """
    solver = config.solver
    if model_settings(config.model.name).own:
        return "pytorch"
    device = resolve_device(config.train.device)
    name = solver.backend
    for how in (solver, config.training_solver):  # the one for training is to work where the other does
        algorithm, adjoint = how.build_algorithm(), how.build_adjoint()
        name = choose_backend(name, algorithm, device, adjoint, batch=how.batch or "joint").name
    return name


def steps_per_epoch(data: ImageDataset, config: ExperimentConfig) -> int:
    """Full batches in the training split.

    Raises:
        ConfigError: if there is none.
    """
    n = len(data.split(config.data.val_fraction, config.train.seed)[0])
    if n < config.train.batch_size:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size} but only {n} training images are left after the split"
        )
    return n // config.train.batch_size


def build_model(
    config: ExperimentConfig, form: ModelForm, *, state: dict[str, Tensor] | None = None
) -> AbstractImplicitModel:
    """The configured model with initial weights that depend on `train.seed` alone, drawn in float32; on the CPU.

    Args:
        state: what `state_form` says, where it was asked already.

    Raises:
        ConfigError: there is no such model, its options do not fit, or this machine cannot hold it.
    """
    numbers = sum(t.numel() for t in (state_form(config, form) if state is None else state).values())
    needed = 4 * numbers * getattr(torch, config.train.dtype).itemsize  # also gradients and what Adam keeps
    there = _memory()
    if needed > there:
        raise ConfigError(
            f"the model has {numbers:.3g} numbers, which takes {needed / 2**30:.3g} GiB to train; this machine has "
            f"{there / 2**30:.3g} GiB of memory"
        )
    return _created(config, form)


def state_form(config: ExperimentConfig, form: ModelForm) -> dict[str, Tensor]:
    """The state of the configured model, on PyTorch's meta device: names, shapes and types, without the memory.

    Raises:
        ConfigError: there is no such model, or its sizes are beyond any tensor's.
    """
    try:
        with torch.device("meta"):
            return _created(config, form).state_dict()
    except HomoJLError:
        raise
    except (RuntimeError, TypeError, ArithmeticError) as error:
        raise ConfigError(f"the model cannot be built: {str(error).splitlines()[0]}") from error


def _memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _created(config: ExperimentConfig, form: ModelForm) -> AbstractImplicitModel:
    torch.manual_seed(config.train.seed)
    model = create_model(
        config.model.name,
        input_shape=form.input_shape,
        n_classes=form.n_classes,
        **_how(config),
        **config.model.options,
    )
    if not isinstance(model, OwnModel):
        model.batch, model.precision = config.solver.batch or "joint", config.solver.precision
        if (point := initial_point(model)) is not None:
            point.rate, point.every = config.initial_point.lr, config.initial_point.every
    return model.to(getattr(torch, config.train.dtype))


def _how(config: ExperimentConfig) -> dict[str, Any]:
    """How the model is to solve; nothing for a network of a user's own."""
    if model_settings(config.model.name).own:
        return {}
    solver = config.solver
    return {"algorithm": solver.build_algorithm(), "adjoint": solver.build_adjoint(), "backend": solver.backend}


def placed(model: AbstractImplicitModel, config: ExperimentConfig) -> AbstractImplicitModel:
    """The model on the configured device, in the layout in which its training is fastest there."""
    device = resolve_device(config.train.device)
    if device.type == "cpu" and {config.train.precision, config.training_solver.precision} != {"full"}:
        lay_out(model, torch.contiguous_format)
    return model.to(device)


def answered(model: AbstractImplicitModel, inputs: Any, precision: str) -> tuple[Any, Any]:
    """The outputs, in the dtype of the weights, and the solution of a training step.

    Args:
        precision: in which all but the solve is evaluated, as `train.precision`.
    """
    if precision == "full":
        return model(inputs, return_solution=True)
    like = next(model.parameters())
    with torch.autocast(like.device.type, getattr(torch, precision)):
        outputs, solution = model(inputs, return_solution=True)
    return pytree.tree_map(lambda x: x.to(like.dtype) if isinstance(x, Tensor) else x, outputs), solution


def as_model(model: torch.nn.Module, config: ExperimentConfig) -> AbstractImplicitModel:
    """A module given in Python as what the loop trains: one of homojl's models as it is, another as a network."""
    if isinstance(model, AbstractImplicitModel):
        return model
    return OwnModel(model, config.model.name, classifies=config.train.metric == "accuracy")


def solve_as(model: AbstractImplicitModel, solver: SolverConfig) -> None:
    """Let a model that was built with other settings solve with these; what it remembers stays its own."""
    if isinstance(model, OwnModel):
        return
    model.algorithm, model.adjoint = solver.build_algorithm(), solver.build_adjoint()
    model.backend, model.batch, model.precision = solver.backend, solver.batch or "joint", solver.precision


def initial_point(model: AbstractImplicitModel) -> MovingPoint | None:
    """The model's shared initial point, if it has one."""
    return next((m for m in model.modules() if isinstance(m, MovingPoint)), None)


def build_optimizer(model: AbstractImplicitModel, config: OptimConfig) -> AbstractOptimizer:
    """The optimiser of the weights; a shared initial point follows a rule of its own."""
    if config.name == "sgd":
        return SGD(model.parameters(), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    cls = Adam if config.name == "adam" else AdamW
    return cls(model.parameters(), config.lr, weight_decay=config.weight_decay)
