"""A plugin of pytest, `-p benchmarks.on_gpu.outcomes`: writes the outcome of each test as it comes, one JSON a line.

The file is named by the environment variable `OUTCOMES_FILE`; its first line holds the number of tests. Tests whose
names begin with one of those in `TESTS_FIRST` (separated by commas) come first, in that order.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FILE_VARIABLE, FIRST_VARIABLE = "OUTCOMES_FILE", "TESTS_FIRST"


def _write(record: dict[str, Any]) -> None:
    with Path(os.environ[FILE_VARIABLE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Brings the most telling tests to the front."""
    first = os.environ.get(FIRST_VARIABLE, "").split(",")

    def rank(item: pytest.Item) -> int:
        return next((i for i, name in enumerate(first) if name and item.nodeid.startswith(name)), len(first))

    items.sort(key=rank)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Writes how many tests there are."""
    _write({"tests": len(session.items)})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Writes a test that passed, failed or was skipped; a setup that failed is a test that failed."""
    if report.when == "call" or not report.passed:
        crash = getattr(report.longrepr, "reprcrash", None)
        reason = "" if report.passed else crash.message if crash is not None else str(report.longrepr)
        _write({"test": report.nodeid, "outcome": report.outcome, "reason": reason})
