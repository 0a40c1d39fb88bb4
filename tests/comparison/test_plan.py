"""Experiments and plans: all that is shipped can be planned, one split and one budget for all, and clear errors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from homojl.comparison import experiment_names, make_plan, read_experiment
from homojl.comparison.experiment import MODELS_ALONE, Experiment, Variation
from homojl.comparison.published import PUBLISHED
from homojl.data import dataset_info, dataset_names
from homojl.errors import ConfigError
from homojl.models import MODELS, count_parameters, create_model
from homojl.training.config import merge, preset_names, read_preset
from homojl.training.run import Run


def plan(experiment=MODELS_ALONE, folder="folder", **options):
    values = {"dataset": "digits", "seeds": [0], "epochs": 2, "settings": [{"solver": {"backend": "pytorch"}}]}
    return make_plan(experiment, Path(folder), **values | options)


def within(part: dict[str, Any], whole: dict[str, Any]) -> bool:
    """Whether nested values have those of a part."""
    return all(
        within(value, whole.get(key, {})) if isinstance(value, dict) else whole.get(key) == value
        for key, value in part.items()
    )


@pytest.mark.parametrize("dataset", dataset_names())
@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_can_be_planned_on_every_dataset(name, dataset):
    experiment = read_experiment(name)
    assert experiment.title
    assert experiment.source
    if not any(v.applies(model, dataset) for v in experiment.variations for model in experiment.models):
        assert {v.preset for v in experiment.variations} == {"fast"}
        return  # there is no such preset for the dataset
    made = plan(experiment, dataset=dataset, seeds=[0, 3])
    assert {run.model for run in made.runs} == set(experiment.models)
    assert len(made.labels) * 2 == len(made.runs) == len({run.name for run in made.runs})
    assert len(made.labels) > 1 or experiment.measurements, "there is something to compare"


@pytest.mark.parametrize("name", experiment_names())
def test_a_variation_is_what_its_settings_say(name):
    experiment = read_experiment(name)
    by_name = {variation.name: variation for variation in experiment.variations}
    for run in plan(experiment, settings=[{"solver": {"backend": "pytorch"}, "data": {"pad": 2}}]).runs:
        assert within(merge(by_name[run.variation].settings), run.config.to_dict())


@pytest.mark.parametrize(("dataset", "parameters"), [("digits", 34_154), ("mnist", 34_154), ("cifar10", 132_938)])
def test_accuracies_are_compared_at_equal_parameter_counts(dataset, parameters):
    info = dataset_info(dataset)
    made = plan(read_experiment("accuracy"), dataset=dataset).runs
    assert {run.label for run in made} == set(MODELS)
    for run in made:
        model = run.config.model
        built = create_model(model.name, input_shape=info.input_shape, n_classes=info.n_classes, **model.options)
        assert abs(count_parameters(built) / parameters - 1) < 0.01, run.label


def test_a_variation_of_another_preset_is_where_there_is_one():
    runs = {run.label: run.config for run in plan(read_experiment("fast")).runs}
    assert "homoode, fast" in runs
    assert "deq, fast" not in runs
    assert runs["homoode, fast"].training_solver.algorithm["name"] == "rk4"
    assert runs["homoode, as published"].solver.training is None
    assert "homoode, fast" not in plan(read_experiment("fast"), dataset="cifar100").labels


def test_images_of_ones_own_with_the_presets_of_a_dataset(tmp_path):
    (tmp_path / "mine.npz").touch()
    (run,) = plan(models=["homoode"], dataset=str(tmp_path / "mine.npz"), presets="cifar10").runs
    assert run.config.data.dataset == str(tmp_path / "mine.npz")
    assert (run.config.data.pad, run.config.model.options["dropout"]) == (4, 0.1)


def test_the_runs_of_a_plan_are_the_presets_but_for_budget_seed_and_threads():
    made = plan(seeds=[4, 1], epochs=7, threads=3)
    assert made.labels == list(MODELS)
    assert [(run.model, run.seed) for run in made.runs] == [(m, s) for m in MODELS for s in (4, 1)]
    for run in made.runs:
        config, preset = run.config.to_dict(), read_preset(f"{run.model}-digits")
        assert (config["train"]["epochs"], config["train"]["seed"], config["train"]["threads"]) == (7, run.seed, 3)
        del preset["train"]["epochs"]
        preset["optim"].pop("milestones", None)
        assert within(preset, config), run.model


@pytest.mark.parametrize("dataset", sorted({name.partition("-")[2] for name in preset_names()}))
def test_the_presets_of_a_dataset_differ_in_the_model_alone(dataset):
    """Same images, split, augmentation and batches; what a paper prescribes for its own model may differ."""
    presets = [read_preset(name) for name in preset_names() if name.partition("-")[2] == dataset]
    assert len({tuple(preset["data"].items()) for preset in presets}) == 1
    assert len({preset["train"]["batch_size"] for preset in presets}) == 1


def test_milestones_keep_their_place_in_a_budget_of_other_epochs():
    def milestones(**options):
        return plan(models=["pcdeq"], **options).runs[0].config.optim.milestones

    assert read_preset("pcdeq-digits")["optim"]["milestones"] == [20, 32]
    assert read_preset("pcdeq-digits")["train"]["epochs"] == 40
    assert milestones(epochs=10) == (5, 8)
    assert milestones(epochs=1) == (1, 1)
    assert milestones(epochs=None, seconds=3.0) == (20, 32)  # of the 40 that scale the schedule
    assert milestones(epochs=10, settings=[{"optim": {"milestones": [3]}}]) == (3,)


def test_a_budget_of_seconds():
    for run in plan(epochs=None, seconds=12.5).runs:
        assert run.config.train.seconds == 12.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": None}, "needs one budget"),
        ({"seconds": 3.0}, "needs one budget"),
        ({"seeds": [0, 0]}, "seeds must be different"),
        ({"seeds": []}, "seeds must be different whole numbers, got none"),
        ({"models": ["homode"]}, "did you mean 'homoode'"),
        ({"settings": [{"model": {"filters": 3}}]}, "unknown key model.filters"),
        (
            {"experiment": Experiment("e", "", "", ("deq",), tuple(
                Variation(name, {"data": {"val_fraction": f}}) for name, f in (("a", 0.1), ("b", 0.2))
            ))},
            "would not share a split: data.val_fraction is 0.1, 0.2",
        ),
        ({"experiment": Experiment("e", "", "", ("deq",), MODELS_ALONE.variations, x="model.init")},
         "x of experiment 'e' must be a number; model.init is 'zero'"),
        ({"experiment": read_experiment("augmentation"), "models": ["deq"], "dataset": "svhn", "epochs": 0},
         "train.epochs must be at least 1"),
    ],
)  # fmt: skip
def test_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        plan(**options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("titel = 'x'", "unknown key titel; did you mean 'title'"),
        ("models = 'deq'", "models must be a list"),
        ("models = ['dek']", "did you mean 'deq'"),
        ("images = 0", "images must be at least 1"),
        ("[variations]\na = 1", "variations.a must be a table of sections"),
        ("[variations.a]\nsolver = 1", "must be a table of sections such as"),
        ("[variations.a]\ndatasets = ['mnits']", "did you mean 'mnist'"),
        ("[measurements.a.optim]\nlr = 1.0", "measurements.a changes optim"),
        ("[measurements.a.train]\nepochs = 1", "measurements.a changes epochs"),
        ("[measurements.a.train]\nbatch_size = 1\neval_batch_size = 1", "changes batch_size, eval_batch_size"),
        ("[measurements.a.train]\nbatch_size = 0", "train.batch_size must be a whole number, got 0"),
        ("[measurements.a]\nstart = 2", "start must be a number from 0 to 1, got 2"),
        ("[measurements.a]\nstart = 'near'", "start must be a number from 0 to 1, got 'near'"),
        ("[variations.a]\npreset = 1", "preset must be a name"),
        ("[variations.a.only.deq-digts.model]\nchannels = 1", "did you mean 'deq-digits'"),
        ("rate = 'fast'", "rate must be a float"),
        ("title =", "is not valid TOML"),
    ],
)
def test_a_users_experiment_that_is_not_one(text, message, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_experiment(str(tmp_path / "mine.toml"))


def test_unknown_experiment():
    with pytest.raises(ConfigError, match="did you mean 'adjoints'"):
        read_experiment("adjoint")


def test_a_users_experiment(tmp_path):
    (tmp_path / "mine.toml").write_text(
        "[variations.single]\n"
        "[variations.multi]\nmodels = ['mondeq']\nmodel = { form = 'multi', channels = [8, 8, 8] }\n"
    )
    made = plan(read_experiment(str(tmp_path / "mine.toml")), models=["deq", "mondeq"])
    assert made.labels == ["deq, single", "mondeq, single", "mondeq, multi"]
    assert made.runs[-1].name == "mondeq-multi-seed0"
    assert made.runs[-1].config.model.options["channels"] == (8, 8, 8)


def test_the_example_in_the_docs(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "compare.md").read_text("utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "docs.toml").write_text(example)
    experiment = read_experiment(str(tmp_path / "docs.toml"))
    assert plan(experiment).labels == ["mondeq, single", "mondeq, multi", "deq, single"]
    assert experiment.images == 1000
    assert experiment.measurements == {"fine": {"solver": {"rtol": 1e-5}}}
    for name in experiment_names():
        assert f"| `{name}` |" in text


def test_runs_on_disk_with_other_settings_are_not_taken_for_these(tmp_path):
    made = plan(models=["deq"], folder=tmp_path)
    Run.create(made.run_path(made.runs[0]), made.runs[0].config)
    made.check()
    with pytest.raises(ConfigError, match=r"was made with train\.epochs = 2, now it is 3"):
        plan(models=["deq"], folder=tmp_path, epochs=3).check()


def test_published_figures_are_of_models_and_datasets_that_exist():
    assert set(PUBLISHED) <= set(dataset_names())
    for figures in PUBLISHED.values():
        assert {figure.model for figure in figures} <= {*MODELS, None}
    assert all(f"mondeq-{dataset}" in preset_names() for dataset in PUBLISHED)
