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
SLOW = {"README.md", "getting-started.md", "inference.md"}

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
