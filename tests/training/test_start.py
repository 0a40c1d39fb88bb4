"""`hj.train`: anything with parameters, on anything with batches, through the loop of `homojl train`."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import homojl as hj
from homojl.training import load_run
from homojl.training.checkpoint import read_checkpoint
from tests.command import without_figures

X = torch.randn(160, 3, generator=torch.Generator().manual_seed(0))
Y = 2 * X[:, :1] + X[:, 1:2].sin()
LABELS = (X[:, 0] > 0).long()
CONSTANT = {"optim": {"schedule": "constant"}}


@pytest.fixture(autouse=True)
def _one_thread(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    with without_figures():
        yield
    torch.set_num_threads(before)


def shuffled(y) -> DataLoader:
    return DataLoader(TensorDataset(X[:128], y[:128]), batch_size=32, shuffle=True)


def held_out(y) -> list:
    return [(X[128:144], y[128:144]), (X[144:], y[144:])]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, z, x):
        return torch.tanh(self.linear(z) + x)


class Net(nn.Module):
    def __init__(self, out: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, out)
        self.middle = hj.nn.Equilibrium(Block(), hj.Anderson(rtol=1e-3), jacobian_weight=0.1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


def net(out: int = 1) -> Net:
    torch.manual_seed(1)
    return Net(out)


def mean_absolute_error(outputs, targets):
    return (outputs - targets).abs().mean()


def losses(run) -> list[tuple[float, float]]:
    return [(row["train_loss"], row["val_loss"]) for row in run.metrics]


def test_a_regression_with_a_metric_of_ones_own(capsys):
    run = hj.train(
        net(), shuffled(Y), validation=held_out(Y), test=held_out(Y), loss="mse", metric=mean_absolute_error,
        select="lowest metric", epochs=3, lr=0.02, out="r",
    )  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "r"
    assert "test loss" in lines[-2]
    assert max(map(len, lines)) <= 80
    rows = run.metrics
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert all(math.isnan(row["val_accuracy"]) and row["nfe_forward"] > 1 for row in rows)
    best = min(rows, key=lambda row: row["val_metric"])
    assert run.test["checkpoint"] == f"best, epoch {best['epoch']}"
    outputs = run.predict(X[128:]).outputs
    torch.testing.assert_close(run.test["metric"], mean_absolute_error(outputs, Y[128:]).item())
    torch.testing.assert_close(run.test["loss"], nn.functional.mse_loss(outputs, Y[128:]).item())
    torch.testing.assert_close(best["val_metric"], run.test["metric"])
    assert run.config.train.metric == "<mean_absolute_error>"
    report = (run.path / "report.md").read_text("utf-8")
    assert "| Test metric | " in report
    assert "the lowest" in report
    from homojl.results.facts import facts
    from homojl.results.wording import number

    shown = {fact.label: (fact.value, fact.detail) for fact in facts(run.record())}
    assert shown["Test metric"][0] == number(run.test["metric"])
    assert shown["Loss"][0] == number(run.test["loss"])
    assert shown["Validation metric"][0] == number(best["val_metric"])
    assert shown["Validation metric"][1] == f"the lowest, after epoch {best['epoch']} of 3"


def test_classes_give_what_images_give(tmp_path):
    run = hj.train(
        net(2), shuffled(LABELS), validation=held_out(LABELS), test=held_out(LABELS), epochs=2, lr=0.02,
        class_names=("no", "yes"), out="r", quiet=True,
    )  # fmt: skip
    assert run.metrics[-1]["val_accuracy"] > 0.6
    answers = run.predict(X)
    assert set(answers.labels) <= {"no", "yes"}
    torch.testing.assert_close(answers.probabilities.sum(dim=1), torch.ones(160))
    assert answers.top(1)[0][0][0] == answers.labels[0]
    again = load_run("r", model=net(2))
    torch.testing.assert_close(again.predict(X).outputs, answers.outputs)
    with pytest.raises(hj.ConfigError, match="give it again"):
        _ = load_run("r").model
    with pytest.raises(hj.ConfigError, match="got <Linear>"):
        load_run("r", model=nn.Linear(2, 2))
    assert (run.path / "results.h5").exists()
    assert "yes" in (run.path / "report.md").read_text("utf-8")
    from homojl.training.reporting import gather_run

    assert gather_run(load_run("r"), "r").record.parameters == sum(p.numel() for p in net(2).parameters())


def test_a_run_goes_on_to_the_same_end_and_for_longer():
    options = {"validation": held_out(Y), "loss": "mse", "lr": 0.02, "settings": CONSTANT, "quiet": True}
    whole = hj.train(net(), shuffled(Y), epochs=3, out="a", resume=True, **options)

    class Dies(hj.Callback):
        def step(self, step, numbers):
            if step == 6:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hj.train(net(), shuffled(Y), epochs=2, out="b", callbacks=[Dies()], **options)
    part = hj.train(net(), shuffled(Y), epochs=3, out="b", resume=True, **options)
    assert losses(part) == losses(whole)
    a, b = (read_checkpoint(run.last_checkpoint)[0] for run in (whole, part))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(hj.ConfigError, match=r"train\.loss"):
        hj.train(net(), shuffled(Y), validation=held_out(Y), loss="l1", out="b", resume=True)


def test_any_iterable_of_any_batches():
    def endless():
        while True:
            yield {"a": X[:32], "b": X[:32]}, Y[:32]

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 1)

        def forward(self, parts):
            return self.linear(torch.cat([parts["a"], parts["b"]], dim=1))

    run = hj.train(Two(), endless(), loss="mse", steps_per_epoch=3, epochs=2, out="r", quiet=True)
    assert [row["step"] for row in run.metrics] == [3, 6]
    assert run.predict({"a": X, "b": X}).outputs.shape == (160, 1)
    assert read_checkpoint(run.best_checkpoint)[1]["position"]["step"] == 6, "without a validation the last"


def test_a_loss_of_ones_own_on_images_and_models_by_name():
    def smoothed(logits, labels):
        return nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)

    settings = {"model": {"channels": 4}, "train": {"batch_size": 256}}
    run = hj.train("deq", "digits", loss=smoothed, metric="accuracy", epochs=1, settings=settings, out="r", quiet=True)
    assert run.config.train.loss == "<smoothed>"
    assert run.config.train.select == "highest accuracy"
    assert 0 < run.metrics[0]["val_accuracy"] < 1
    assert 2 < run.metrics[0]["val_loss"] < 3
    data = hj.load_dataset("digits")
    torch.testing.assert_close(run.predict(data.x_test[:4].numpy()).outputs, run.predict(data.x_test[:4]).outputs)
    digit = data.x_test[:1]
    assert len(run.predict(digit[0]).labels) == 1
    module = hj.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, epochs=1, out="s", quiet=True)
    assert module.config.data.dataset == "<digits>"
    assert (module.path / "results.h5").exists()


@pytest.mark.parametrize(
    ("model", "data", "options", "said"),
    [
        ("deq", [(X, Y)], {}, "made for images"),
        (net(), iter([(X, Y)]), {"loss": "mse"}, "steps_per_epoch"),
        (net(), [], {"loss": "mse"}, "no batch"),
        (net(), [X], {"loss": "mse"}, "pair"),
        (net(), [(X, Y)], {"loss": "msee"}, "did you mean 'mse'"),
        (net(), [(X, Y)], {"loss": "mse", "select": "highest accuracy"}, "train.metric"),
        (net(), [(X, Y)], {"loss": lambda o, t: (o - t) ** 2}, "one number"),
        (net(), "digits", {"validation": [(X, Y)]}, "has its own"),
        (nn.Flatten(), [(X, Y)], {"loss": "mse"}, "no parameters"),
        (net(), [(X, LABELS)], {"settings": {"optim": {"lrr": 1}}}, "did you mean 'lr'"),
    ],
)
def test_what_cannot_be_is_refused(model, data, options, said):
    with pytest.raises(hj.HomoJLError, match=said):
        hj.train(model, data, epochs=1, out="r", quiet=True, **options)


def test_data_that_end_early_are_an_error():
    with pytest.raises(hj.DataError, match="ended after 2 batches, expected 3"):
        hj.train(net(), [(X, Y)] * 2, loss="mse", steps_per_epoch=3, epochs=1, out="r", quiet=True)


def test_predictions_of_pictures(tmp_path):
    from PIL import Image

    settings = {"model": {"channels": 4}, "train": {"batch_size": 256}}
    run = hj.train("deq", "digits", epochs=1, settings=settings, out="r", quiet=True)
    digit = hj.load_dataset("digits").x_test[0]
    picture = Image.fromarray(digit[0].numpy())
    picture.save("same.png")
    picture.resize((64, 64), Image.Resampling.NEAREST).convert("RGB").save("large.png")
    answers = run.predict(["same.png", "large.png"])
    torch.testing.assert_close(answers.outputs[:1], run.predict(digit).outputs)
    assert answers.outputs.shape == (2, 10)
    assert np.isfinite(answers.outputs.numpy()).all()
    with pytest.raises(hj.DataError, match="no such file"):
        run.predict("none.png")
    with pytest.raises(hj.ConfigError, match="uint8"):
        run.predict(torch.zeros(2, 1, 8, 8))
