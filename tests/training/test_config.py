"""Configurations: complete, checked, and the same after a trip through TOML."""

from __future__ import annotations

import contextlib
import dataclasses
import tomllib

import pytest
from hypothesis import given, strategies as st

import homojl as hj
from homojl.adjoints import ODE_ADJOINTS
from homojl.adjoints.equilibrium import FIXED_POINT_ADJOINTS
from homojl.algorithms import CONTROLLERS, FIXED_POINT_ALGORITHMS, ODE_ALGORITHMS, RK4, AbstractErrorControlled
from homojl.errors import ConfigError, HomoJLError
from homojl.models import MODELS, count_parameters, create_model
from homojl.training.config import (
    CONFIG_END,
    ExperimentConfig,
    merge,
    parse_assignment,
    preset_names,
    read_preset,
    read_toml,
    with_solver,
)
from homojl.training.methods import HELP, METHODS, option_names, options_of
from homojl.training.run import Run


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_parses_builds_and_names_each_source(name):
    from homojl.data import dataset_info

    values = read_preset(name)
    config = ExperimentConfig.from_dict(values)
    info = dataset_info(config.data.dataset)
    model = create_model(
        config.model.name, input_shape=info.input_shape, n_classes=info.n_classes, **config.model.options
    )
    assert count_parameters(model) > 0
    assert name.removesuffix("-fast") == f"{config.model.name}-{config.data.dataset}"
    from importlib import resources

    text = (resources.files("homojl.presets") / f"{name}.toml").read_text()
    for line in text.splitlines():
        if "=" in line.partition("#")[0] and not line.startswith(("name", "dataset")):
            comment = line.partition("#")[2]
            assert any(word in comment for word in ("Table 5", "Scripts", "Appendix G", "ours", "paper")), line


@pytest.mark.parametrize("name", [name for name in preset_names() if name.endswith("-fast")])
def test_what_learns_fast_is_the_same_model_and_tested_by_the_same_method(name):
    fast, usual = (ExperimentConfig.from_dict(read_preset(n)) for n in (name, name.removesuffix("-fast")))
    assert {**fast.model.options, "dropout": 0} == {**usual.model.options, "dropout": 0}
    assert fast.data == usual.data
    for key in ("name", "rtol", "atol"):
        assert fast.solver.algorithm[key] == usual.solver.algorithm[key]
    assert fast.solver.precision == usual.solver.precision


def test_every_model_has_a_preset_for_every_dataset_of_the_papers():
    assert {f"{m}-{d}" for m in MODELS for d in ("digits", "mnist", "svhn", "cifar10", "cifar100")} <= set(
        preset_names()
    )


@pytest.mark.parametrize(
    ("preset", "algorithm", "rtol", "max_steps"),
    [("pcdeq-cifar10", "picard", 1e-4, 200), ("mondeq-cifar10", "peacemanrachford", 1e-2, 300)],
)
def test_published_settings_of_the_other_models(preset, algorithm, rtol, max_steps):
    """math: sections 3 and 4."""
    solver = ExperimentConfig.from_dict(read_preset(preset)).solver
    found = tuple(solver.algorithm[key] for key in ("name", "rtol", "max_steps"))
    assert found == (algorithm, rtol, max_steps)


def test_the_papers_settings_are_in_the_presets():
    """math: Table 5, and the scripts' schedule."""
    table = {"mnist": (32, 0.1, 20, 0.02), "svhn": (64, 0.1, 20, 0.02), "cifar10": (64, 0.1, 20, 0.02),
             "cifar100": (128, 0.15, 5, 0.01)}  # fmt: skip
    for dataset, (channels, dropout, every, lr) in table.items():
        c = ExperimentConfig.from_dict(read_preset(f"homoode-{dataset}"))
        assert (c.model.options["channels"], c.model.options["dropout"]) == (channels, dropout)
        assert (c.initial_point.every, c.initial_point.lr) == (every, lr)
        assert (c.train.batch_size, c.optim.name, c.optim.lr) == (64, "adam", 1e-3)
        assert c.solver.algorithm.items() >= {"name": "dopri5", "rtol": 1e-3, "atol": 1e-3}.items()
        assert (c.train.epochs, c.optim.schedule, c.optim.min_lr) == (300, "cosine", 1e-6)
        assert (c.data.pad, c.data.flip) == ((4, True) if dataset.startswith("cifar") else (0, False))


