"""What is loaded: by commands that compute nothing, by what refuses, and by a first solve; each in a fresh process."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys

import pytest
import torch

from homojl import environment
from homojl.adjoints import ODE_ADJOINTS
from homojl.adjoints.equilibrium import FIXED_POINT_ADJOINTS
from homojl.backends import BACKEND_NAMES
from homojl.data import dataset_info
from homojl.models import count_parameters, create_model, model_class
from homojl.models.base import PublishedModel
from homojl.models.settings import MODELS, PRESET_PARAMETERS
from homojl.names import (
    BACKENDS,
    FIGURE_FORMATS,
    FIXED_POINT_ADJOINT_NAMES,
    ODE_ADJOINT_NAMES,
    TRAINING_PRECISIONS,
)
from homojl.precision import PRECISIONS
from homojl.results import style
from homojl.training import ExperimentConfig, Run
from homojl.training.config import preset_names, read_preset
from homojl_cli.main import COMMANDS

LIGHT = {"click"}  # beside the standard library and homojl's own modules
JULIAPKG = {"juliapkg", "filelock", "semver", "tomli", "tomlkit"}  # which looks for Julia

# Command line -> exit code. RUN is a run that has just been made.
COMMAND_LINES = {
    **{f"{name} --help": 0 for name in ("", *COMMANDS, "julia install", "julia status")},
    "--version": 0,
    "models": 0,
    "datasets": 0,
    "trace": 0,
    "runs .": 0,
    "runs none": 2,
    "runs --sort val_acuracy": 2,
    "": 0,
    "julia": 0,
    "predict none x.png": 2,
    "modles": 2,
    "train --epochs many": 2,
    "train --no-such-option": 2,
    "train --model homood": 2,
    "train --dataset mnits": 2,
    "train --preset homoode-mnits": 2,
    "train --config none.toml": 2,
    "train --adjoint checkpoints": 2,
    "train --backend torch": 2,
    "train --resume none": 2,
    "train --resume none --epochs 2": 2,
    "train --set x=1": 2,
    "train --set x.y=1": 2,
    "train --set train.epoch=1": 2,
    "train --set train.epochs=-1": 2,
    "train --set train.epochs=many": 2,
    "train --set model.widht=1": 2,
    "train --set model.channels=-1": 2,
    "train --set model.channels=33": 2,
    "train --model deq --set model.jacobian_weight=-1": 2,
    "train --model mondeq --set model.form=double": 2,
    "train --model anode --set model.augment=-1": 2,
    "train --model pcdeq --set model.activation=relu": 2,
    "train --set solver.algorithm=tsitt5": 2,
    "train --set solver.rtol=-1": 2,
    "train --model deq --set solver.algorithm=tsit5": 2,
    "train --model deq --set solver.adjoint=gauss": 2,
    "train --set solver.precision=bfloat16 --set train.dtype=float64": 2,
    "compare --models homoode,deqq": 2,
    "compare --dataset mnits": 2,
    "compare --experiment adjiont": 2,
    "compare --seeds 0,0": 2,
    "compare --epochs 1 --seconds 1": 2,
    "compare --set optim.lr=-1": 2,
    "evaluate none": 2,
    "evaluate RUN --algorithm tsitt5": 2,
    "evaluate RUN --algorithm anderson": 2,
    "evaluate RUN --rtol -1": 2,
    "export none": 2,
    "plot none": 2,
    "plot RUN --format gif": 2,
    "report none": 2,
    "report RUN none": 2,
    "tune none": 2,
    "tune RUN --algorithms tsit5,anderson": 2,
    "tune RUN --tolerances small": 2,
    "bench --problem vanderpole": 2,
    "bench --solver scipy": 2,
    "trace none": 2,
    "trace --problem acrtan": 2,
    "trace --problem arctan --algorithm arclenght": 2,
    "trace --problem arctan --predictor midpiont": 2,
    "trace --problem arctan --velocity fast": 2,
    "trace --samples 3": 2,
}

# Runs command lines one after the other: exit code, and the packages that the process then has and had not before.
CHILD = """
import contextlib, io, json, os, sys

def packages():
    return {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)

seen = packages()
from homojl_cli.main import main

def called(words, **variables):
    global seen
    sys.argv = ["homojl", *words]
    os.environ.update(variables)
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # completions are written as bytes
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code
    for name in variables:
        del os.environ[name]
    loaded, seen = packages() - seen - {"homojl", "homojl_cli"}, packages()
    out.flush()
    return code, sorted(loaded), out.buffer.getvalue().decode()
