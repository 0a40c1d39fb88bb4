"""homojl datasets"""

from __future__ import annotations

from pathlib import Path

import click


@click.command("datasets")
@click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    help="Folder of datasets. [default: $HOMOJL_DATA or the user's cache]",
)
def command(data_root: Path | None) -> None:
    """List the datasets, and whether their files are here.

    Your own images, by their path: an .npz file with x_train, y_train, x_test, y_test, or a folder that has a folder
    of pictures for each class.
    """
    from homojl.data import dataset_info, dataset_names
    from homojl.data.download import find_file
    from homojl.data.registry import data_root as default_root
    from homojl.own import DATASET_GROUP, registered

    root = data_root or default_root()
    print(f"files are looked for in {root}")
    print(f"{'':<14} {'image':<11} {'classes':>7} {'training':>9} {'test':>7}  files")
    for name in dataset_names():
        info = dataset_info(name)
        folders = [root / folder for folder in info.folders]
        missing = sum(find_file(file, folders) is None for file in info.files)
        state = f"{missing} of {len(info.files)} missing" if missing else "here" if info.files else "embedded"
        shape = " x ".join(str(n) for n in info.input_shape)
        print(f"{name:<14} {shape:<11} {info.n_classes:>7} {info.n_train:>9,} {info.n_test:>7,}  {state}")
        print(f"{'':<14} {info.terms}")
    for name, value in registered(DATASET_GROUP).items():
        print(f"{name:<14} of an installed package, {value}")