@pytest.mark.parametrize("name", [None, *preset_names()])
def test_toml_round_trip(name):
    config = ExperimentConfig.from_dict(read_preset(name) if name else {})
    again = ExperimentConfig.from_dict(tomllib.loads(config.to_toml()))
    assert again == config
    assert again.to_toml() == config.to_toml()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lrr": 1.0}}, "unknown key optim.lrr; did you mean 'lr'"),
        ({"optims": {}}, r"unknown section \[optims\]; did you mean 'optim'"),
        ({"model": {"chanels": 3}}, "unknown key model.chanels; did you mean 'channels'"),
        ({"model": {"name": "homoodee"}}, "did you mean 'homoode'"),
        ({"model": {"channels": "many"}}, "model.channels must be a whole number, got 'many'"),
        ({"model": {"channels": True}}, "model.channels must be a whole number, got True"),
        ({"train": {"epochs": 1.5}}, "train.epochs must be a whole number, got 1.5"),
        ({"train": {"epochs": 0}}, "train.epochs must be at least 1, got 0"),
        ({"train": {"epochs": True}}, "train.epochs must be a whole number, got True"),
        ({"optim": {"lr": float("nan")}}, "optim.lr must be a finite number"),
        ({"optim": {"lr": "fast"}}, "optim.lr must be a finite number, got 'fast'"),
        ({"optim": {"lr": 10**400}}, "optim.lr must be a finite number"),
        ({"train": {"seed": 2**31}}, "train.seed must lie between"),
        ({"train": {"threads": 0}}, "train.threads must be at least 1"),
        ({"train": {"threads": 10**6}}, "train.threads must be at most 1024"),
        ({"data": {"pad": 10**9}}, "data.pad must be at most 256"),
        ({"data": {"root": "a\0b"}}, "data.root must be a string of characters"),
        ({"data": {"root": "\udcff"}}, "data.root must be a string of characters"),
        ({"model": {"channels": 2**31}}, "model.channels must lie between"),
        ({"model": {"dropout": float("nan")}}, "model.dropout must be a finite number"),
        ({"model": {"name": "mondeq", "channels": [1.5]}}, "model.channels must be a whole number"),
        ({"optim": {"lr": -1}}, "optim.lr must be at least 0"),
        ({"optim": {"name": "adamm"}}, "optim.name must be one of adam, adamw, sgd"),
        ({"optim": {"milestones": [1, "x"]}}, "optim.milestones must be a whole number"),
        ({"optim": {"milestones": 3}}, "optim.milestones must be a list"),
        ({"data": {"flip": 1}}, "data.flip must be true or false"),
        ({"solver": {"algorithm": "tsit"}}, "unknown algorithm 'tsit'; did you mean 'tsit5'"),
        ({"solver": {"rtol": -1e-3}}, "rtol must be a finite number >= 0"),
        ({"solver": {"adjoint": "forward"}}, "solver.adjoint must be one of"),
        ({"solver": {"checkpoints": 0}}, "solver.max_states must be at least 1"),
        (
            {"solver": {"adjoint": {"name": "checkpoint", "max_states": 1.5}}},
            "solver.max_states must be a whole number",
        ),
        ({"solver": {"adjoint": {"max_state": 3}}}, "unknown key solver.adjoint.max_state; did you mean 'max_states'"),
        ({"solver": {"algorithm": {"name": "dopri5", "rtoll": 1}}}, "unknown key solver.algorithm.rtoll; did you mean"),
        ({"solver": {"algorithm": {"step_size": 0.1}}}, "solver.step_size is not for algorithm 'dopri5'"),
        ({"solver": {"algorithm": 5}}, "solver.algorithm must be a string of characters, got 5"),
        ({"solver": {"algorithm": {"observer": 1}}}, "unknown key solver.algorithm.observer"),
        ({"solver": {"rtoll": 1}}, "unknown key solver.rtoll; did you mean 'rtol'"),
        ({"solver": {"controller": "pie"}}, "solver.controller must be one of pi, predictive, pid, got 'pie'"),
        ({"solver": {"controller": {"name": "pi", "integral": 1}}}, "unknown key solver.controller.integral"),
        ({"solver": {"controller": {"name": "pid", "integral": 0}}}, "integral must be positive, got 0"),
        ({"solver": {"training": "rk4"}}, "solver.training must be a table of settings, got 'rk4'"),
        ({"solver": {"training": {"algoritm": "rk4"}}}, "unknown key solver.training.algoritm; did you mean 'algo"),
        ({"solver": {"training": {"rtol": "fine"}}}, "solver.training.rtol must be a finite number"),
        ({"solver": {"training": {"training": {}}}}, "unknown key solver.training.training"),
        ({"solver": {"training": {"step_size": 1.0}}}, r"\[solver.training\]: solver.step_size is not for algorithm"),
        ({"solver": {"training": {"algorithm": "anderson"}}}, r"\[solver.training\]: solver.algorithm is 'anderson'"),
        ({"solver": {"training": {"first_step": "remember"}}}, 'needs solver.first_step = "remember" too'),
        (
            {"solver": {"training": {"precision": "bfloat16"}}, "train": {"dtype": "float64"}},
            "solver.training.precision must be 'full' for states in float64",
        ),
        ({"train": {"precision": "bfloat16", "dtype": "float64"}}, "train.precision must be 'full' for states in"),
        ({"model": {"name": "cnn"}, "solver": {"training": {}}}, "solver.training is not for cnn"),
        ({"train": 3}, r"\[train\] must be a section"),
    ],
)
def test_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        ExperimentConfig.from_dict(values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr=3e-4", {"optim": {"lr": 3e-4}}),
        ("data.dataset=svhn", {"data": {"dataset": "svhn"}}),
        ("data.flip = true", {"data": {"flip": True}}),
        ("optim.milestones=[3, 5]", {"optim": {"milestones": [3, 5]}}),
        ("solver.training.rtol=1e-2", {"solver": {"training": {"rtol": 1e-2}}}),
        ("solver.algorithm.rtol=1e-4", {"solver": {"algorithm": {"rtol": 1e-4}}}),
        ("solver.adjoint={name = 'gauss', nodes = 3}", {"solver": {"adjoint": {"name": "gauss", "nodes": 3}}}),
        ('data.dataset="a=b.npz"', {"data": {"dataset": "a=b.npz"}}),
    ],
)
def test_assignments(text, expected):
    assert parse_assignment(text) == expected


