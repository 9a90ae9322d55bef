"""One self-contained HTML page about finished or running runs, and the picture for a README."""

from aucseg.report.examples import Example, Paste, collect_examples, collect_pastes
from aucseg.report.figures import readme_figure
from aucseg.report.page import build_report

__all__ = ["Example", "Paste", "build_report", "collect_examples", "collect_pastes", "readme_figure"]
