"""Documentation that runs: every block of every page, as a reader would run it, and the site itself."""

import re
from pathlib import Path

import pytest
import yaml

import aucseg
from tests.conftest import write_tiny_dataset
from tests.docs_blocks import ROOT, PageRunner, code_blocks
from tests.small_runs import TINY_RUN

DOCS = ROOT / "docs"
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")})
# Pages whose commands train and evaluate for more than a few seconds.
SLOW = {"README.md", "getting-started.md", "inference.md", "recipes.md"}

# Libraries that pages use warn; our own code is tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore")


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT))


def with_marks(page: Path) -> object:
    return pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if page.name in SLOW else [])


@pytest.mark.parametrize("page", [with_marks(page) for page in PAGES if any(code_blocks(page))])
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # What a reader has: a folder of images and masks, a few photos, a configuration.
    card = write_tiny_dataset(tmp_path / "my_data")
    card.rename(tmp_path / "my_card.yaml")
    (tmp_path / "photos").symlink_to(tmp_path / "my_data" / "images" / "val")
    run = {**TINY_RUN, "data": {**TINY_RUN["data"], "card": "my_card.yaml", "root": "my_data"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    PageRunner(page).run()


def test_every_picture_has_a_text() -> None:
    for page in PAGES:
        for text, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            assert len(text) >= 10, f"{page.name}: say what {target} shows"


def anchors(page: Path) -> set[str]:
    """What a link may point to in a page: its headings, as mkdocs and GitHub name them."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


def broken_links(page: Path) -> list[str]:
    """Links of a page to files or headings that do not exist; those to other servers are not followed."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        name, _, anchor = target.partition("#")
        if "://" in name or name.startswith("mailto:"):
            continue
        other = (page.parent / name).resolve() if name else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    return broken


LINKED = sorted(
    {*PAGES, *ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", ROOT / "benchmarks" / "evidence" / "README.md"}
)


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in LINKED])
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "b.md").write_text("# Large data, long runs\n\n```text\n# not a heading\n```\n")
    page = tmp_path / "a.md"
    links = "[1](b.md) [2](b.md#large-data-long-runs) [3](#a-page) [4](https://example.org/none) `[5](none.md)`"
    page.write_text(f"# A page\n\n{links}\n[6](c.md), [7](b.md#not-a-heading), ![8](none.png)\n")
    assert broken_links(page) == ["c.md", "b.md#not-a-heading", "none.png"]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert page.relative_to(DOCS).as_posix() in navigation, f"mkdocs.yml does not list {page.name}"


def test_every_public_name_is_in_the_reference() -> None:
    listed = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    names = set(re.findall(r"^::: (?:\w+\.)+(\w+)$", listed, re.MULTILINE))
    assert set(aucseg.__all__) - {"__version__"} <= names


def run_page(tmp_path: Path, text: str) -> int:
    page = tmp_path / "page.md"
    page.write_text(text)
    return PageRunner(page).run()


def test_blocks_share_names_and_titles_become_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = """
```python
number = 2
```

1. In a list:

    ```diff
    -number = number + 1
    +number = number + 2
    ```

```yaml title="a/b.yaml"
key: 1
```

```pycon
>>> from pathlib import Path
>>> number, Path("a/b.yaml").read_text()
(4, 'key: 1\\n')
```

```text
anything
```

```console
$ aucseg stats freedoom_lt \\
    --split val --no-cache --json stats.json
output
$ make lint  # comment
```
"""
    assert run_page(tmp_path, text) == 5
    assert (tmp_path / "stats.json").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\nx = 1\ny = x / 0\n```", "division by zero"),
        ("```pycon\n>>> 1 + 1\n3\n```", "Expected:\n    3"),
        ("```console\naucseg stats no_such_card\n```", "page.md:2: aucseg stats no_such_card ended with status 2"),
        ("```console\nmake\\\n no_such_target\n```", "page.md:2: no no_such_target"),
        ('```console\npip install "aucseg[no_such_extra]"\n```', "no extra 'no_such_extra'"),
        ("```console\n\nrm -r x\n```", "page.md:3: cannot test 'rm -r x'"),
        ("```bash\nls\n```", "language 'bash'"),
        ("```yaml\na: [\n```", "while parsing"),
        ("```python\nx = 1", "page.md:1: a code block without an end"),
    ],
)
def test_wrong_blocks_fail(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match=re.escape(message)):
        run_page(tmp_path, text)