def test_an_option_may_stand_in_the_section_or_in_its_methods_table():
    table = '[solver.algorithm]\nname = "tsit5"\nrtol = 1e-4\ncontroller = {name = "pid", integral = 0.3}\n'
    short = "[solver]\nalgorithm = 'tsit5'\nrtol = 1e-4\ncontroller = {name = 'pid', integral = 0.3}\n"
    config = ExperimentConfig.from_dict(tomllib.loads(table))
    assert ExperimentConfig.from_dict(tomllib.loads(short)) == config
    assert config.solver.build_algorithm() == hj.Tsit5(
        rtol=1e-4, atol=1e-3, max_steps=1000, controller=hj.PIDController(integral=0.3)
    )
    own = ExperimentConfig.from_dict({"solver": {"algorithm": {"rtol": 1e-4}}})  # of the model's own method
    assert own.solver.build_algorithm() == hj.Dopri5(rtol=1e-4, atol=1e-3, max_steps=1000)
    for text in ("solver.rtol=1e-4", "solver.algorithm.rtol=1e-4"):
        merged = merge({"solver": {"algorithm": "dopri5", "rtol": 1e-2}}, parse_assignment(text))
        assert ExperimentConfig.from_dict(merged) == own
        assert own.value(text.partition("=")[0]) == 1e-4
    assert own.value("solver.adjoint.max_states") is own.value("solver.max_states") is None
    assert (own.value("optim.lr"), own.value("model.channels"), own.value("optim.none")) == (1e-3, 64, None)
    assert ExperimentConfig.from_dict({"solver": {"seminorm": True, "adjoint": "backsolve"}}).solver.adjoint == {
        "name": "backsolve",
        "seminorm": True,
    }


