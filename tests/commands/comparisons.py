"""What tests of `aucseg compare` share."""

import csv
from pathlib import Path

import yaml


def change_config(path: Path, section: str, **values: object) -> None:
    """Sets values in a section of a configuration file."""
    config = yaml.safe_load(path.read_text())
    config[section].update(values)
    path.write_text(yaml.safe_dump(config))


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The runs that a comparison has written."""
    return list(csv.DictReader((folder / "runs.csv").read_text().splitlines()))
