"""How a model is solved, as a run's configuration says it: the section [solver]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from homojl.algorithms import FIXED_POINT_ALGORITHMS, ODE_ALGORITHMS, AbstractErrorControlled, AbstractSplitting
from homojl.errors import ConfigError
from homojl.models import model_settings
from homojl.names import BACKENDS, BATCHES, FIXED_POINT_ADJOINT_NAMES, ODE_ADJOINT_NAMES, TRAINING_PRECISIONS
from homojl.training.methods import (
    METHODS,
    PARTS,
    Table,
    build_adjoint,
    build_algorithm,
    check_options,
    checked_table,
    options_of,
    owner_of,
)
from homojl.training.values import checked, in_bounds, is_default, setting

if TYPE_CHECKING:
    from homojl.adjoints import AbstractFixedPointAdjoint, AbstractODEAdjoint
    from homojl.algorithms import AbstractFixedPointAlgorithm, AbstractODEAlgorithm

LAYERS_KNOW = "its layers, if it has any that solve, have what they were made with"


@dataclass(frozen=True, kw_only=True)
class SolverConfig:
    """How and where the model's problem is solved and differentiated.

    `algorithm` and `adjoint` are tables: a name, and options as the constructor of that method has them. In a complete
    configuration both have a name. Options that they do not have are refused. `training` has settings that replace
    these in training steps alone.
    """

    algorithm: Table = setting(dict, "the method, with its options; absent: the model's own")  # noqa: RUF009
    adjoint: Table = setting(dict, "how gradients are computed; absent: the model's own")  # noqa: RUF009
    batch: str | None = setting(
        None, "of adaptive methods: joint, one step size for the batch, or per-sample; absent: joint", choices=BATCHES
    )
    backend: str = setting("auto", "where the solve runs", choices=BACKENDS)
    precision: str = setting(
        "full", "numbers that the field is evaluated in, beside a float32 state", choices=TRAINING_PRECISIONS
    )
    training: dict[str, Any] | None = setting(  # noqa: RUF009
        None, "settings that replace those of [solver] in training steps"
    )

    @staticmethod
    def from_dict(content: Mapping[str, Any], where: str = "solver") -> SolverConfig:
        """Read the section's plain values, in the short forms too, as of `nested`.

        Raises:
            ConfigError: for an unknown key, naming the nearest one, or a value of the wrong type.
        """
        values = checked(SolverConfig, where, nested(content, where))
        if values.get("training") is not None:
            if "training" in values["training"]:
                raise ConfigError(f"unknown key {where}.training.training")
            otherwise = SolverConfig.from_dict(values["training"], f"{where}.training")
            values["training"] = {key: getattr(otherwise, key) for key in values["training"]}
        for part in PARTS:
            values[part] = checked_table(part, values.get(part, {}), where)
        return SolverConfig(**values)

    def given(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as plain values."""
        return {f.name: getattr(self, f.name) for f in fields(self) if not is_default(self, f.name)}

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values; what is None or empty is left out."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) not in (None, {})}

    def build_algorithm(self) -> AbstractODEAlgorithm | AbstractFixedPointAlgorithm:
        """The algorithm, of a configuration that `resolved` has made complete."""
        return build_algorithm(self.algorithm)

    def build_adjoint(self) -> AbstractODEAdjoint | AbstractFixedPointAdjoint:
        """The adjoint, likewise."""
        return build_adjoint(self.adjoint)

    def in_training(self, model: str) -> SolverConfig:
        """These settings with those of `training` in their place, complete."""
        if not self.training:
            return self
        values = replaced(self.to_dict(), self.training)
        values.pop("training")
        return SolverConfig.from_dict(values).resolved(model)

    def resolved(self, model: str) -> SolverConfig:
        """Complete: with the model's own settings where none are given, and checked for the model's kind of problem.

        Raises:
            ConfigError: for an algorithm or an adjoint that is not for the kind of problem that the model states, or a
                setting that is not for them.
        """
        settings = model_settings(model)
        if settings.own:
            return self._of_layers(model)
        own, ode = settings.algorithm, settings.states_ode()
        algorithm = _named(self.algorithm, own.name)
        adjoint = _named(self.adjoint, settings.adjoint)
        build_algorithm({"name": algorithm["name"]})  # refuses a name that there is not
        in_bounds(adjoint["name"], "solver.adjoint", choices=("auto", *ODE_ADJOINT_NAMES, *FIXED_POINT_ADJOINT_NAMES))
        for part, name, names in (
            ("algorithm", algorithm["name"], tuple(ODE_ALGORITHMS if ode else FIXED_POINT_ALGORITHMS)),
            ("adjoint", adjoint["name"], ODE_ADJOINT_NAMES if ode else FIXED_POINT_ADJOINT_NAMES),
        ):
            if name not in names:
                raise ConfigError(
                    f"solver.{part} is {name!r}, but {model} states {'an ODE' if ode else 'a fixed point'}; known for "
                    f"that: {', '.join(names)}"
                )
        check_options("algorithm", algorithm)
        check_options("adjoint", adjoint)
        usual: dict[str, Any] = {name: getattr(own, name) for name in ("rtol", "atol", "max_steps")}
        usual |= {"controller": "pi"}
        known = options_of("algorithm", algorithm["name"])
        algorithm = {"name": algorithm["name"]} | {k: v for k, v in usual.items() if k in known} | algorithm
        build_algorithm(algorithm)  # refuses values that it cannot have
        controlled = _is_controlled(algorithm["name"])
        if self.batch is not None and not controlled:
            raise ConfigError(f"solver.batch is not for algorithm {algorithm['name']!r}; leave it out")
        if self.precision != "full" and issubclass(METHODS[algorithm["name"]], AbstractSplitting):
            raise ConfigError(f"solver.precision must be 'full' for {algorithm['name']}, got {self.precision!r}")
        batch = self.batch or "joint" if controlled else None
        complete = replace(self, algorithm=algorithm, adjoint=adjoint, batch=batch, training=self.training or None)
        complete._check_training(model)
        return complete

    def _check_training(self, model: str) -> None:
        """Refuse settings for training that cannot be, beside these."""
        try:
            trains = self.in_training(model)
        except ConfigError as error:
            raise ConfigError(f"in [solver.training]: {error}") from None
        if trains.algorithm.get("first_step") == "remember" != self.algorithm.get("first_step"):
            raise ConfigError(
                'solver.training.first_step = "remember" needs solver.first_step = "remember" too: the step is kept '
                "with the weights"
            )

    def _of_layers(self, model: str) -> SolverConfig:
        """The settings of a user's network, whose layers have solvers of their own: only the backend may be set."""
        for name, value in self.given().items():
            if name != "backend" and value != {"name": "auto"}:  # as files of schema 1 have it
                options = [key for key in value if key != "name"] if name in PARTS else []
                raise ConfigError(f"solver.{(*options, name)[0]} is not for {model}: {LAYERS_KNOW}")
        if self.backend not in ("auto", "pytorch"):
            raise ConfigError(f"solver.backend is not for {model}: {LAYERS_KNOW}")
        return SolverConfig(backend=self.backend)