@pytest.mark.parametrize("text", ["", "lr", "lr=3", "optim.lr", "=3", ".=3", "optim.=3"])
def test_assignments_refused(text):
    with pytest.raises(ConfigError, match=r"section.key=value"):
        parse_assignment(text)


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_assignment_is_read_or_refused(key, value):
    with contextlib.suppress(HomoJLError):  # the one kind of error that may come out
        ExperimentConfig.from_dict(parse_assignment(f"{key}={value}"))


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("config") / "c.toml"
    path.write_bytes(content)
    with contextlib.suppress(ConfigError):  # the one error that may come out
        ExperimentConfig.from_dict(read_toml(path))


def test_later_layers_win_setting_by_setting():
    merged = merge({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}}, {"b": {"z": 4}})
    assert merged == {"a": {"x": 1, "y": 3}, "b": {"z": 4}}


GIVEN = {"rtol": 0.5, "atol": 0.25, "controller": "pid", "first_step": 0.125, "batch": "joint", "max_steps": 7,
         "step_size": 0.25, "memory": 3, "mixing": 0.5, "damping": 0.5, "alpha": 0.5, "krylov_steps": 5,
         "min_step": 1e-3, "max_step": 0.5, "linear_solver": "dense", "max_order": 4, "max_iter": 9, "solver": "BDF",
         "regularization": 1e-3, "kind": "newton", "differences": True}  # fmt: skip


@pytest.mark.parametrize("algorithm", [*ODE_ALGORITHMS, *FIXED_POINT_ALGORITHMS])
def test_a_setting_reaches_the_algorithm_or_is_refused(algorithm):
    model = {"name": "node" if algorithm in ODE_ALGORITHMS else "mondeq"}
    kind = (ODE_ALGORITHMS | FIXED_POINT_ALGORITHMS)[algorithm]
    adaptive = issubclass(kind, AbstractErrorControlled)
    without = ExperimentConfig.from_dict({"model": model, "solver": {"algorithm": algorithm}})
    assert set(GIVEN) - {"batch"} == {key for name in METHODS for key in options_of("algorithm", name)}
    assert {*option_names(), *(f.name for kind in CONTROLLERS.values() for f in dataclasses.fields(kind))} < set(HELP)
    for key, value in GIVEN.items():
        values = {"model": model, "solver": {"algorithm": algorithm, key: value}}
        if adaptive if key == "batch" else key in {field.name for field in dataclasses.fields(kind)}:
            built = ExperimentConfig.from_dict(values).solver.build_algorithm()
            assert key == "batch" or built != without.solver.build_algorithm()
            if key != "batch":
                table = {"model": model, "solver": {"algorithm": {"name": algorithm, key: value}}}
                assert ExperimentConfig.from_dict(table) == ExperimentConfig.from_dict(values)
        else:
            assert key not in without.solver.algorithm
            assert key != "batch" or without.solver.batch is None
            with pytest.raises(ConfigError) as error:
                ExperimentConfig.from_dict(values)
            assert str(error.value) == f"solver.{key} is not for algorithm {algorithm!r}; leave it out"


