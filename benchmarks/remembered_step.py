"""Evaluations that a remembered first step saves in training HomoODE.

    python benchmarks/remembered_step.py [--steps 100] [--channels 8] [--seeds 1]

HomoODE on the digits that come along, batch 64, as the preset for them has it but for the channels: the same
seeds, batches and weights to start from, with `first_step` estimated and remembered, by Dopri5 and Tsit5 at the
preset's tolerance and with each step-size control. Printed are evaluations per training step over all steps, those of
the last ten and their ratio, rejected steps, and the mean loss of the last ten steps, which shows that neither trains
worse; last the accuracy on the test images.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import torch
from rows import head, row
from torch.nn.functional import cross_entropy

from homojl.data.augment import iterate_batches
from homojl.data.datasets import ImageDataset, load_dataset
from homojl.training.config import ExperimentConfig, merge, read_preset
from homojl.training.evaluation import evaluate, prepare
from homojl.training.experiment import build_model, build_optimizer
from homojl.training.form import ModelForm


@dataclass
class Trained:
    nfe: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    accuracy: float = 0.0


def train(config: ExperimentConfig, data: ImageDataset, steps: int) -> Trained:
    """The first steps of a training run, without its folder."""
    form = ModelForm.of(data)
    model = build_model(config, form).train()
    optimizer = build_optimizer(model, config.optim)
    trained, epoch = Trained(), 0
    while len(trained.nfe) < steps:
        order = iterate_batches(
            len(data.x_train), config.train.batch_size, seed=config.train.seed, epoch=epoch, drop_last=True
        )
        for batch in order:
            torch.manual_seed(len(trained.nfe))  # of the dropout mask
            logits, solution = model(prepare(data.x_train[batch], form, model), return_solution=True)
            loss = cross_entropy(logits, data.y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trained.nfe.append(solution.stats.nfe)
            trained.rejected.append(solution.stats.n_rejected)
            trained.losses.append(loss.item())
            if len(trained.nfe) == steps:
                break
        epoch += 1
    trained.accuracy = evaluate(
        model, form, data.x_test, data.y_test, batch_size=250, split="test", solver=config.solver, checkpoint=""
    ).accuracy
    return trained


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    data = load_dataset("digits", progress=False)
    preset = read_preset("homoode-digits")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.channels} channels, "
          f"{options.steps} steps")  # fmt: skip
    head("", "evaluations a step", "ratio", "of the last 10", "ratio", "rejected", "loss", "test accuracy [%]")
    for algorithm in ("dopri5", "tsit5"):
        for controller in ("pi", "predictive"):
            for seed in range(options.seeds):
                estimated = None
                for first_step in ("estimate", "remember"):
                    solver = {"algorithm": algorithm, "controller": controller, "first_step": first_step}
                    model, training = {"channels": options.channels}, {"seed": seed}
                    changes = {"solver": {**solver, "backend": "pytorch"}, "model": model, "train": training}
                    run = train(ExperimentConfig.from_dict(merge(preset, changes)), data, options.steps)
                    estimated = run if estimated is None else estimated
                    name = f"{algorithm}, {controller}, {first_step}, seed {seed}"
                    counts = []
                    for last in (slice(None), slice(-10, None)):
                        own, other = mean(run.nfe[last]), mean(estimated.nfe[last])
                        counts += [f"{own:.2f}", f"{own / other:.3f}"]
                    learned = (f"{mean(run.losses[-10:]):.4f}", f"{100 * run.accuracy:.1f}")
                    row(name, *counts, sum(run.rejected), *learned)


if __name__ == "__main__":
    main()