_OWN = tuple(f.name for f in fields(SolverConfig) if f.name not in PARTS)


def _named(table: Table, own: str) -> Table:
    """The table with a name in small letters, the model's own where there is none or it is "auto"."""
    name = table.get("name", "auto").lower()
    return {"name": own.lower() if name == "auto" else name} | {k: v for k, v in table.items() if k != "name"}


def _is_controlled(name: object) -> bool:
    """Whether a method chooses its steps by an estimate of the error, which may be every sample's own."""
    kind = METHODS.get(name.lower()) if isinstance(name, str) else None
    return kind is not None and issubclass(kind, AbstractErrorControlled)


def nested(section: Mapping[str, Any], where: str = "solver") -> dict[str, Any]:
    """The section [solver] with its algorithm and its adjoint as tables.

    In short, an algorithm or an adjoint may be its name alone, and an option may stand in the section itself, as in
    files of schema 1: it is the algorithm's where any algorithm has one of that name, else the adjoint's.

    Raises:
        ConfigError: for a key that is no setting and no method's option.
    """
    result: dict[str, Any] = {}
    for key, value in section.items():
        if key in PARTS:
            result[key] = result.get(key, {}) | (value if isinstance(value, dict) else {"name": value})
        elif key == "training" and isinstance(value, dict):
            result[key] = nested(value, f"{where}.training")
        elif key in _OWN:
            result[key] = value
        else:
            part, name = owner_of(key, where, _OWN)
            result[part] = result.get(part, {}) | {name: value}
    return result


def without_idle(section: Mapping[str, Any]) -> dict[str, Any]:
    """The section [solver] of a complete file of schema 1, without options that its algorithm and adjoint do not have.

    Runs from before such options were refused have them in their files, without effect.
    """
    result = nested(section)
    for part in PARTS:
        table = result.get(part, {})
        result[part] = {k: v for k, v in table.items() if k == "name" or k in options_of(part, table.get("name"))}
    if not _is_controlled(result["algorithm"].get("name")):
        result.pop("batch", None)
    return {key: value for key, value in result.items() if value != {}}


def replaced(solver: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The section [solver] with changes, without options of the old algorithm or adjoint that the new one lacks.

    Args:
        solver, changes: as `nested` gives them.
    """
    chosen = changes.get("algorithm", {}).get("name")
    result = {key: value for key, value in solver.items() if key != "batch" or chosen is None or _is_controlled(chosen)}
    result |= changes
    training = dict(solver["training"]) if isinstance(solver.get("training"), dict) else None
    for part in PARTS:
        old, new = solver.get(part, {}), changes.get(part, {})
        name = new.get("name")
        if table := _kept(part, old, old.get("name"), name) | new:
            result[part] = table
        # What training has otherwise stays, but for options of an algorithm or an adjoint that went.
        if training is not None and part in training and "name" not in training[part]:
            training[part] = _kept(part, training[part], old.get("name"), name)
    if training is not None:
        more = changes.get("training")
        result["training"] = replaced(training, more) if isinstance(more, dict) else training
    return result


def _kept(part: str, table: Table, old: object, new: object) -> Table:
    """The options in a table for the method `old` that stay when it becomes `new`; None: it does not change."""
    if new is None:
        return table
    gone = options_of(part, old).keys() - options_of(part, new).keys()
    return {key: value for key, value in table.items() if key not in gone}