@pytest.mark.parametrize("adjoint", [*ODE_ADJOINTS, *FIXED_POINT_ADJOINTS])
def test_checkpoints_are_the_checkpoint_adjoints(adjoint):
    model = {"name": "node" if adjoint in ODE_ADJOINTS else "deq"}
    values = {"model": model, "solver": {"adjoint": adjoint, "checkpoints": 3}}
    if adjoint == "checkpoint":
        assert ExperimentConfig.from_dict(values).solver.build_adjoint().max_states == 3
        return
    with pytest.raises(ConfigError, match=rf"solver\.max_states is not for adjoint {adjoint!r}"):
        ExperimentConfig.from_dict(values)


@pytest.mark.parametrize(("adjoint", "kind"), [*ODE_ADJOINTS.items(), *FIXED_POINT_ADJOINTS.items()])
def test_an_adjoint_is_built_by_its_constructor_with_the_options_that_it_has(adjoint, kind):
    """All of its options, but for an algorithm, and what makes OneStepAdjoint what it is."""
    options = options_of("adjoint", adjoint)
    apart = {"algorithm", "throw"} | ({"steps", "damping"} if adjoint == "one-step" else set())
    assert set(options) == {field.name for field in dataclasses.fields(kind)} - apart
    given = {key: {int: 3, float: 0.25, bool: True}[option] for key, option in options.items()}
    model = {"name": "node" if adjoint in ODE_ADJOINTS else "deq"}
    solver = ExperimentConfig.from_dict({"model": model, "solver": {"adjoint": {"name": adjoint, **given}}}).solver
    built = solver.build_adjoint()
    assert type(built) is kind
    assert {key: getattr(built, key) for key in given} == given


