"""What a run may ask of its ODE solves beyond a method: a remembered first step, steps of each sample's own."""

from __future__ import annotations

import random

import pytest
import torch

import homojl as hj
from homojl.data.datasets import load_dataset
from homojl.errors import ConfigError
from homojl.training.config import ExperimentConfig, merge, parse_assignment
from homojl.training.experiment import build_model
from homojl.training.form import ModelForm
from homojl.training.loop import train_run
from homojl.training.outcome import evaluate_run
from homojl.training.run import Run, load_run
from tests.training.conftest import TINY
from tests.training.test_loop import assert_same_end

pytestmark = pytest.mark.slow

SHORT = {"train": {"epochs": 2}, "data": {"val_fraction": 0.6}}


def config(**sections) -> ExperimentConfig:
    return ExperimentConfig.from_dict(merge(TINY, SHORT, sections))


@pytest.mark.parametrize("adjoint", ["checkpoint", "backsolve"])
def test_a_run_that_remembers_its_first_steps_resumes_with_the_same_numbers(adjoint, tmp_path):
    remembering = config(solver={"first_step": "remember", "adjoint": adjoint})
    straight, stopped = (Run.create(tmp_path / name, remembering) for name in ("straight", "stopped"))
    assert train_run(straight)
    rng, stops = random.Random(5), 0
    while not train_run(stopped, should_stop=lambda: rng.random() < 0.2):
        stops += 1
    assert stops > 1
    assert_same_end(straight, stopped)
    estimating = Run.create(tmp_path / "estimating", config(solver={"adjoint": adjoint}))
    assert train_run(estimating)
    assert straight.metrics[-1]["nfe_forward"] < 0.9 * estimating.metrics[-1]["nfe_forward"]
    model = load_run(straight.path).model
    assert model.remembered.memory.onwards is not None
    assert (model.remembered.memory.backwards is None) == (adjoint == "checkpoint")


def test_evaluation_reads_a_memory_and_leaves_it_as_it_is(tmp_path):
    run = Run.create(tmp_path / "r", config(solver={"first_step": "remember"}))
    assert train_run(run)
    model = load_run(run.path).model
    images = torch.randn(40, 1, 8, 8)
    known = model.remembered.memory.onwards
    assert not model.training
    with torch.no_grad():
        batches = [model(images[:20]), model(images[20:]), model(images[:20])]
    assert torch.equal(batches[0], batches[2])
    assert model.remembered.memory.onwards == known
    first, second = evaluate_run(run), evaluate_run(run)
    assert (first.logits == second.logits).all()
    model.train()
    model(images)
    assert model.remembered.memory.onwards != known


def test_the_memory_is_part_of_the_models_state_whatever_its_dtype():
    form = ModelForm.of(load_dataset("digits", root=None, progress=False))
    model = build_model(config(solver={"first_step": "remember"}), form)
    model.remembered.memory.learn((0.0, 1.0), 1 / 3)
    state = model.half().state_dict()
    other = build_model(config(solver={"first_step": "remember"}), form)
    assert other.remembered.memory.onwards is None
    other.load_state_dict(state)
    assert (other.remembered.memory.onwards, other.remembered.memory.backwards) == (1 / 3, None)
    plain = build_model(config(), form)
    assert plain.remembered is None
    assert not any("remembered" in name for name in plain.state_dict())


