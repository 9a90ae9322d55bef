from pathlib import Path

from aucseg.compare.runner import write_atomically


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b.json", "x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
    assert (tmp_path / "a" / "b.json").read_text() == "x"
