"""From a configuration to live objects: what the machine cannot hold, or what is no device, is refused before."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from homojl.errors import ConfigError
from homojl.models import MODELS
from homojl.training.config import ExperimentConfig, merge
from homojl.training.experiment import build_model, resolve_device, state_form
from homojl.training.form import ModelForm

FORM = ModelForm((1, 8, 8), 10, tuple("0123456789"), (0.5,), (0.25,))


@pytest.mark.parametrize("name", MODELS)
def test_the_form_of_a_model_is_known_without_its_memory(name):
    config = ExperimentConfig.from_dict({"model": {"name": name}, "solver": {"first_step": "remember"} if
                                         MODELS[name].states_ode() else {}})  # fmt: skip
    form, state = state_form(config, FORM), build_model(config, FORM).state_dict()
    assert {key: (t.shape, t.dtype) for key, t in form.items()} == {key: (t.shape, t.dtype) for key, t in state.items()}
    assert {t.device.type for t in form.values()} == {"meta"}


def test_what_models_are_built_with_loads_nothing_of_pytorch_s_compiler():
    code = """
import sys
from homojl.training.config import ExperimentConfig, preset_names, read_preset
from homojl.training.experiment import build_model, state_form
from homojl.training.form import ModelForm
form = ModelForm((3, 32, 32), 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
for name in preset_names():
    config = ExperimentConfig.from_dict(read_preset(name))
    state_form(config, form), build_model(config, form)
    assert not {"torch._dynamo", "sympy"} & sys.modules.keys(), name
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"channels": 3_200_000}, "which takes .* GiB to train; this machine has"),
        ({"channels": 2**31 - 32}, "the model cannot be built"),
        ({"name": "mondeq", "form": "linear", "channels": 10**6}, "this machine has"),
        ({"name": "node", "filters": 2**31 - 1}, r"this machine has|cannot be built"),
    ],
)
def test_a_model_that_the_machine_cannot_hold_is_refused(tiny, model, message):
    others = {"solver": {"algorithm": "auto", "adjoint": "auto"}} if "name" in model else {}
    values = merge({} if "name" in model else tiny.to_dict(), {"model": model}, others)
    with pytest.raises(ConfigError, match=message):
        build_model(ExperimentConfig.from_dict(values), FORM)


@pytest.mark.parametrize("name", ["meta", "gpu", "cuda:99", "cpu:x", "", "\n"])
def test_no_device(name):
    with pytest.raises(ConfigError, match="cannot be used here"):
        resolve_device(name)
    assert resolve_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": [1, 8]},
        {"input_shape": [1, 8, 2**40]},
        {"input_shape": "188"},
        {"n_classes": 9},
        {"class_names": ["a\n"] * 10},
        {"class_names": 3},
        {"mean": [float("nan")]},
        {"std": [0.0]},
        {"std": [0.5, 0.5]},
    ],
    ids=str,
)
def test_a_stored_form_is_checked(change):
    stored = {
        "input_shape": [1, 8, 8],
        "n_classes": 10,
        "class_names": list("0123456789"),
        "mean": [0.5],
        "std": [0.25],
    }
    assert ModelForm.stored(stored) == FORM
    with pytest.raises((KeyError, TypeError, ValueError)):
        ModelForm.stored(stored | change)
