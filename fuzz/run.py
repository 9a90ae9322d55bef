"""Coverage-guided fuzzing: atheris drives the targets of tests/fuzz, keeps what reaches new code, and mutates it.

    pip install -e ".[fuzz,dev,train]"
    python fuzz/run.py TARGET [--seconds 600] [--corpus FOLDER]
    python fuzz/run.py --list

Exit status 0: nothing found. Otherwise the failing example is printed and its input kept as ``crash-*`` in the corpus
folder; ``python fuzz/run.py TARGET --input FILE`` runs it again.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

with atheris.instrument_imports(include=["aucseg"]):
    from tests.datasets.conftest import MINI
    from tests.fuzz import test_files, test_numbers

# Targets whose one argument is the content of a file take the bytes as they are, beginning with an undamaged file.
SEEDS = {
    "cards_with_damaged_bytes": [MINI.encode()],
    "checkpoints": [test_files.weights_file(True), test_files.weights_file(False)],
    "statistics": [test_files.statistics_file().encode()],
}


def targets() -> dict[str, Callable[[bytes], object]]:
    """From the name of each hypothesis test to what runs it on bytes."""
    modules: tuple[ModuleType, ...] = (test_files, test_numbers)
    found = {name: test for module in modules for name, test in vars(module).items() if hasattr(test, "hypothesis")}
    result = {name.removeprefix("test_"): test.hypothesis for name, test in found.items()}
    return {name: t.inner_test if name in SEEDS else t.fuzz_one_input for name, t in result.items()}


def main() -> None:
    """Runs one target until the time is over."""
    known = targets()
    parser = argparse.ArgumentParser(description="coverage-guided fuzzing of one target")
    parser.add_argument("target", nargs="?", choices=sorted(known), metavar="TARGET")
    parser.add_argument("--list", action="store_true", help="show the targets")
    parser.add_argument("--seconds", type=int, default=60, help="how long (default: %(default)s)")
    parser.add_argument("--corpus", type=Path, help="folder that keeps the inputs (default: .fuzz/TARGET)")
    parser.add_argument("--input", type=Path, help="run this input alone")
    args = parser.parse_args()
    if args.list or args.target is None:
        print("\n".join(sorted(known)))
        return
    corpus = args.corpus or ROOT / ".fuzz" / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS.get(args.target, [])):
        (corpus / f"seed-{number}").write_bytes(seed)
    # The peak that libFuzzer compares with its limit begins with that of the process that started this one.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10)
    limits = ["-max_len=4096", f"-max_total_time={args.seconds}", "-timeout=60", f"-rss_limit_mb={peak + 2048}"]
    options = [*limits, f"-artifact_prefix={corpus}/"]
    place = str(args.input) if args.input is not None else str(corpus)
    atheris.Setup([sys.argv[0], *options, place], known[args.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
