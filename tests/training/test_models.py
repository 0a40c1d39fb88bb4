"""Every model through the whole chain: configuration, training, checkpoint, evaluation, results."""

from __future__ import annotations

import math

import pytest
import torch

from homojl.errors import ConfigError
from homojl.models import MODELS, count_parameters, create_model, model_class
from homojl.training.config import ExperimentConfig, with_solver
from homojl.training.loop import train_run
from homojl.training.outcome import evaluate_run, publish
from homojl.training.run import Run

pytestmark = pytest.mark.slow

SMALL = {
    "homoode": {"channels": 8},
    "deq": {"channels": 8, "jacobian_weight": 0.1},
    "mondeq": {"channels": [8]},
    "node": {"filters": 8},
    "anode": {"filters": 8, "augment": 2},
    "pcdeq": {"form": "multi", "channels": [6, 6, 6]},
    "cnn": {"channels": 8},
}
IMPLICIT = [name for name, settings in MODELS.items() if not settings.own]


def small(name: str, **train) -> ExperimentConfig:
    return ExperimentConfig.from_dict(
        {
            "model": {"name": name, **SMALL[name]},
            "solver": {} if name == "cnn" else {"backend": "pytorch"},
            "data": {"val_fraction": 0.2},
            "optim": {"lr": 0.01},
            "train": {"epochs": 2, "threads": 1, "device": "cpu", **train},
        }
    )


def test_every_model_is_here():
    assert set(SMALL) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_trains_and_its_loss_falls(name, tmp_path):
    run = Run.create(tmp_path / "run", small(name))
    assert train_run(run)
    first, last = run.metrics
    assert last["train_loss"] < 0.98 * first["train_loss"]
    assert last["failed_solves"] <= 2  # of nine: nothing bounds the slope of a DEQ's layer
    evaluations = [last[key] for key in ("nfe_forward", "nfe_backward", "nfe_val")]
    assert min(evaluations) > 0 if name in IMPLICIT else max(evaluations) == 0
    evaluation = evaluate_run(run)
    assert (evaluation.failed == "") == (set(evaluation.status) == {"SUCCESS"})
    assert evaluation.accuracy > 0.15
    assert evaluation.solver.get("rtol") == run.config.solver.algorithm.get("rtol")
    publish(run, evaluation)
    assert run.results_path.exists()
    images = torch.zeros(2, 1, 8, 8)
    torch.testing.assert_close(run.load_model("last")[0](images), Run.open(run.path).load_model("last")[0](images))


@pytest.mark.parametrize("name", ["deq", "mondeq", "pcdeq"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(name, tmp_path):
    config = small(name, epochs=2, batch_size=256)
    whole = Run.create(tmp_path / "whole", config)
    train_run(whole)
    broken, steps = Run.create(tmp_path / "broken", config), iter(range(100))
    assert not train_run(broken, should_stop=lambda: next(steps) == 5)  # within the second epoch
    assert train_run(broken)
    wanted = ("train_loss", "val_loss", "nfe_forward", "nfe_backward")
    for one, other in zip(whole.metrics, broken.metrics, strict=True):
        assert {key: one[key] for key in wanted} == {key: other[key] for key in wanted}


@pytest.mark.parametrize("name", IMPLICIT)
def test_a_configuration_is_complete_with_the_models_own_solver(name):
    solver = ExperimentConfig.from_dict({"model": {"name": name}}).solver
    cls = model_class(name)
    own = cls.default_algorithm
    built = solver.build_algorithm()
    assert type(built) is type(own)
    assert (built.rtol, built.atol, built.max_steps) == (own.rtol, own.atol, own.max_steps)
    assert type(solver.build_adjoint()) is type(cls.default_adjoint)
    assert "auto" not in (solver.algorithm["name"], solver.adjoint["name"])


def test_the_baseline_has_the_size_of_homoode():
    form = {"input_shape": (3, 32, 32), "n_classes": 10, "channels": 32}
    assert count_parameters(create_model("cnn", **form)) == count_parameters(create_model("homoode", **form))
    with pytest.raises(ConfigError, match="blocks"):
        create_model("cnn", **form, blocks=0)


def test_settings_reach_the_method_that_has_them():
    values = {"model": {"name": "deq"}, "solver": {"memory": 4, "mixing": 0.5, "rtol": 1e-5}}
    config = ExperimentConfig.from_dict(values)
    anderson = config.solver.build_algorithm()
    assert (anderson.memory, anderson.mixing, anderson.rtol) == (4, 0.5, 1e-5)
    picard = with_solver(config, algorithm="picard", damping=0.1).solver.build_algorithm()
    assert (picard.damping, picard.rtol) == (0.1, 1e-5)
    assert config.solver.build_adjoint().throw is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"name": "deq"}, "solver": {"algorithm": "dopri5"}}, "'dopri5', but deq states a fixed point"),
        ({"solver": {"algorithm": "anderson"}}, "'anderson', but homoode states an ODE; known for that: euler"),
        ({"model": {"name": "node"}, "solver": {"adjoint": "implicit"}}, "'implicit', but node states an ODE"),
        ({"model": {"name": "pcdeq"}, "solver": {"adjoint": "gauss"}}, "known for that: implicit, phantom"),
        ({"model": {"name": "deq"}, "solver": {"algorithm": "andersen"}}, "did you mean 'anderson'"),
        ({"model": {"name": "deq"}, "solver": {"memory": 0}}, "memory must be at least 1"),
        ({"model": {"name": "mondeq", "channels": "many"}}, "model.channels must be a list of whole numbers"),
        ({"model": {"name": "mondeq", "channels": [1.5]}}, "model.channels must be a whole number, got 1.5"),
        ({"model": {"name": "mondeq", "tune_alpha": 1}}, "model.tune_alpha must be true or false, got 1"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.from_dict(values).solver.build_algorithm()


def test_one_width_stands_for_a_list_of_one():
    options = ExperimentConfig.from_dict({"model": {"name": "mondeq", "channels": 7}}).model.options
    assert options["channels"] == (7,)


def test_the_projection_follows_every_step(tmp_path):
    config = ExperimentConfig.from_dict({**small("pcdeq").to_dict(), "optim": {"lr": 1.0}})
    run = Run.create(tmp_path / "run", config)
    train_run(run, should_stop=lambda: True)
    model = create_model("pcdeq", input_shape=(1, 8, 8), n_classes=10, form="multi", channels=(6, 6, 6))
    assert math.isfinite(sum(float(p.detach().sum()) for p in model.parameters()))
    from homojl.training.checkpoint import read_checkpoint

    tensors, _ = read_checkpoint(run.last_checkpoint)
    factors = [t for name, t in tensors.items() if name.startswith("model.") and ".weight." in name]
    assert len(factors) == 6
    assert all(t.min() >= 0 for t in factors)
    assert any((t == 0).any() for t in factors)
