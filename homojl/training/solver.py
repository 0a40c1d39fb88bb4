"""How a model is solved, as a run's configuration says it: the section [solver]."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from homojl.algorithms import (
    CONTROLLERS,
    FIXED_POINT_ALGORITHMS,
    ODE_ALGORITHMS,
    AbstractErrorControlled,
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    AbstractSplitting,
    StepMemory,
)
from homojl.choices import BACKENDS, BATCHES, FIXED_POINT_ADJOINTS, ODE_ADJOINTS, TRAINING_PRECISIONS
from homojl.errors import ConfigError
from homojl.models import model_settings
from homojl.names import did_you_mean

if TYPE_CHECKING:
    from homojl.adjoints import AbstractFixedPointAdjoint, AbstractODEAdjoint

LAYERS_KNOW = "its layers, if it has any that solve, have what they were made with"


def setting(
    default: Any, help: str, *, choices: tuple[str, ...] = (), low: float | None = None, high: float | None = None
) -> Any:
    """A dataclass field with its one-line description, which also goes into every config.toml."""
    return field(default=default, metadata={"help": help, "choices": choices, "low": low, "high": high})


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How and where the model's problem is solved and differentiated.

    What is not for the algorithm or the adjoint is refused where it is given, and None in a complete configuration.
    `training` has those of these settings that training steps have otherwise; validation and the test have none of it.
    """

    algorithm: str = setting("auto", "method for the model's kind of problem; auto: the model's own")
    rtol: float | None = setting(None, "relative tolerance; absent: the model's own")
    atol: float | None = setting(None, "absolute tolerance; absent: the model's own")
    controller: str | None = setting(
        None, "step-size control of an adaptive method; absent: pi", choices=tuple(CONTROLLERS)
    )
    first_step: float | str | None = setting(
        None, 'first step of an adaptive method; "remember": that of earlier solves; "estimate" or absent: estimated'
    )
    batch: str | None = setting(
        None, "whether an adaptive method's steps are the batch's or every sample's own; absent: joint", choices=BATCHES
    )
    max_steps: int | None = setting(None, "steps or iterations before a solve fails; absent: the model's own")
    step_size: float | None = setting(None, "step of a fixed-step method; absent: one step")
    memory: int | None = setting(None, "iterates that anderson combines, or updates that broyden keeps", high=1000)
    mixing: float | None = setting(None, "how much of f(z) rather than z enters anderson")
    damping: float | None = setting(None, "how much of z rather than f(z) enters picard")
    alpha: float | None = setting(None, "step of forwardbackward and peacemanrachford; where tuned, the largest")
    krylov_steps: int | None = setting(
        None, "products for one linear system of newtonkrylov, pseudotransient or homotopy"
    )
    adjoint: str = setting(
        "auto",
        "how gradients are computed; auto: the model's own",
        choices=("auto", *ODE_ADJOINTS, *FIXED_POINT_ADJOINTS),
    )
    checkpoints: int | None = setting(None, "states that adjoint checkpoint keeps at a time; absent: all", low=1)
    backend: str = setting("auto", "where the solve runs", choices=BACKENDS)
    precision: str = setting(
        "full", "numbers that the field is evaluated in, beside a float32 state", choices=TRAINING_PRECISIONS
    )
    training: dict[str, Any] | None = setting(  # noqa: RUF009, as for the others, whose types it knows
        None, "settings of [solver] that training steps have otherwise"
    )

    def __post_init__(self) -> None:
        if self.algorithm != "auto":
            self.build_algorithm()

    def build_algorithm(self) -> AbstractODEAlgorithm | AbstractFixedPointAlgorithm:
        """The algorithm with those settings that its kind has; not for "auto", which `ExperimentConfig` resolves."""
        cls = _method(self.algorithm)
        if cls is None:
            known = ODE_ALGORITHMS | FIXED_POINT_ALGORITHMS
            raise ConfigError(f"unknown algorithm {self.algorithm!r}; {did_you_mean(self.algorithm.lower(), known)}")
        settings = {f.name: getattr(self, f.name, None) for f in fields(cls)}
        if (controller := settings.get("controller")) is not None:
            settings["controller"] = CONTROLLERS[controller]()
        if isinstance(settings.get("first_step"), str):
            if self.first_step not in ("remember", "estimate") or not issubclass(cls, AbstractErrorControlled):
                raise ConfigError(
                    'solver.first_step must be a number, or for an adaptive ODE method "remember" or "estimate", got '
                    f"{self.first_step!r} for {self.algorithm}"
                )
            settings["first_step"] = StepMemory() if self.first_step == "remember" else None
        return cls(**{k: v for k, v in settings.items() if v is not None})

    def in_training(self) -> SolverConfig:
        """These settings with those of `training` in their place."""
        if self.training is None:
            return self
        own = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        del own["training"]
        return SolverConfig(**replaced(own, self.training))

    def build_adjoint(self) -> AbstractODEAdjoint | AbstractFixedPointAdjoint:
        """The adjoint; not for "auto", which `ExperimentConfig` resolves."""
        from homojl.adjoints import CheckpointAdjoint, ImplicitAdjoint, fixed_point_adjoint, ode_adjoint

        if self.adjoint == "implicit":
            # As a forward solve's, its failures are counted: training goes on with the best iterate.
            return ImplicitAdjoint(throw=False)
        if self.adjoint == "checkpoint":
            return CheckpointAdjoint(max_states=self.checkpoints)
        return ode_adjoint(self.adjoint) if self.adjoint in ODE_ADJOINTS else fixed_point_adjoint(self.adjoint)

    def _of_layers(self, model: str) -> SolverConfig:
        """As it is, once nothing is set that the layers of a network of a user's own have themselves."""
        for f in fields(self):
            if f.name != "backend" and getattr(self, f.name) != f.default:
                raise ConfigError(f"solver.{f.name} is not for {model}: {LAYERS_KNOW}")
        if self.backend not in ("auto", "pytorch"):
            raise ConfigError(f"solver.backend is not for {model}: {LAYERS_KNOW}")
        return self

    def resolved(self, model: str) -> SolverConfig:
        """With the model's own settings where there are none, and checked to be of the model's kind.

        Raises:
            ConfigError: for an algorithm or an adjoint that is not for the kind of problem that the model states, or a
                setting that is not for them.
        """
        settings = model_settings(model)
        if settings.own:
            return self._of_layers(model)
        own, ode = settings.algorithm, settings.states_ode()
        algorithms = tuple(ODE_ALGORITHMS if ode else FIXED_POINT_ALGORITHMS)
        adjoints = ODE_ADJOINTS if ode else FIXED_POINT_ADJOINTS
        absent: dict[str, Any] = {}
        if self.algorithm == "auto":
            absent["algorithm"] = own.name.lower()
        if self.adjoint == "auto":
            absent["adjoint"] = settings.adjoint
        chosen = replace(self, **absent)
        for key, names in (("algorithm", algorithms), ("adjoint", adjoints)):
            if getattr(chosen, key).lower() not in names:
                raise ConfigError(
                    f"solver.{key} is {getattr(chosen, key)!r}, but {model} states "
                    f"{'an ODE' if ode else 'a fixed point'}; known for that: {', '.join(names)}"
                )
        usual = {name: getattr(own, name) for name in ("rtol", "atol", "max_steps")}
        usual |= {"controller": "pi", "batch": "joint"}
        for key in (f.name for f in fields(self)):
            owner = owner_of(key)
            if owner is None:
                continue
            applies, given = has_use(key, getattr(chosen, owner)), getattr(self, key)
            if given is not None and not applies:
                raise ConfigError(f"solver.{key} is not for {owner} {getattr(chosen, owner)!r}; leave it out")
            if given is None and applies and key in usual:
                absent[key] = usual[key]
        complete = replace(self, **absent)
        if complete.precision != "full" and isinstance(complete.build_algorithm(), AbstractSplitting):
            raise ConfigError(f"solver.precision must be 'full' for {complete.algorithm}, got {complete.precision!r}")
        complete._check_training(model)
        return complete

    def _check_training(self, model: str) -> None:
        """Refuse settings for training that cannot be, beside these."""
        if self.training is None:
            return
        if "training" in self.training:
            raise ConfigError("unknown key solver.training.training")
        try:
            trains = self.in_training().resolved(model)
        except ConfigError as error:
            raise ConfigError(f"in [solver.training]: {error}") from None
        if trains.first_step == "remember" and self.first_step != "remember":
            raise ConfigError(
                'solver.training.first_step = "remember" needs solver.first_step = "remember" too: the step is kept '
                "with the weights"
            )


