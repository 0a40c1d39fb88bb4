"""The search for a method and tolerance that answer a run's validation images with the fewest evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from homojl.algorithms import (
    FIXED_POINT_ALGORITHMS,
    ODE_ALGORITHMS,
    AbstractFixedStep,
    AbstractODEAlgorithm,
    AbstractSplitting,
)
from homojl.errors import BackendUnavailable, ConfigError
from homojl.models import AbstractImplicitModel
from homojl.models.own import OwnModel
from homojl.results.tuning import Trial, Tuning
from homojl.training.config import ExperimentConfig, check_algorithms, with_solver
from homojl.training.evaluation import prepare
from homojl.training.experiment import resolve_device, solve_as
from homojl.training.form import ModelForm
from homojl.training.methods import build_algorithm
from homojl.training.outcome import matching_data, split_of
from homojl.training.run import Run

Tensor = torch.Tensor
TrialAnswers = tuple[Tensor, float, float, int]  # logits (N, K), evaluations per pass, seconds per image, failed solves

ODE_METHODS = (
    "midpoint",
    "rk4",
    "adaptiveheun",
    "bosh3",
    "dopri5",
    "tsit5",
    "dopri8",
)  # equal steps first; order 2 to 8
FIXED_POINT_METHODS = ("picard", "anderson", "broyden", "newtonkrylov", "relaxation")
SPLITTINGS = ("forwardbackward", "peacemanrachford")
TOLERANCES = (1e-1, 1e-2, 1e-3, 1e-4)
STEP_SIZES = (1.0, 0.5, 0.25, 0.125)  # of methods with equal steps, which have no tolerance; models solve from 0 to 1


def tune(
    run: Run,
    *,
    within: float = 1e-3,
    algorithms: Sequence[str] | None = None,
    tolerances: Sequence[float] = TOLERANCES,
    batch_size: int | None = None,
    limit: int | None = None,
    backend: str | None = None,
    say: Callable[[Trial], None] = lambda _: None,
) -> Tuning:
    """Answer the validation split of a run with its best checkpoint in several ways. The test set is not touched.

    An ODE is held against Dopri8 at 1e-6, an equilibrium against the run's own method at 1e-5.

    Args:
        within: how much less accuracy than the reference's is accepted, as a fraction.
        algorithms: names of the methods; None: with equal steps and adaptive ones, or those for equilibria.
        tolerances: relative ones, for an ODE also absolute; a method with equal steps takes `STEP_SIZES` instead.
        batch_size: images per forward pass; None: the run's own.
        limit: how many of the first validation images to answer; None: all.
        backend: where to solve; None: where the run did.
        say: receives each trial as it ends, the reference first.

    Raises:
        ConfigError: for an unknown method, one for the other kind of problem, a run without a validation split, or a
            network of one's own whose layers are not all of one kind.
    """
    if not 0 <= within < 1:
        raise ConfigError(f"within must lie in [0, 1), a fraction of the images, got {within}")
    model, form, _ = run.load_model("best")
    ode = _states_ode(model)
    known = ODE_ALGORITHMS if ode else FIXED_POINT_ALGORITHMS
    names = _methods(model, ode) if algorithms is None else tuple(algorithms)
    config = run.config
    check_algorithms(names, ode, run.path)
    model.to(resolve_device(config.train.device))
    model.throw = False
    size = batch_size or config.train.eval_batch_size
    images, labels, _ = (part[:limit] for part in split_of(run, matching_data(run, form), "val"))
    bench = _Bench(model, form, config, images, labels, size, {} if backend is None else {"backend": backend}, say)
    tight = {"rtol": 1e-6, "atol": 1e-6, "algorithm": "dopri8"} if ode else {"rtol": 1e-5, "max_steps": 1000}
    _solve_so(model, config, tight, bench.where)
    _answers(model, form, images[:size], size)  # what only a first pass does is in no time
    reference = bench.attempt(tight)
    configured = bench.attempt({})
    trials = [bench.attempt(settings) for name in names for settings in _settings(name, known[name], tolerances, ode)]
    return Tuning(reference, configured, tuple(trials), within, len(images), size)


@dataclass
class _Bench:
    """The images that a model answers in several ways, and the first way's logits, which others are held against."""

    model: AbstractImplicitModel
    form: ModelForm
    config: ExperimentConfig
    images: Tensor
    labels: Tensor
    batch_size: int
    where: Mapping[str, Any]
    say: Callable[[Trial], None]
    expected: Tensor | None = None

    def attempt(self, settings: Mapping[str, Any]) -> Trial:
        """Answer the images so.

        Raises:
            ConfigError, BackendUnavailable: the first cannot be tried; of the others that becomes their message.
        """
        blank = Trial(settings, _solve_so(self.model, self.config, settings, self.where))
        try:
            logits, evaluations, seconds, failed = _answers(self.model, self.form, self.images, self.batch_size)
        except (ConfigError, BackendUnavailable) as error:
            if self.expected is None:
                raise
            trial = replace(blank, message=str(error))
        else:
            expected = self.expected = logits if self.expected is None else self.expected
            trial = replace(
                blank,
                accuracy=_share(logits.argmax(1) == self.labels),
                agreement=_share(logits.argmax(1) == expected.argmax(1)),
                logit_error=((logits - expected).norm() / expected.norm()).item(),
                evaluations=evaluations,
                seconds=seconds,
                failed=failed,
            )
        self.say(trial)
        return trial


