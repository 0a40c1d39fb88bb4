"""From a configuration to live objects: device, data, model, optimisers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from homojl.data.datasets import ImageDataset, load_dataset
from homojl.errors import ConfigError
from homojl.models import AbstractImplicitModel, create_model
from homojl.models.blocks import InitialPoint
from homojl.solving import choose_backend
from homojl.training.config import ExperimentConfig, OptimConfig, SolverConfig, with_solver

Tensor = torch.Tensor


@dataclass(frozen=True)
class ModelForm:
    """What a model and its inputs look like; enough to build it again without the dataset.

    Attributes:
        input_shape: channels, height, width.
        n_classes, class_names: the classes.
        mean, std: normalisation per channel, pixels in [0, 1].
    """

    input_shape: tuple[int, int, int]
    n_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def of(data: ImageDataset) -> ModelForm:
        return ModelForm(
            tuple(data.input_shape),
            data.n_classes,
            tuple(data.class_names),
            tuple(data.mean.tolist()),
            tuple(data.std.tolist()),
        )


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU where there is one.

    Raises:
        ConfigError: if PyTorch does not know it or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        # A resumed run must repeat the killed one's numbers.
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def load_data(config: ExperimentConfig, *, progress: bool = True) -> ImageDataset:
    """The configured dataset."""
    return load_dataset(config.data.dataset, root=config.data.root, progress=progress)


def resolved(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with the backend that "auto" means today, so that a resumed run goes on in the same one."""
    return with_solver(config, backend=_backend_name(config))


def _backend_name(config: ExperimentConfig) -> str:
    solver = config.solver
    device = resolve_device(config.train.device)
    algorithm, adjoint = solver.build_algorithm(), solver.build_adjoint()
    return choose_backend(solver.backend, algorithm, device, adjoint, batch=solver.batch or "joint").name


def check(config: ExperimentConfig) -> ImageDataset:
    """Load the data and build everything once, so that what cannot work is refused before a run is made.

    Raises:
        ConfigError, DataError, BackendUnavailable: whatever would stop the run at its start.
    """
    resolve_device(config.train.device)
    _backend_name(config)
    data = load_data(config)
    build_model(config, ModelForm.of(data))
    steps_per_epoch(data, config)
    return data


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


def build_model(config: ExperimentConfig, form: ModelForm) -> AbstractImplicitModel:
    """The configured model with initial weights that depend on `train.seed` alone; on the CPU."""
    torch.manual_seed(config.train.seed)
    model = create_model(
        config.model.name,
        input_shape=form.input_shape,
        n_classes=form.n_classes,
        algorithm=config.solver.build_algorithm(),
        adjoint=config.solver.build_adjoint(),
        backend=config.solver.backend,
        **config.model.options,
    )
    model.batch = config.solver.batch or "joint"
    return model


def solve_as(model: AbstractImplicitModel, solver: SolverConfig) -> None:
    """Let a model that was built with other settings solve with these; what it remembers stays its own."""
    model.algorithm, model.backend, model.batch = solver.build_algorithm(), solver.backend, solver.batch or "joint"


def initial_point(model: AbstractImplicitModel) -> InitialPoint | None:
    """The model's shared initial point, if it has one."""
    return next((m for m in model.modules() if isinstance(m, InitialPoint)), None)


def build_optimizers(
    model: AbstractImplicitModel, config: ExperimentConfig
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """The optimiser of the weights, and that of a learned initial point, which the first must not touch."""
    point = initial_point(model)
    apart = {id(p) for p in point.parameters()} if point is not None else set()
    weights = [p for p in model.parameters() if id(p) not in apart]
    learned = point is not None and point.value.requires_grad
    point_sgd = torch.optim.SGD(point.parameters(), lr=config.initial_point.lr) if learned else None
    return _optimizer(config.optim, weights), point_sgd


def _optimizer(config: OptimConfig, weights: list[Tensor]) -> torch.optim.Optimizer:
    if config.name == "sgd":
        return torch.optim.SGD(weights, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    cls = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return cls(weights, config.lr, weight_decay=config.weight_decay)
