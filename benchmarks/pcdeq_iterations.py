"""Iterations of trained pcDEQs, forward and backward, layer by layer, and the rate at which they converge.

    homojl compare --experiment activations --dataset mnist --seconds 240 --out runs/pcdeq
    python benchmarks/pcdeq_iterations.py runs/pcdeq [--images 512]

reads every pcDEQ run below the folders that are named. Forward: Picard's iterations of each sample from z = 0 to the
run's tolerance, mean and most over the first test images. Backward: products of the map's transposed Jacobian that
solve the linear system of the whole batch, in batches of the run's training size. Rate: the factor by which
norm(z_(k+1) - z_k) falls in the last iteration but one before that tolerance, the largest over the samples.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rows import head, row

from homojl.nn.layer import solutions, unmarked
from homojl.problems import FixedPointProblem
from homojl.results.hdf5 import read_run
from homojl.training.evaluation import prepare
from homojl.training.experiment import load_data
from homojl.training.run import Run


def rate(problem: FixedPointProblem, iterations: int) -> float:
    """The largest factor over the samples between the last two steps of so many of Picard's iterations."""
    with torch.no_grad():
        z, steps = problem.z0, []
        for _ in range(max(iterations, 3)):
            after = problem.f(z, *unmarked(problem.args))
            steps.append((after - z).flatten(1).norm(dim=1))
            z = after
    return float((steps[-1] / steps[-2]).max())


def report(run: Run, images: int) -> None:
    model, form, _ = run.load_model("best")
    data = load_data(run.config)
    problems: list[FixedPointProblem] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda layer, inputs: problems.append(layer.problem(*inputs)))
    x, y = data.x_test[:images], data.y_test[:images]
    batches = list(torch.arange(len(x)).split(run.config.train.batch_size))
    solved = []
    for index in batches:
        with solutions() as found:
            logits = model.decode(model.layer(model.encode(prepare(x[index], form, model))))
        solved += found
        torch.nn.functional.cross_entropy(logits, y[index]).backward()
    layers = len(model.layers)
    options = run.config.model.options
    columns: list[tuple[str, ...]] = []
    for layer in range(layers):
        of_layer = solved[layer::layers]
        forward = torch.cat([solution.iterations for solution in of_layer])
        backward = [solution.stats.n_vjp for solution in of_layer]
        shrinks = rate(problems[layer], int(of_layer[0].iterations.max()))
        means = (f"{forward.double().mean():.1f}", str(int(forward.max())), f"{sum(backward) / len(backward):.1f}")
        columns.append((*means, str(max(backward)), f"{shrinks:.2f}"))
    stored = read_run(run.path)
    accuracy = "" if stored is None or stored.evaluation is None else f"{100 * stored.evaluation.accuracy:.2f}"
    what = f"{run.path.name}: {options['activation']}, {options['form']}"
    row(what, accuracy, *(", ".join(of_layers) for of_layers in zip(*columns, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=512)
    options = parser.parse_args()
    head("", "test accuracy [%]", "forward", "most", "backward", "most", "rate")
    for folder in options.folders:
        for config in sorted(folder.rglob("config.toml")):
            run = Run.open(config.parent)
            if run.config.model.name == "pcdeq" and run.best_checkpoint.exists():
                report(run, options.images)


if __name__ == "__main__":
    main()
