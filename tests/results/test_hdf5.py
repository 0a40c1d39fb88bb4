"""The HDF5 results file: exact both ways, described, whole or not there, and refused when damaged."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import math
import os
import re
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as arrays

from homojl.errors import ConfigError, DataError
from homojl.results.hdf5 import ENTRIES, SCHEMA, read_results, write_results
from homojl.results.records import METRICS, Evaluation, RunRecord, Trajectories
from homojl.results.storage import DIMENSION_ONLY
from tests.results.netcdf import assert_netcdf

DOCS = Path(__file__).parents[2] / "docs" / "hdf5.md"
RUN_DOCS = DOCS.read_text("utf-8").partition("# The comparison file")[0]


def assert_same(a: object, b: object) -> None:
    """Equal in type, value, dtype and every bit of every array; NaN equals NaN."""
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()
    elif dataclasses.is_dataclass(a):
        assert type(a) is type(b)
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert type(a) is type(b)
        assert a == b or (math.isnan(a) and math.isnan(b))


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LABEL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def tree(leaves: st.SearchStrategy) -> st.SearchStrategy:
    """A nested table of such values."""
    values = st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )
    return st.dictionaries(TEXT, values, max_size=4)


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    n, k, samples = draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    times, state = draw(st.integers(1, 4)), tuple(draw(st.lists(st.integers(1, 3), max_size=3)))

    def ints(size: int, low: int = 0, high: int = 2**40) -> np.ndarray:
        return draw(arrays.arrays(np.int64, size, elements=st.integers(low, high)))

    def floats(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        return draw(arrays.arrays(dtype, shape))

    columns = {
        name: draw(st.lists(kind, min_size=3, max_size=3))
        for name in ["epoch", *draw(st.lists(st.sampled_from(sorted(METRICS)), unique=True))]
        for kind in [draw(st.sampled_from([INT64, st.floats()]))]
    }
    evaluation = Evaluation(
        split="test",
        index=ints(n),
        labels=ints(n, 0, k - 1),
        predictions=ints(n, 0, k - 1),
        logits=floats("float32", (n, k)),
        loss=draw(st.floats()),
        accuracy=draw(FLOAT),
        nfe=ints(n),
        seconds=draw(FLOAT),
        solver=draw(st.dictionaries(LABEL.filter(bool), st.booleans() | INT64 | FLOAT | LABEL | st.none(), max_size=4)),
        checkpoint=draw(LABEL),
        status=draw(st.dictionaries(LABEL.filter(bool), st.integers(0, 2**40), max_size=3)),
    )
    trajectories = Trajectories(
        s=floats("float64", (times,)),
        z=floats("float32", (samples, times, *state)),
        index=ints(samples),
        labels=ints(samples, 0, k - 1),
    )
    epochs = draw(st.integers(0, 3))
    colour = draw(st.sampled_from([(), (3,)]))
    images = draw(arrays.arrays(np.uint8, (samples, 4, 5, *colour)))
    return RunRecord(
        config=draw(st.dictionaries(TEXT, tree(st.booleans() | INT64 | FLOAT | TEXT), max_size=3)),
        environment=draw(tree(st.booleans() | INT64 | FINITE | TEXT)),
        metrics=[{name: column[i] for name, column in columns.items()} for i in range(epochs)],
        class_names=tuple(draw(st.lists(LABEL, min_size=k, max_size=k))),
        parameters=draw(st.integers(0, 2**40)),
        evaluation=draw(st.sampled_from([evaluation, None])),
        initial_point=draw(st.sampled_from([floats("float32", (3,)), None])),
        trajectories=draw(st.sampled_from([trajectories, None])),
        images=draw(st.sampled_from([images, None])),
    )


def normalised(record: RunRecord) -> RunRecord:
    """A column that has both is stored as floats; all else comes back as it is."""
    metrics = [dict(row) for row in record.metrics]
    for name in metrics[0] if metrics else ():
        if any(isinstance(row[name], float) for row in metrics):
            for row in metrics:
                row[name] = float(row[name])
    return dataclasses.replace(record, metrics=metrics)


@settings(max_examples=60, deadline=None)
@given(record=records())
def test_round_trip_is_exact(record: RunRecord, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("hdf5") / "results.h5"
    write_results(path, record)
    assert_same(read_results(path), normalised(record))


def test_round_trip_of_a_whole_run(record: RunRecord, bare: RunRecord, tmp_path: Path):
    for number, original in enumerate((record, bare)):
        write_results(tmp_path / f"{number}.h5", original)
        assert_same(read_results(tmp_path / f"{number}.h5"), original)


def test_a_metric_that_was_not_measured_is_nan(record: RunRecord, tmp_path: Path):
    rows = [dict(row) for row in record.metrics]
    del rows[0]["val_loss"]
    rows[1]["val_loss"] = None
    for row in rows:
        row["nfe_val"] = None
    write_results(tmp_path / "r.h5", dataclasses.replace(record, metrics=rows))
    back = read_results(tmp_path / "r.h5").metrics
    assert np.isnan([row["val_loss"] for row in back]).tolist() == [True, True] + [False] * (len(rows) - 2)
    assert all("nfe_val" not in row for row in back)


def datasets_of(path: Path) -> dict[str, dict]:
    """The attributes of every dataset of a file, by its name; dimensions without coordinates left out."""
    found = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not item.attrs.get("NAME", b"").startswith(DIMENSION_ONLY.encode()):
            found[f"/{name}"] = dict(item.attrs)

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


def test_every_dataset_has_a_unit_and_a_description_and_is_in_the_docs(record: RunRecord, tmp_path: Path):
    write_results(tmp_path / "r.h5", record)
    made = {name: (a["unit"], a["description"]) for name, a in datasets_of(tmp_path / "r.h5").items()}
    assert all(unit and description for unit, description in made.values())
    rows = re.findall(r"^\| `(/\S+)` \| \(.*?\) \| .*? \| (.*?) \| (.*) \|$", RUN_DOCS, re.M)
    listed = {name: (unit, re.sub(r"\\(.)", r"\1", text)) for name, unit, text in rows}
    assert listed == made


def test_docs_show_the_schema_as_it_is():
    # After a change: paste what `print(SCHEMA.describe())` of homojl.results.hdf5 prints.
    assert SCHEMA.describe() in DOCS.read_text("utf-8")


def test_groups_are_described_and_dimensions_have_scales(record: RunRecord, tmp_path: Path):
    write_results(tmp_path / "r.h5", record)
    with h5py.File(tmp_path / "r.h5") as file:
        groups = [file, *(item for item in file.values() if isinstance(item, h5py.Group))]
        assert all(group.attrs["description"] for group in groups)
        assert {g.name for g in groups} == {"/", "/train", "/solver", "/cost", "/test", "/trajectories"}
        assert (file.attrs["schema"], file.attrs["schema_version"]) == ("homojl-results", 1)
        assert (file.attrs["model"], file.attrs["dataset"], file.attrs["schema_version"]) == (
            "homoode",
            "svhn",
            1,
        )
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", file.attrs["created"])
        for name, metric in METRICS.items():
            data = file[f"{metric.group}/{name}"]
            assert data.dims[0].label == "epoch"
            assert name == "epoch" or data.dims[0]["epoch"] == file[f"{metric.group}/epoch"]
            assert (file[f"{metric.group}/epoch"][:] == file["train/epoch"][:]).all()
        z = file["trajectories/z"]
        assert [dim.label for dim in z.dims] == ["sample", "s", "channel", "height", "width"]
        assert z.dims[1]["s"] == file["trajectories/s"]
        assert tomllib.loads(file["config"].asstr()[()]) == record.config
        assert json.loads(file["environment"].asstr()[()]) == record.environment
        assert file["test"].attrs["solver.backend"] == "pytorch"
        assert file["test"].attrs["status.SUCCESS"] == 9


def test_dimensions_are_those_of_netcdf(record: RunRecord, bare: RunRecord, tmp_path: Path):
    flat = dataclasses.replace(record.trajectories, z=record.trajectories.z.reshape(8, 17, 24, 4))
    others = (dataclasses.replace(record, metrics=[]), dataclasses.replace(record, trajectories=flat), bare)
    for number, original in enumerate((record, *others)):
        write_results(tmp_path / f"{number}.h5", original)
        assert_netcdf(tmp_path / f"{number}.h5")
    with h5py.File(tmp_path / "0.h5") as file:
        assert file["images"].dims[1][0] == file["height"]
        assert file["trajectories/z"].dims[3][0] == file["trajectories/height"], "of another size"


def test_a_file_without_dimension_scales_is_read(record: RunRecord, tmp_path: Path):
    path = tmp_path / "r.h5"  # as homojl wrote it first: schema 1, epochs in /train alone
    write_results(path, record)
    with h5py.File(path, "r+") as file:
        for name in ("solver/epoch", "cost/epoch", "sample", "class", "image", "height", "width", "channel"):
            del file[name]
    path.write_bytes(signed(path.read_bytes()[512:]))
    assert_same(read_results(path), record)


def test_only_big_arrays_are_compressed(make, tmp_path: Path):
    record = make(images=3000)
    write_results(tmp_path / "r.h5", record)
    with h5py.File(tmp_path / "r.h5") as file:
        compressed = {name for name in ENTRIES if file[name].compression is not None}
        assert compressed == {"/test/logits"}
        assert file["test/logits"].shuffle


def test_optional_parts_are_absent(bare: RunRecord, tmp_path: Path):
    write_results(tmp_path / "r.h5", dataclasses.replace(bare, metrics=[]))
    assert set(datasets_of(tmp_path / "r.h5")) == {"/config", "/environment", "/test/class_names"}


def failing_sync(number: int):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("existing", [b"what was there", None])
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failing_write_leaves_all_as_it_was(record, tmp_path, monkeypatch, existing, where):
    path = tmp_path / "results.h5"
    if existing is not None:
        path.write_bytes(existing)
    monkeypatch.setattr(os, where, lambda *_: failing_sync(0))
    with pytest.raises(DataError, match="No space left on device") as raised:
        write_results(path, record)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == ([] if existing is None else [path])
    assert existing is None or path.read_bytes() == existing


def test_an_interrupted_write_leaves_all_as_it_was(record, tmp_path, monkeypatch):
    path = tmp_path / "results.h5"
    path.write_bytes(b"what was there")

    def interrupted(number: int):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(path, record)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"what was there"]


@pytest.mark.parametrize("place", ["missing/r.h5", ".", "file/r.h5"])
def test_a_place_that_cannot_be_written(record, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write"):
        write_results(tmp_path / place, record)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_contradictory_record_is_refused_before_writing(record, tmp_path):
    answers = record.evaluation
    replace = dataclasses.replace
    for message, change in [
        ("TOML", {"config": {"a": None}}),
        ("JSON", {"environment": {"a": float("nan")}}),
        ("unknown metric 'val_los'; did you mean 'val_loss'", {"metrics": [{"epoch": 1, "val_los": 1.0}]}),
        ("no 'epoch'", {"metrics": [{"val_loss": 1.0}]}),
        ("/train/step", {"metrics": [{"epoch": 1, "step": "two"}]}),
        ("/test/logits has shape (900, 10), but elsewhere class has size 2", {"class_names": ("a", "b")}),
        ("NUL", {"class_names": tuple("abcdefghi\0")}),
        ("image has size 900", {"evaluation": replace(answers, labels=answers.labels[1:])}),
        ("outside 0 to 9", {"evaluation": replace(answers, predictions=answers.predictions + 1)}),
        ("/test/nfe is not of type int64", {"evaluation": replace(answers, nfe=answers.nfe + 0.5)}),
        ("'val'", {"evaluation": replace(answers, split="val")}),
        ("solver setting 'a'", {"evaluation": replace(answers, solver={"a": [1]})}),
        ("/initial_point has shape (2, 2)", {"initial_point": np.zeros((2, 2), "float32")}),
        ("sample has size 7", {"images": record.images[1:]}),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            write_results(tmp_path / "r.h5", replace(record, **change))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def content(bare: RunRecord, record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a good file."""
    path = tmp_path_factory.mktemp("good") / "r.h5"
    write_results(path, dataclasses.replace(record, trajectories=None, images=None))
    return path.read_bytes()