def test_a_run_with_steps_of_each_samples_own(tmp_path):
    run = Run.create(tmp_path / "r", config(solver={"batch": "per-sample", "backend": "pytorch"}))
    assert train_run(run)
    assert run.metrics[-1]["train_loss"] < run.metrics[0]["train_loss"]
    assert all(m["failed_solves"] == 0 for m in run.metrics)
    evaluation = evaluate_run(run, rtol=1e-5, atol=1e-5)
    assert evaluation.solver["batch"] == "per-sample"
    assert len(set(evaluation.nfe.tolist())) > 1, "images differ in what they cost"
    # An image's answer does not depend on the images that it is solved with.
    model = load_run(run.path).model
    model.batch = "per-sample"
    model.algorithm = hj.Bosh3(rtol=1e-3, atol=1e-3)
    images = torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(images[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["homoode", "node", "anode"])
def test_every_ode_model_can_be_solved_so(name):
    options = {"time": True} if name != "homoode" else {"channels": 8, "init": "zero"}  # a learned point would move
    model = hj.create_model(name, input_shape=(1, 8, 8), n_classes=10, **options)
    model.double().train()
    model.algorithm, model.backend = hj.Tsit5(rtol=1e-5, atol=1e-5), "pytorch"
    images, labels = torch.randn(5, 1, 8, 8, dtype=torch.float64), torch.arange(5)

    def answers(batch, adjoint):
        model.batch, model.adjoint = batch, adjoint
        model.zero_grad()
        torch.manual_seed(1)
        logits, solution = model(images, return_solution=True)
        torch.nn.functional.cross_entropy(logits, labels).backward()
        return logits.detach(), solution, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    logits, solution, checkpoint = answers("per-sample", hj.CheckpointAdjoint())
    assert len(solution.samples.statuses) == 5
    _, _, direct = answers("per-sample", hj.DirectAdjoint())
    for a, b in zip(checkpoint, direct, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logits, answers("joint", hj.CheckpointAdjoint())[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("solver", "message"),
    [
        ({"first_step": "remeber"}, 'solver.first_step must be a number, or for an adaptive ODE method "remember"'),
        ({"first_step": True}, "solver.first_step must be a finite number"),
        ({"first_step": -0.1}, "first_step must be positive"),
        ({"batch": "sample"}, "solver.batch must be one of joint, per-sample"),
    ],
)
def test_refused(solver, message):
    with pytest.raises(ConfigError, match=message):
        config(solver=solver)


def test_what_cannot_be_solved_so_is_refused_before_the_run():
    from homojl.training.experiment import resolved

    with pytest.raises(ConfigError, match="DirectAdjoint"):
        resolved(config(solver={"batch": "per-sample", "adjoint": "gauss"}))
    with pytest.raises(ConfigError, match="needs backend='pytorch'"):
        resolved(config(solver={"batch": "per-sample", "backend": "julia"}))
    with pytest.raises(ConfigError, match="for an adaptive ODE method"):
        ExperimentConfig.from_dict(
            {"model": {"name": "deq"}, "solver": {"algorithm": "pseudotransient", "first_step": "remember"}}
        )


def test_settings_survive_the_file():
    values = merge(TINY, parse_assignment("solver.first_step=remember"), parse_assignment("solver.batch=per-sample"))
    read = ExperimentConfig.from_dict(values)
    assert ExperimentConfig.from_dict(read.to_dict()) == read
    assert isinstance(read.solver.build_algorithm().first_step, hj.StepMemory)
    assert resolved_backend(read) == "pytorch"
    number = ExperimentConfig.from_dict(merge(TINY, {"solver": {"first_step": 1}}))
    assert number.solver.build_algorithm().first_step == 1.0
    estimated = ExperimentConfig.from_dict(merge(values, parse_assignment("solver.first_step=estimate")))
    assert estimated.solver.build_algorithm().first_step is None
    assert "batch" not in ExperimentConfig.from_dict({"model": {"name": "deq"}}).to_dict()["solver"]


def resolved_backend(read: ExperimentConfig) -> str:
    from homojl.training.experiment import resolved

    return resolved(read).solver.backend


def test_a_run_with_evaluations_in_bfloat16(tmp_path):
    full, low = (
        Run.create(tmp_path / name, config(solver={"precision": name, "backend": "pytorch"}))
        for name in ("full", "bfloat16")
    )
    assert train_run(full)
    assert train_run(low)
    for a, b in zip(low.metrics, full.metrics, strict=True):
        assert a["train_loss"] != b["train_loss"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=0.05)
    assert evaluate_run(low).solver["precision"] == "bfloat16"
    assert load_run(low.path).model.precision == "bfloat16"
    assert "precision" not in evaluate_run(low, precision="full").solver
    with pytest.raises(ConfigError, match=r"solver\.precision must be one of full, bfloat16, got 'float16'"):
        config(solver={"precision": "float16"})
    with pytest.raises(ConfigError, match=r"solver\.precision must be 'full' for peacemanrachford"):
        ExperimentConfig.from_dict({"model": {"name": "mondeq"}, "solver": {"precision": "bfloat16"}})
    with pytest.raises(ConfigError, match=r"solver\.precision must be 'full' for states in float64"):
        config(solver={"precision": "bfloat16"}, train={"dtype": "float64"})


def test_settings_of_training_give_way_to_the_solvers_in_validation_and_resume_with_the_same_numbers(tmp_path):
    own = {"algorithm": "rk4", "step_size": 0.5, "adjoint": "direct", "precision": "bfloat16"}
    fast = config(solver={"training": own}, train={"precision": "bfloat16"})
    straight, stopped = (Run.create(tmp_path / name, fast) for name in ("straight", "stopped"))
    data = load_dataset("digits")
    model = build_model(fast, ModelForm.of(data))
    assert train_run(straight, model=model)
    assert (model.algorithm.name, model.adjoint.name, model.precision) == ("Bosh3", "CheckpointAdjoint", "full")
    for line in straight.metrics:
        assert line["nfe_forward"] == line["nfe_backward"] == 8  # two steps of four; nothing is evaluated again
        assert line["nfe_recomputed"] == line["failed_solves"] == 0
        assert line["nfe_val"] != 8
    evaluation = evaluate_run(straight, split="val", which="last")
    assert evaluation.solver["algorithm"] == "Bosh3"
    assert evaluation.loss == straight.metrics[-1]["val_loss"]
    rng = random.Random(5)
    while not train_run(stopped, should_stop=lambda: rng.random() < 0.2):
        pass
    assert_same_end(straight, stopped)


def test_training_steps_in_bfloat16_have_weights_in_float32(tmp_path):
    for name in ("homoode", "deq", "cnn", "anode"):
        low = Run.create(
            tmp_path / name,
            ExperimentConfig.from_dict(
                {
                    "model": {"name": name, ("filters" if name == "anode" else "channels"): 8},
                    "data": {"val_fraction": 0.8},
                    "train": {"epochs": 1, "precision": "bfloat16", "threads": 1, "device": "cpu"},
                }
            ),
        )
        assert train_run(low), name
        assert {p.dtype for p in load_run(low.path).model.parameters()} == {torch.float32}
        assert all(m["train_loss"] < 3 for m in low.metrics)


@pytest.mark.needs("compiler")
def test_a_run_with_compiled_steps(tmp_path):
    one = {"train": {"epochs": 1, "eval_batch_size": 64}, "data": {"val_fraction": 0.8}}
    runs = {
        backend: Run.create(tmp_path / backend, config(**one, solver={"backend": backend}))
        for backend in ("pytorch", "pytorch-compiled")
    }
    for backend, run in runs.items():
        assert train_run(run)
        assert run.metrics[-1]["failed_solves"] == 0
        assert evaluate_run(run, split="val", limit=64).solver["backend"] == backend
    eager, compiled = (run.metrics[-1] for run in runs.values())
    assert compiled["train_loss"] == pytest.approx(eager["train_loss"], rel=1e-3)
    assert compiled["nfe_forward"] == pytest.approx(eager["nfe_forward"], rel=0.05)
