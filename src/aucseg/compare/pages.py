"""The HTML report of one seed or fold of a comparison, in a process of its own, as it loads trained models."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def write_page(
    page: Path, runs: Mapping[str, Path], baseline: str, root: str | None, environment: Mapping[str, str]
) -> bool:
    """Writes a report of some runs, and says what is wrong where it cannot.

    Args:
        page: The HTML file.
        runs: Folder of each run by its title, in their order.
        baseline: Title of the run to compare with; the first run's where there is none of that title.
        root: Folder of the data, or None for that of the runs.
        environment: Variables for the process, beside this one's.

    Returns:
        Whether it is there.
    """
    titles = list(runs)
    baseline = baseline if baseline in runs else titles[0]
    command = [sys.executable, "-m", "aucseg", "report", *map(str, runs.values()), "--out", str(page)]
    command += ["--titles", *titles, "--baseline", baseline]
    # Methods are listed with the one in question at the end.
    command += [] if titles[-1] == baseline else ["--method", titles[-1]]
    command += [] if root is None else ["--root", root]
    # Our own command, a list of arguments without a shell.
    done = subprocess.run(  # nosec B603
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        print(f"{page.name}: {done.stderr.strip()[-500:]}", file=sys.stderr)
    return page.is_file()
