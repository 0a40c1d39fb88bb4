"""Tuning: measured on the validation split alone, and the cheapest that is as accurate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from homojl.errors import ConfigError
from homojl.results.tuning import SCHEMA, Trial, Tuning, draw_tuning, write_tuning
from homojl.training import Run, train_run
from homojl.training.config import ExperimentConfig, merge
from homojl.training.outcome import split_of
from homojl.training.tune import tune
from tests.results.netcdf import assert_netcdf
from tests.training.conftest import TINY

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs" / "hdf5.md"
REFERENCE = Trial({"algorithm": "dopri8", "rtol": 1e-6, "atol": 1e-6}, "Dopri8", 0.9, 1.0, 0.0, 200.0, 1e-3)


def trial(algorithm: str, accuracy: float, evaluations: float, **others) -> Trial:
    settings = {"algorithm": algorithm, "rtol": 0.1, "atol": 0.1}
    return replace(
        REFERENCE, settings=settings, algorithm=algorithm, accuracy=accuracy, evaluations=evaluations, **others
    )


def trained(config: ExperimentConfig, folder: Path) -> Run:
    run = Run.create(folder / "run", config)
    assert train_run(run)
    return run


def tuning(*trials: Trial, within: float = 0.01) -> Tuning:
    return Tuning(REFERENCE, replace(REFERENCE, settings={}), trials, within, images=1000, batch_size=100)


def test_the_cheapest_that_is_accurate_and_reached_its_end_is_chosen():
    good = trial("bosh3", 0.89, 20.0)
    found = tuning(
        trial("adaptiveheun", 0.88, 10.0), trial("tsit5", 0.9, 15.0, failed=1), trial("dopri5", 0.95, 30.0), good
    )
    assert found.choice is good
    assert replace(found, within=0.0).choice.algorithm == "dopri5"
    assert tuning(trial("tsit5", 0.5, 3.0)).choice is None
    assert found.gains
    assert not tuning(trial("bosh3", 0.9, 200.0)).gains, "it takes as many as what is configured"
    closer = replace(good, settings={"algorithm": "tsit5"}, agreement=1.0)
    assert tuning(replace(good, agreement=0.9), closer).choice is closer


def test_the_file_and_the_figure(tmp_path):
    found = tuning(trial("bosh3", 0.9, 20.0), trial("rodas5p", 0.0, 0.0, message="not here"))
    write_tuning(tmp_path / "t.h5", found)
    arrays, attributes = SCHEMA.load(tmp_path / "t.h5")
    assert list(arrays["/chosen"]) == [0, 0, 1, 0]
    assert arrays["/settings"][2] == "--set solver.algorithm=bosh3 --set solver.rtol=0.1 --set solver.atol=0.1"
    assert attributes == {"within": 0.01, "images": 1000, "batch_size": 100}
    assert_netcdf(tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5") as file:
        assert all(file[name].attrs["description"] for name in SCHEMA.entries)
    assert [path.name for path in draw_tuning(found, tmp_path, ["svg"])] == ["tune.svg"]


def test_the_docs_show_the_schema():
    assert SCHEMA.describe() in DOCS.read_text("utf-8")


def test_an_ode_model(tmp_path, monkeypatch):
    # PyTorch's backend, which has no Vern7.
    config = ExperimentConfig.from_dict(merge(TINY, {"train": {"epochs": 1}, "solver": {"backend": "pytorch"}}))
    run = trained(config, tmp_path)
    splits = []
    monkeypatch.setattr("homojl.training.tune.split_of", lambda *args: splits.append(args[-1]) or split_of(*args))
    found = tune(run, within=0.02, algorithms=("bosh3", "dopri5", "vern7"), tolerances=(1e-1, 1e-4))
    assert (found.reference.agreement, found.reference.logit_error, found.reference.failed) == (1.0, 0.0, 0)
    assert splits == ["val"]
    assert found.configured.algorithm == "Bosh3"
    bosh, tight_bosh, _, dopri, *vern = found.trials
    assert tight_bosh.logit_error < bosh.logit_error
    assert tight_bosh.evaluations > bosh.evaluations
    assert dopri.agreement >= 0.98
    assert all("vern7" in t.message.lower() for t in vern)
    assert found.choice is not None
    assert found.images == 288


def test_an_equilibrium_model(tmp_path):
    solver = {"algorithm": "anderson", "rtol": 1e-2, "backend": "pytorch"}
    config = merge(TINY, {"model": {"name": "deq"}, "train": {"epochs": 1}}) | {"solver": solver}
    run = trained(ExperimentConfig.from_dict(config), tmp_path)
    found = tune(run, within=0.02, algorithms=("anderson", "newtonkrylov"), tolerances=(1e-1, 1e-3), limit=64)
    anderson, tight, newton, _ = found.trials
    assert tight.logit_error < anderson.logit_error
    assert newton.evaluations > 2  # products with the Jacobian count
    assert found.images == 64
    with pytest.raises(ConfigError, match="'dopri5' is not for"):
        tune(run, algorithms=("dopri5",))
    with pytest.raises(ConfigError, match="within"):
        tune(run, within=2.0)