def assert_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_results(path)
    assert str(raised.value).startswith(str(path))
    assert "\n" not in str(raised.value)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_truncated_file_is_refused(content, tmp_path_factory, data):
    path = tmp_path_factory.mktemp("short") / "r.h5"
    assert_refused(path, content[: data.draw(st.integers(0, len(content) - 1))])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_file_with_a_changed_byte_is_refused(content, tmp_path_factory, data):
    place, flip = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(1, 255))
    damaged = bytearray(content)
    damaged[place] ^= flip
    assert_refused(tmp_path_factory.mktemp("flip") / "r.h5", bytes(damaged))


@settings(max_examples=40, deadline=None)
@given(noise=st.binary(max_size=2000))
def test_noise_is_refused(content, tmp_path_factory, noise):
    folder = tmp_path_factory.mktemp("noise")
    assert_refused(folder / "a.h5", noise)
    assert_refused(folder / "b.h5", signed(noise))  # even under a right checksum


def signed(body: bytes) -> bytes:
    """Bytes under the head line that `write_results` would give them."""
    return f"homojl-results sha256:{hashlib.sha256(body).hexdigest()}\n".encode().ljust(512, b"\0") + body


def test_a_foreign_file_is_refused(record, tmp_path):
    path = tmp_path / "r.h5"
    with h5py.File(path, "w") as file:
        file["loss"] = [1.0]
    with pytest.raises(DataError, match="not a results file of homojl"):
        read_results(path)
    with pytest.raises(DataError, match=r"missing\.h5: No such file"):
        read_results(tmp_path / "missing.h5")
    with pytest.raises(DataError, match="directory"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.modify("schema_version", 2), "schema homojl-results 2; this homojl reads"),
        (lambda file: file.attrs.modify("schema", "other"), "schema other 1"),
        (lambda file: file.__delitem__("config"), "it lacks the configuration"),
        (lambda file: file.__delitem__("test/logits"), "/test/logits"),
        (lambda file: file.__delitem__("train/epoch"), "epoch"),
        (lambda file: file["test"].attrs.__delitem__("accuracy"), "accuracy"),
        (lambda file: file["test/labels"].write_direct(np.full(900, 10)), "outside 0 to 9"),
        (lambda file: file.move("test/nfe", "nfe") or file.create_group("test/nfe"), "/test/nfe is no dataset"),
    ],
)
def test_a_whole_file_of_another_form_is_refused(record, tmp_path, change, message):
    path = tmp_path / "r.h5"
    write_results(path, record)
    with h5py.File(path, "r+") as file:
        change(file)
    path.write_bytes(signed(path.read_bytes()[512:]))
    with pytest.raises(DataError, match=re.escape(message)) as raised:
        read_results(path)
    assert "\n" not in str(raised.value)
