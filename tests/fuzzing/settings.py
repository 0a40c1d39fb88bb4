"""Hostile configurations, assignments, experiments and manifests."""

from __future__ import annotations

from tests.fuzzing.payloads import Spoil, linked, pickled, pipe, replaced, text

DEEP = {
    "lists": "x = " + "[" * 100_000,
    "tables": "x = " + "{a = " * 20_000,
    "closed lists": "x = " + "[" * 150 + "]" * 150,
    "a long key": "[" + ".".join("a" * 20_000) + "]\nx = 1",
    "long keys": "\n".join(f"[{'.'.join('a' * 150)}.b{i}]" for i in range(400)),
}
VALUES = (
    *("nan", "inf", "-inf", "1e999", "-1", "0", "1e-320", "1979-05-27", "1979-05-27T07:32:00Z", "''", "[]", "{}"),
    *("[[[]]]", "true", "[1, 'a']", "9" * 30, "-" + "9" * 30, "9" * 5000, "0x" + "f" * 5000, "2147483648", "[1e999]"),
    *(r'"a\u0000b"', r'"\u001b[2J\u0007"', r'"a\nb\rc"', '"' + "a" * 5000 + '"', r'"\U0010ffff"', "'~nobody-has-it/x'"),
    *("'/dev/zero'", "'../../../../etc/passwd'", "'" + "x/" * 3000 + "'", "'" + "y" * 300 + ".npz'", "[" * 2000),
)
"""TOML values that settings do not expect."""

SETTINGS = (
    *("model.name", "model.channels", "model.dropout", "model.init", "solver.algorithm", "solver.rtol"),
    *("solver.first_step", "solver.memory", "solver.step_size", "solver.max_steps", "solver.adjoint", "data.dataset"),
    *("data.root", "data.val_fraction", "data.pad", "optim.lr", "optim.milestones", "train.epochs", "train.seconds"),
    *("train.seed", "train.threads", "train.device", "train.batch_size", "initial_point.every", "no.such", "model.x"),
)

CONFIG: dict[str, Spoil] = {
    **{name: text(content) for name, content in DEEP.items()},
    "pickle": pickled,
    "not UTF-8": lambda path, _: path.write_bytes(b"[optim]\nlr = '\xff'"),
    "surrogate": text('[data]\nroot = "\udcff"'),
    "no section": text("model = 3"),
    "list of sections": text("[[model]]\nname = 'deq'"),
    "control characters in a key": text('["\\u001b[2J\\n"]\nx = 1'),
    "endless": linked("", "/dev/zero"),
    "large": lambda path, _: path.write_bytes(b"# \n" * 2**20),
    "wide model": text("[model]\nchannels = 2147483647"),
    "long": text("[data]\ndataset = '" + "x" * 2**19 + "'"),
}
ASSIGNMENT: dict[str, Spoil] = {
    f"{key} = {value[:24]} ({len(value)})": text(f"{key}={value}") for key in SETTINGS for value in VALUES
} | {name: text(content.replace("x", "a.b", 1)) for name, content in DEEP.items()}
ASSIGNMENT |= {
    "more lines": text("optim.lr=1\n[model]\nname='x'"),
    "surrogate": lambda path, _: path.write_bytes(b"data.root=\xff\xfe"),
    "nothing": text(""),
    "dots": text("." * 70_000),
}
EXPERIMENT: dict[str, Spoil] = {
    **{name: text(content) for name, content in DEEP.items()},
    "date among measurements": text("[measurements.a.solver]\nrtol = 1979-05-27"),
    "wrong measurement": text("[measurements.a.solver]\nalgorithm = 'tsti5'"),
    "measurement without a table": text("[measurements]\na = 3"),
    "batch of measurements": text("[measurements.a.train]\neval_batch_size = -3"),
    "variation without a table": text("[variations]\na = 3"),
    "section without a table": text("[variations.a]\nsolver = 3"),
    "x of no setting": text("x = 'a.b.c'"),
    "x": text("x = 'a\\u0000'".replace("'", '"')),
    "no models": text("models = []"),
    "models of no name": text("models = [3]"),
    "images": text("images = 99999999999999999999"),
}
MANIFEST: dict[str, Spoil] = {
    name: replaced("Manifest.toml", content)
    for name, content in {
        "no list": b"[deps]\nZeroPaths = 3\n",
        "empty list": b"[deps]\nZeroPaths = []\nPythonCall = {}\n",
        "no table": b"deps = 3",
        "version": b"[[deps.ZeroPaths]]\nversion = [1]\n[[deps.PythonCall]]\nversion = 1979-05-27\n",
        "deep": DEEP["lists"].encode(),
        "binary": b"\xff\xfe\0",
    }.items()
} | {"pipe": pipe("Manifest.toml"), "endless": linked("Manifest.toml", "/dev/zero")}
