"""One self-contained HTML page about finished or running runs, and the picture for a README."""

from aucseg.hints import import_extra

import_extra("jinja2", "report")

from aucseg.report.examples import Example, Paste, collect_examples, collect_pastes  # noqa: E402
from aucseg.report.figures import readme_figure  # noqa: E402
from aucseg.report.page import build_report  # noqa: E402

__all__ = ["Example", "Paste", "build_report", "collect_examples", "collect_pastes", "readme_figure"]
