"""The configurations that come with the package: the demo's and those of the paper's runs."""

from pathlib import Path

from aucseg.hints import closest

CONFIGS = Path(__file__).parent


def find_config(path: str | Path) -> Path:
    """Finds a configuration: a file of the user's, or one that comes with the package.

    Args:
        path: A path. Where there is no such file, its last part is looked up among the shipped configurations, with or
            without `.yaml`.

    Raises:
        ValueError: No such file, and no such configuration; the message has the nearest ones.

    Example:
        >>> find_config("configs/cityscapes_segnext-l_aucseg.yaml").parent.name
        'configs'
        >>> find_config("cityscapes_segnext-b_aucseg")
        Traceback (most recent call last):
        ...
        ValueError: there is no file ...; did you mean cityscapes_segnext-l_aucseg, ...
    """
    path = Path(path)
    shipped = {file.stem: file for file in sorted(CONFIGS.glob("*.yaml"))}
    if path.is_file():
        return path
    name = path.name.removesuffix(".yaml")
    if name in shipped:
        return shipped[name]
    raise ValueError(f"there is no file {str(path)!r}, and no configuration of that name; {closest(name, shipped)}")