def _states_ode(model: AbstractImplicitModel) -> bool:
    """Whether the model, or every layer of a network of one's own, solves an ODE; else fixed points.

    Raises:
        ConfigError: a network without layers, or with layers of both kinds.
    """
    if not isinstance(model, OwnModel):
        return model.states_ode()
    kinds = {isinstance(layer.algorithm, AbstractODEAlgorithm) for layer in model.layers}
    if len(kinds) != 1:
        what = "no layer that solves anything" if not kinds else "layers of both kinds"
        raise ConfigError(f"{model.name} has {what}: there is no one method to choose")
    return kinds.pop()


def _solve_so(
    model: AbstractImplicitModel, config: ExperimentConfig, settings: Mapping[str, Any], where: Mapping[str, Any]
) -> str:
    """Have the model, or every layer of a network of one's own, solve with these settings; the method's name."""
    if not isinstance(model, OwnModel):
        solve_as(model, with_solver(config, **settings, **where).solver)
        return model.algorithm.name
    own = model.own_algorithms()
    for layer, usual in zip(model.layers, own, strict=True):
        if "algorithm" in settings:
            options = {key: value for key, value in settings.items() if key != "algorithm"}
            layer.algorithm = build_algorithm({"name": settings["algorithm"], **options})
        else:
            layer.algorithm = replace(usual, **settings)
        layer.backend = where.get("backend", layer.backend)
    return model.layers[0].algorithm.name


def _methods(model: AbstractImplicitModel, ode: bool) -> tuple[str, ...]:
    if ode:
        return ODE_METHODS
    split = isinstance(model.default_algorithm, AbstractSplitting)
    return FIXED_POINT_METHODS + (SPLITTINGS if split else ())


def _settings(name: str, kind: type, tolerances: Sequence[float], ode: bool) -> list[dict[str, object]]:
    """The solver settings to try for a method."""
    if issubclass(kind, AbstractFixedStep):
        return [{"algorithm": name, "step_size": size} for size in STEP_SIZES]
    if ode:
        return [{"algorithm": name, "rtol": tolerance, "atol": tolerance} for tolerance in tolerances]
    return [{"algorithm": name, "rtol": tolerance} for tolerance in tolerances]


@torch.no_grad()
def _answers(model: AbstractImplicitModel, form: ModelForm, images: Tensor, batch_size: int) -> TrialAnswers:
    logits, evaluations, failed = [], [], 0
    started = time.perf_counter()
    for batch in images.split(batch_size):
        out, solution = model(prepare(batch, form, model), return_solution=True)
        logits.append(out.double().cpu())
        evaluations.append(solution.stats.nfe + solution.stats.n_jvp)
        failed += not solution.status.ok
    seconds = time.perf_counter() - started
    return torch.cat(logits), sum(evaluations) / len(evaluations), seconds / len(images), failed


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
