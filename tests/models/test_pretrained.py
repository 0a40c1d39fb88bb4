"""Models apart from their runs: a folder for another process, and a program of torch.export."""

from __future__ import annotations

import json
import subprocess
import zipfile

import pytest
import torch

import homojl as hj
from homojl.models.saving import described, rebuilt
from homojl.training.exporting import export_model
from homojl.training.form import ModelForm
from tests import warm

SMALL = {
    "homoode": {"channels": 4},
    "deq": {"channels": 4, "jacobian_weight": 0.5},
    "node": {"filters": 4},
    "anode": {"filters": 4, "augment": 2},
    "mondeq": {"channels": (3, 4, 5), "form": "multi"},
    "pcdeq": {"channels": (3, 4, 5), "form": "multi"},
}
FIXED = {
    "homoode": hj.RK4(step_size=0.5),
    "deq": hj.Anderson(rtol=1e-4, max_steps=25),
    "node": hj.RK4(step_size=0.5),
    "mondeq": hj.PeacemanRachford(rtol=1e-2, max_steps=8),
    "pcdeq": hj.Picard(rtol=1e-4, max_steps=10),
}
FORM = ModelForm((1, 12, 12), 3, ("a", "b", "c"), (0.5,), (0.25,))


def small(name: str, **options) -> torch.nn.Module:
    options = SMALL[name] | options
    return hj.create_model(name, input_shape=(1, 12, 12), n_classes=3, backend="pytorch", **options).eval()


@pytest.mark.parametrize("name", SMALL)
def test_a_saved_model_comes_back(name, tmp_path):
    model, image = small(name), torch.randn(3, 1, 12, 12)
    model.precision = "bfloat16" if name == "homoode" else "full"
    model.save_pretrained(tmp_path / "saved")
    again = hj.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(image), model(image))
    assert (again.algorithm, again.adjoint) == (model.algorithm, model.adjoint)
    assert (again.origin, again.precision) == (model.origin, model.precision)
    assert not again.training


def test_in_another_process(tmp_path):
    model = small("deq", algorithm=hj.Broyden(rtol=1e-4)).double()
    model.set_origin(trained_on={"class_names": ["a", "b", "c"], "mean": [0.5], "std": [0.25]})
    model.save_pretrained(tmp_path / "saved")
    torch.save((image := torch.randn(3, 1, 12, 12).double(), model(image)), tmp_path / "answer.pt")
    code = (
        "import sys, torch, homojl as hj\n"
        "model = hj.from_pretrained(sys.argv[1] + '/saved')\n"
        "image, answer = torch.load(sys.argv[1] + '/answer.pt')\n"
        "assert torch.equal(model(image), answer)\n"
        "assert model.origin.trained_on['class_names'] == ['a', 'b', 'c']\n"
    )
    subprocess.run([warm.python(), "-c", code, str(tmp_path)], check=True)


@pytest.mark.parametrize(
    "method",
    [
        hj.Tsit5(rtol=1e-5, first_step=hj.StepMemory(), controller=hj.PIDController()),
        hj.Dopri5(),
        hj.RK4(step_size=0.25),
        hj.ImplicitAdjoint(algorithm=hj.Picard(max_steps=7), throw=False),
        hj.CheckpointAdjoint(max_states=9),
    ],
    ids=repr,
)
def test_methods_are_described_in_full(method):
    again = rebuilt(json.loads(json.dumps(described(method))))
    assert repr(again) == repr(method)


def test_what_cannot_be_saved_or_read(tmp_path):
    with pytest.raises(hj.ConfigError, match="cannot be written"):
        small("homoode", algorithm=hj.RK4(grid=hj.Grid(points=lambda times: times))).save_pretrained(tmp_path / "grid")
    from homojl.models import DEQNet

    with pytest.raises(hj.ConfigError, match=r"homojl\.create_model"):
        DEQNet(input_shape=(1, 8, 8), n_classes=3, channels=4).save_pretrained(tmp_path / "bare")
    with pytest.raises(hj.CheckpointError, match="no saved model"):
        hj.from_pretrained(tmp_path / "none")
    small("deq").save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved/config.json").read_text())
    for change in ({"schema": 9}, {"n_classes": 4}, {"name": "dec"}, {"solver": {}}, {"dtype": "float3"}):
        (tmp_path / "saved/config.json").write_text(json.dumps(config | change))
        with pytest.raises(hj.HomoJLError):
            hj.from_pretrained(tmp_path / "saved")
    (tmp_path / "saved/config.json").write_text(json.dumps(config))
    (tmp_path / "saved/model.safetensors").write_bytes(b"no")
    with pytest.raises(hj.CheckpointError, match="damaged"):
        hj.from_pretrained(tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_an_exported_model_answers_as_the_model(name, tmp_path):
    one = {"form": "single", "channels": (4,)} if name in ("mondeq", "pcdeq") else {}
    model = small(name, algorithm=FIXED[name], **one)
    assert export_model(model, FORM, tmp_path / "model.pt2") < 1e-3
    program = torch.export.load(tmp_path / "model.pt2", extra_files=(beside := {"homojl.json": ""})).module()
    image = torch.randn(2 if name == "mondeq" else 5, 1, 12, 12)
    torch.testing.assert_close(program(image), model(image), rtol=1e-2, atol=1e-3)
    assert json.loads(beside["homojl.json"])["class_names"] == ["a", "b", "c"]
    assert zipfile.is_zipfile(tmp_path / "model.pt2")


def test_steps_that_depend_on_numbers_are_not_exported(tmp_path):
    with pytest.raises(hj.ConfigError, match=r"Dopri5 .* give export_model algorithm= one .* hj\.RK4"):
        export_model(small("homoode"), FORM, tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())