"""


def _child(code: str, *args: object, cwd=None) -> str:
    command = [sys.executable, "-c", CHILD + code, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """Command line -> exit code and loaded packages, all in one process."""
    folder = tmp_path_factory.mktemp("startup")
    run = Run.create(folder / "run", ExperimentConfig())
    lines = {line: [str(run.path) if word == "RUN" else word for word in line.split()] for line in COMMAND_LINES}
    code = "print(json.dumps({line: called(words)[:2] for line, words in json.loads(sys.argv[1]).items()}))"
    found = json.loads(_child(code, json.dumps(lines), cwd=folder))
    assert [path.name for path in folder.iterdir()] == ["run"], "what is refused leaves nothing behind"
    return found


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_what_computes_nothing_loads_nothing(line, called):
    code, loaded = called[line]
    assert code == COMMAND_LINES[line]
    assert set(loaded) <= LIGHT


def test_info_loads_what_looks_for_julia():
    code, loaded, out = json.loads(_child("print(json.dumps(called(['info', '--json'])))"))
    assert code == 0
    assert {name for name in loaded if "mypyc" not in name} <= LIGHT | JULIAPKG
    info = json.loads(out)
    assert info["packages"]["torch"] == torch.__version__
    assert info["cuda"] == torch.version.cuda


def test_a_gpu_is_named_by_its_driver(tmp_path):
    assert environment._gpu(tmp_path) is None
    file = tmp_path / "gpus" / "0000:01:00.0" / "information"
    file.parent.mkdir(parents=True)
    file.write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 65\n")
    assert environment._gpu(tmp_path) == "NVIDIA H200"


def test_completion_loads_nothing():
    code = """
words = json.loads(sys.argv[1])
variables = {"_HOMOJL_COMPLETE": "bash_complete", "COMP_CWORD": str(len(words) - 1)}
print(json.dumps(called([], COMP_WORDS=" ".join(words), **variables)))
"""
    for words, expected in ((["homojl", "tra"], "plain,train"), (["homojl", "train", "--ba"], "plain,--backend")):
        ended, loaded, out = json.loads(_child(code, json.dumps(words)))
        assert ended == 0
        assert expected in out.split()
        assert set(loaded) <= LIGHT


def test_names_and_refusals_in_python_load_nothing(tmp_path):
    run = Run.create(tmp_path / "run", ExperimentConfig())
    _child(
        """
import homojl as hj
dir(hj), hj.model_names(), hj.dataset_names(), hj.Tsit5(rtol=1e-5), hj.Anderson()
run = hj.load_run(sys.argv[1])
run.config, run.metrics, run.environment
for name, options in (("homood", {}), ("homoode", {"widht": 1})):
    try:
        hj.create_model(name, input_shape=(1, 8, 8), n_classes=10, **options)
        raise AssertionError(name)
    except hj.ConfigError:
        pass
assert packages() - seen <= {"homojl", "homojl_cli", "click"}, packages() - seen
""",
        run.path,
    )


def test_a_solve_and_a_model_load_nothing_beside_torch(tmp_path):
    _child(
        """
import torch
seen = packages()
import homojl as hj

solution = hj.solve(hj.ODEProblem(lambda t, y: -y, torch.ones(3, requires_grad=True), (0.0, 1.0)), hj.Tsit5())
solution.value.sum().backward()
hj.solve(hj.FixedPointProblem(torch.cos, torch.ones(2, 3)), hj.Anderson(), backend="pytorch")
model = hj.create_model("homoode", input_shape=(1, 8, 8), n_classes=10, channels=4, backend="pytorch")
model.eval()(torch.zeros(2, 1, 8, 8))
hj.load_run
assert packages() - seen <= {"homojl"}, packages() - seen
assert not {"torch._dynamo", "torch._inductor"} & set(sys.modules)
"""
    )


def test_the_names_are_those_of_what_they_name():
    assert BACKENDS == BACKEND_NAMES
    assert tuple(ODE_ADJOINTS) == ODE_ADJOINT_NAMES
    assert tuple(FIXED_POINT_ADJOINTS) == FIXED_POINT_ADJOINT_NAMES
    assert set(TRAINING_PRECISIONS) < set(PRECISIONS)
    assert tuple(style._OPTIONS) == FIGURE_FORMATS


@pytest.mark.parametrize("name", MODELS)
def test_a_models_settings_are_those_of_its_class(name):
    settings, cls = MODELS[name], model_class(name)
    assert cls.settings is settings
    arguments = inspect.signature(cls).parameters
    if not issubclass(cls, PublishedModel):  # which takes its settings' fields
        assert {
            key: p.default for key, p in arguments.items() if key not in ("input_shape", "n_classes")
        } == settings.defaults()
    for key in settings.defaults():
        assert re.search(rf"^ +(\w+, )*{key}(, \w+)*: ", cls.__doc__, re.MULTILINE), key
    assert inspect.cleandoc(cls.__doc__).splitlines()[0] == settings.summary
    assert cls.default_algorithm == settings.algorithm
    assert type(cls.default_adjoint) is (ODE_ADJOINTS | FIXED_POINT_ADJOINTS)[settings.adjoint]
    assert cls.states_ode() == settings.states_ode()


@pytest.mark.parametrize("preset", preset_names())
def test_the_models_have_the_parameters_that_are_listed(preset):
    values = read_preset(preset)
    name, _, rest = preset.partition("-")
    info = dataset_info(values["data"]["dataset"])
    options = {key: value for key, value in values["model"].items() if key != "name"}
    model = create_model(values["model"]["name"], input_shape=info.input_shape, n_classes=info.n_classes, **options)
    assert PRESET_PARAMETERS[name][rest] == count_parameters(model)


def test_only_presets_are_listed():
    assert sorted(f"{name}-{rest}" for name, listed in PRESET_PARAMETERS.items() for rest in listed) == preset_names()