def _method(name: object) -> type[AbstractODEAlgorithm] | type[AbstractFixedPointAlgorithm] | None:
    """The algorithm of a name; None: there is none."""
    known = ODE_ALGORITHMS | FIXED_POINT_ALGORITHMS
    return known.get(name.lower()) if isinstance(name, str) else None


def owner_of(key: str) -> str | None:
    """Which other solver setting says whether one applies; None: it always does."""
    if key in ("algorithm", "adjoint", "backend", "precision", "training"):
        return None
    return "adjoint" if key == "checkpoints" else "algorithm"


def has_use(key: str, owner: object) -> bool:
    """Whether a solver setting is one of an algorithm or an adjoint; of an unknown one, such as "auto", none is."""
    if key == "checkpoints":
        return owner == "checkpoint"
    method = _method(owner)
    if method is None:
        return False
    return issubclass(method, AbstractErrorControlled) if key == "batch" else key in {f.name for f in fields(method)}


def replaced(solver: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Solver settings with changes, without those of the old algorithm or adjoint that the new one has not."""

    def stays(key: str) -> bool:
        owner = owner_of(key)
        old, new = solver.get(owner or ""), changes.get(owner or "")
        return new is None or not has_use(key, old) or has_use(key, new)

    result = {key: value for key, value in solver.items() if stays(key)} | changes
    training = solver.get("training")
    if isinstance(training, dict):
        # What training has otherwise stays, but for settings of an algorithm or an adjoint that went.
        kept = {key: value for key, value in training.items() if owner_of(key) in training or stays(key)}
        more = changes.get("training")
        result["training"] = replaced(kept, more) if isinstance(more, dict) else kept
    return result
