"""Measurements of a trained model with other settings: answers to test images, or a training step."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from homojl.nn.layer import AbstractLayer
from homojl.problems import FixedPointProblem, ODEProblem
from homojl.solving import solve
from homojl.training.config import with_solver
from homojl.training.evaluation import prepare
from homojl.training.experiment import answered, load_data, placed, resolve_device, solve_as
from homojl.training.measuring import added_memory
from homojl.training.outcome import evaluate_run
from homojl.training.run import Run


def measure(run: Run, name: str, settings: dict[str, Any], images: int) -> dict[str, Any]:
    """What a measurement of an experiment says, under the names of `homojl.comparison.record.MEASURED`.

    Args:
        settings: of the measurement; with train.batch_size it is a training step of that many images.
        images: how many test images are answered otherwise.
    """
    solver, sizes = settings.get("solver", {}), settings.get("train", {})
    if "batch_size" in sizes:
        return {"name": name} | _training_step(run, sizes["batch_size"], solver)
    batch_size = sizes.get("eval_batch_size", run.config.train.eval_batch_size)
    return {"name": name} | _answers(run, batch_size, solver, images, settings.get("start", 0.0))


def _answers(run: Run, batch_size: int, solver: dict[str, Any], images: int, start: float) -> dict[str, Any]:
    """Answers to the first test images; times without those of a first batch."""
    loaded = run.load_model("best")
    for layer in loaded[0].layers if start else []:
        _start_nearer(layer, start)
    options = {**solver, "throw": False, "batch_size": batch_size, "loaded": loaded}
    evaluate_run(run, limit=batch_size, **options)
    with added_memory(resolve_device(run.config.train.device)) as memory:
        answers = evaluate_run(run, limit=images, **options)
    return {
        "algorithm": answers.solver["algorithm"],
        "batch_size": batch_size,
        "images": len(answers.labels),
        "accuracy": answers.accuracy,
        "nfe": float(answers.nfe.mean()),
        "seconds": answers.seconds,
        "failed_solves": sum(n for status, n in answers.status.items() if status != "SUCCESS"),
        "memory": memory[0],
    }


def _start_nearer(layer: AbstractLayer, part: float) -> None:
    """Have every solve of a layer start that part of the way from its own start to where it ends from there.

    The solve that finds out where is not counted, but takes its time.
    """
    stated = layer.problem

    def problem(*inputs: Any, **options: Any) -> Any:
        told = stated(*inputs, **options)
        with torch.no_grad():
            end = solve(told, layer.algorithm, backend=layer.backend, throw=False).value
        if isinstance(told, ODEProblem):
            return replace(told, y0=torch.lerp(told.y0, end, part))
        assert isinstance(told, FixedPointProblem)
        return replace(told, z0=torch.lerp(told.z0, end, part))

    layer.problem = problem  # type: ignore[method-assign]  # of this layer alone, which is thrown away


def _training_step(run: Run, batch_size: int, solver: dict[str, Any]) -> dict[str, Any]:
    """The forward and backward pass of a training step, the second of two, on the first training images."""
    config = with_solver(run.config, **solver)
    model, form, _ = run.load_model("best")
    solve_as(model, config.training_solver)
    placed(model, config).train()
    model.throw = False
    data = load_data(config)
    device = next(model.parameters()).device
    images = prepare(data.x_train[:batch_size].to(device), form, model)
    labels = data.y_train[:batch_size].to(device)
    for _ in range(2):  # the first warms up
        model.zero_grad(set_to_none=True)
        with added_memory(device) as memory:
            started = time.perf_counter()
            logits, solution = answered(model, images, config.train.precision)
            loss = torch.nn.functional.cross_entropy(logits, labels) + model.regularization()
            loss.backward()
            right = int((logits.argmax(1) == labels).sum())
            seconds = time.perf_counter() - started
            del loss
        failed = int(not solution.status.ok) + (solution.stats.unconverged_backward > 0)
        counted = {"nfe": float(solution.stats.nfe), "failed_solves": int(failed), "accuracy": right / len(labels)}
        algorithm = solution.stats.algorithm
        del logits, solution
    return counted | {
        "algorithm": algorithm,
        "batch_size": batch_size,
        "images": len(labels),
        "seconds": seconds,
        "memory": memory[0],
    }