def test_another_algorithm_takes_out_the_settings_of_the_old_one():
    preset = read_preset("node-digits")
    assert preset["solver"]["algorithm"]["first_step"] == "remember"
    solver = {"algorithm": "rk4", "step_size": 0.25}
    config = ExperimentConfig.from_dict(merge(preset, {"solver": solver}))
    assert config.to_dict()["solver"] == {
        "algorithm": {"name": "rk4", "step_size": 0.25},
        "adjoint": {"name": "checkpoint"},
        "backend": "auto",
        "precision": "full",
    }
    assert config.solver.build_algorithm().step_size == 0.25
    back = with_solver(config, algorithm="tsit5")
    assert "step_size" not in back.solver.algorithm
    assert (back.solver.algorithm["controller"], back.solver.batch) == ("pi", "joint")
    few = {"solver": {"adjoint": "checkpoint", "checkpoints": 3}}
    assert merge(few, {"solver": {"adjoint": "gauss"}}) == {"solver": {"adjoint": {"name": "gauss"}}}
    for changes, message in [
        ({"step_size": 0.1}, "solver.step_size is not for algorithm 'dopri5'"),
        ({"algorithm": "rk4", "rtol": 1e-3}, "solver.rtol is not for algorithm 'rk4'"),
        ({"algorithm": "dopri5", "step_size": 0.1}, "solver.step_size is not for algorithm 'dopri5'"),
        ({"adjoint": "gauss", "checkpoints": 3}, "solver.max_states is not for adjoint 'gauss'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            ExperimentConfig.from_dict(merge(preset, {"solver": changes}))
    with pytest.raises(ConfigError, match=r"solver\.rtol is not for algorithm 'rk4'"):
        with_solver(config, rtol=1e-5)
    later = merge({"solver": {"step_size": 0.1}}, {"solver": {"algorithm": "dopri5"}})
    with pytest.raises(ConfigError, match=r"solver\.step_size is not for algorithm 'dopri5'"):
        ExperimentConfig.from_dict(later)


def test_training_has_settings_of_its_own_beside_the_solvers():
    fast = {"algorithm": "rk4", "step_size": 0.5, "adjoint": "direct"}
    config = ExperimentConfig.from_dict(
        merge({"solver": {"algorithm": "tsit5", "rtol": 1e-4}}, {"solver": {"training": fast}})
    )
    assert ExperimentConfig.from_dict(tomllib.loads(config.to_toml())) == config
    assert config.solver.build_algorithm().rtol == 1e-4
    assert (config.solver.adjoint, config.training_solver.adjoint) == ({"name": "checkpoint"}, {"name": "direct"})
    assert config.training_solver.build_algorithm() == RK4(step_size=0.5)
    # Layers win setting by setting here too, and what an algorithm that went had goes with it.
    finer = merge(config.to_dict(), {"solver": {"training": {"step_size": 0.25}}})
    assert ExperimentConfig.from_dict(finer).training_solver.build_algorithm() == RK4(step_size=0.25)
    loose = ExperimentConfig.from_dict({"solver": {"algorithm": "tsit5", "training": {"rtol": 1e-2}}})
    assert loose.training_solver.build_algorithm().rtol == 1e-2
    assert with_solver(loose, algorithm="rk4").training_solver.build_algorithm() == RK4()
    usual = ExperimentConfig()
    assert usual.training_solver is usual.solver


def test_a_run_whose_file_has_settings_that_do_nothing_is_read(tmp_path):
    text = '[model]\nname = "node"\n[solver]\nalgorithm = "rk4"\nrtol = 1e-3\natol = 1e-3\ncontroller = "predictive"\n'
    text += 'first_step = "remember"\nbatch = "joint"\nmax_steps = 10000\nstep_size = 0.5\nadjoint = "direct"\n'
    text += 'checkpoints = 3\nbackend = "pytorch"\nprecision = "full"\n'
    path = tmp_path / "config.toml"
    path.write_text(text + CONFIG_END)
    for config in (Run.open(tmp_path).config, ExperimentConfig.from_dict(read_toml(path))):
        assert config.solver.build_algorithm() == RK4(step_size=0.5)
    path.write_text(text)  # anyone's own
    with pytest.raises(ConfigError, match=r"solver\.rtol is not for algorithm 'rk4'"):
        ExperimentConfig.from_dict(read_toml(path))
    path.write_text(f"schema = 2\n{text}{CONFIG_END}")  # of today's, which has none of it
    with pytest.raises(ConfigError, match=r"solver\.rtol is not for algorithm 'rk4'"):
        ExperimentConfig.from_dict(read_toml(path))
    path.write_text("schema = 3\n" + CONFIG_END)
    with pytest.raises(ConfigError, match="has configuration schema 3; this version of homojl reads 1 and 2"):
        read_toml(path)
    path.write_text("[solver]\nnonsense = 1\n" + CONFIG_END)
    with pytest.raises(ConfigError, match=r"unknown key solver\.nonsense"):
        ExperimentConfig.from_dict(read_toml(path))


def test_how_many_states_the_checkpoint_adjoint_keeps():
    config = ExperimentConfig.from_dict({"solver": {"adjoint": "checkpoint", "checkpoints": 12}})
    assert config.solver.build_adjoint().max_states == 12
    assert ExperimentConfig().solver.adjoint == {"name": "checkpoint"}
    assert ExperimentConfig.from_dict({"solver": {"adjoint": "checkpoint"}}).solver.build_adjoint().max_states is None


def test_a_run_of_a_network_without_a_solver_is_read_though_its_file_names_automatic_ones(tmp_path):
    text = '[model]\nname = "cnn"\n[solver]\nalgorithm = "auto"\nadjoint = "auto"\n'
    text += 'backend = "pytorch"\nprecision = "full"\n'
    (tmp_path / "config.toml").write_text(text + CONFIG_END)
    config = Run.open(tmp_path).config
    assert config == ExperimentConfig.from_dict({"model": {"name": "cnn"}, "solver": {"backend": "pytorch"}})
