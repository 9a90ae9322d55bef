"""What docstrings and pages hold beyond Markdown: formulas and doctests.

A hook of MkDocs. Formulas become MathML: no script, no font and no server is needed to read them. Pages write
`$...$` and `$$...$$`; docstrings write the role and the directive of reStructuredText,
``:math:`...``` and `.. math:: ...`, which `help()` shows well enough.
"""

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

_DIRECTIVE = re.compile(r"^(?P<indent> *)\.\. math::(?P<first>.*)$")
_END = re.compile(r"\$\$([.,;]?)\s*$")


class _InlineMath(InlineProcessor):  # type: ignore[misc]
    def handleMatch(self, m: re.Match[str], data: str) -> Any:  # noqa: N802
        return self.md.htmlStash.store(convert(m.group(1))), m.start(0), m.end(0)


class _BlockMath(Preprocessor):  # type: ignore[misc]
    def run(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        rest = iter(lines)
        line = next(rest, None)
        while line is not None:
            directive = _DIRECTIVE.match(line)
            if directive:
                indent, body = directive["indent"], [directive["first"]]
                line = next(rest, None)
                while line is not None and line.startswith(indent + " ") and line.strip():
                    body.append(line)
                    line = next(rest, None)
                out += self._block(indent, body)
            elif line.strip().startswith("$$"):
                indent = line[: len(line) - len(line.lstrip())]
                body = [line.strip()[2:]]
                while not (end := _END.search(body[-1])):
                    if (line := next(rest, None)) is None:
                        raise ValueError(f"$$ without an end: {body[0]}")
                    body.append(line)
                body[-1] = body[-1][: end.start()] + end[1]  # the sentence's comma belongs to the formula
                out += self._block(indent, body)
                line = next(rest, None)
            else:
                out.append(line)
                line = next(rest, None)
        return out

    def _block(self, indent: str, body: list[str]) -> list[str]:
        formula = convert(" ".join(part.strip() for part in body).strip(), display="block")
        return ["", indent + self.md.htmlStash.store(f'<div class="formula">{formula}</div>'), ""]


class _Doctests(Preprocessor):  # type: ignore[misc]
    """Examples of docstrings become highlighted code; without this `>>>` is a quotation in a quotation."""

    def run(self, lines: list[str]) -> list[str]:
        out: list[str] = []
        in_fence = False
        example: str | None = None  # the indentation of the example that is being read
        for line in [*lines, ""]:
            text = line.lstrip()
            in_fence ^= text.startswith("```")
            if example is not None and not text:
                out.append(example + "```")
                example = None
            elif example is None and not in_fence and text.startswith(">>> "):
                example = line[: len(line) - len(text)]
                out += ["", example + "```pycon"]
            out.append(line)
        return out


class DocstringExtension(Extension):  # type: ignore[misc]
    """Formulas and doctests."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Registers the processors: after fenced code and code spans where what they hold must stay as it is."""
        md.preprocessors.register(_Doctests(md), "doctests", 28)
        md.preprocessors.register(_BlockMath(md), "block_math", 15)
        md.inlinePatterns.register(_InlineMath(r":math:`([^`]+)`", md), "math_role", 200)
        md.inlinePatterns.register(_InlineMath(r"(?<![\w$\\])\$(?=\S)([^$\n]+?)(?<=\S)\$(?![\w$])", md), "dollars", 185)


def on_config(config: Any) -> Any:
    """Adds the extension to those of `mkdocs.yml` (docstrings get it too), and the version to the site's name."""
    package = (Path(config.config_file_path).parent / "src" / "aucseg" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "([^"]+)"', package, re.MULTILINE)
    config.site_name = f"{config.site_name} {version[1]}" if version else config.site_name
    config.markdown_extensions.append(DocstringExtension())
    return config
