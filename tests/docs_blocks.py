"""Runs the code blocks of a Markdown page, in order, as a reader would."""

from __future__ import annotations

import ast
import doctest
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from aucseg import cli

ROOT = Path(__file__).parents[1]
# A few steps stand for the training that a page describes.
SHORT_TRAINING = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2", "--trainer.accelerator", "cpu"]
SHORT_TRAINING += ["--trainer.enable_progress_bar", "false", "--data.num_workers", "0"]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>[^`]*)$")
_SHOWN_ONLY = {"text", "mermaid", "bibtex", "json", "latex"}


@dataclass(frozen=True)
class Block:
    """A fenced code block: its language, its title (a file name), its text and the line of its first line of text."""

    language: str
    title: str | None
    text: str
    line: int


def code_blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), start=1))
    for number, line in lines:
        fence = _FENCE.match(line)
        if not fence:
            continue
        indent = len(fence["indent"])
        body: list[str] = []
        for _, inner in lines:
            if inner.strip() == "```":
                break
            body.append(inner[indent:])
        else:
            raise ValueError(f"{page.name}:{number}: a code block without an end")
        language = fence["info"].split()[0] if fence["info"].split() else ""
        title = re.search(r'title="([^"]+)"', fence["info"])
        yield Block(language, title[1] if title else None, "\n".join(body) + "\n", number + 1)


def _shortened(arguments: list[str]) -> list[str]:
    """A training of two steps instead of one that takes its time."""
    if "--time" in arguments:
        at = arguments.index("--time")
        arguments = arguments[:at] + arguments[at + 2 :]
    return [*arguments, *SHORT_TRAINING]


class PageRunner:
    """Runs the blocks of one page in one namespace, in the current folder.

    `python` is executed, `pycon` compared with what it shows, `console` run as a shell would (`aucseg` commands
    here, others are looked up), `diff` executed as it reads after the change, `yaml` parsed. A title is the name of
    a file that the block becomes. `text` and a few others are only shown.

    Args:
        page: The Markdown file.
        short: Whether `aucseg fit` takes a few steps only.
    """

    def __init__(self, page: Path, *, short: bool = True) -> None:
        self.page = page
        self.short = short
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(self) -> int:
        """Runs all blocks; returns how many were run."""
        count = 0
        for block in code_blocks(self.page):
            if block.title is not None:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(block.text, encoding="utf-8")
            if block.language in _SHOWN_ONLY:
                continue
            run = getattr(self, f"_run_{block.language}", None)
            if run is None:
                raise ValueError(f"{self._place(block)}: language {block.language!r}; ```text is only shown")
            run(block)
            count += 1
        return count

    def _place(self, block: Block, offset: int = 0) -> str:
        return f"{self.page.name}:{block.line + offset}"

    def _run_python(self, block: Block) -> None:
        # Empty lines before it, so that a traceback names the line of the page.
        tree = ast.parse("\n" * (block.line - 1) + block.text, filename=str(self.page))
        exec(compile(tree, str(self.page), "exec"), self.namespace)

    def _run_pycon(self, block: Block) -> None:
        parser, options = doctest.DocTestParser(), doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
        test = parser.get_doctest(block.text, self.namespace, self.page.name, str(self.page), block.line - 1)
        report: list[str] = []
        result = doctest.DocTestRunner(optionflags=options).run(test, out=report.append, clear_globs=False)
        self.namespace.update(test.globs)
        assert not result.failed, "".join(report)

    def _run_diff(self, block: Block) -> None:
        after = [line[1:] for line in block.text.splitlines() if not line.startswith(("-", "@@"))]
        self._run_python(Block("python", None, "\n".join(after), block.line))

    def _run_yaml(self, block: Block) -> None:
        yaml.safe_load(block.text)

    def _run_console(self, block: Block) -> None:
        for offset, command in _commands(block.text):
            self._run_command(command, self._place(block, offset))

    def _run_command(self, command: str, place: str) -> None:
        self._run_words(shlex.split(command, comments=True), place)

    def _run_words(self, words: list[str], place: str) -> None:
        match words:
            case ["aucseg", "fit", *_]:
                self._run_aucseg(_shortened(words[1:]) if self.short else words[1:], place)
            case ["aucseg", "compare", *_] if self.short:  # trains in processes of its own; it has tests of its own
                assert "compare" in cli._COMMANDS
            case ["aucseg", "demo", *_]:  # trains for minutes; it has a test of its own
                assert "demo" in cli._COMMANDS
            case ["aucseg", *arguments]:
                self._run_aucseg(arguments, place)
            case ["make", target]:
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{place}: no {target}"
            case ["pip", "install", *packages]:
                self._check_extras(packages, place)
            case ["python", script, *_] if script.startswith(("examples/", "tools/")):
                assert (ROOT / script).is_file(), f"{place}: no {script}"
            case ["python", "-m", module, *_] if module.startswith("benchmarks."):
                assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{place}: no {module}"
            case ["git" | "cd" | "export", *_]:
                pass
            case [assignment, *rest] if rest and re.fullmatch(r"[A-Z_]+=\S*", assignment):
                with _environment(*assignment.split("=", 1)):
                    self._run_words(rest, place)
            case _:
                raise ValueError(f"{place}: cannot test {shlex.join(words)!r}; put it into a ```text block")

    def _run_aucseg(self, arguments: list[str], place: str) -> None:
        status = cli.main(arguments)
        assert status == 0, f"{place}: aucseg {' '.join(arguments)} ended with status {status}"

    def _check_extras(self, packages: list[str], place: str) -> None:
        project = (ROOT / "pyproject.toml").read_text()
        for package in packages:
            match = re.fullmatch(r"(?:aucseg|\.)\[([\w,]+)\]", package)
            for extra in match[1].split(",") if match else []:
                assert re.search(rf"^{extra} = \[", project, re.MULTILINE), f"{place}: no extra {extra!r}"


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable, as it would stand before a command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        if name == "PYTHONPATH":
            patch.syspath_prepend(Path(value).resolve())
        yield


def _commands(text: str) -> Iterator[tuple[int, str]]:
    # A prompt marks commands among output; without one every line is a command.
    prompted = bool(re.search(r"^\$ ", text, re.MULTILINE))
    pending, start = "", 0
    for offset, line in enumerate(text.splitlines()):
        if not pending:
            start = offset
            if prompted and not line.startswith("$ "):
                continue
            line = line.removeprefix("$ ")
        pending += line.removesuffix("\\")
        if line.endswith("\\"):
            continue
        if pending.strip() and not pending.lstrip().startswith("#"):
            yield start, pending
        pending = ""
