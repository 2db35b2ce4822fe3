"""Do a study, a chart and a report display in a notebook? One is executed, as JupyterLab, VS Code and Colab do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from playbook_plugins.analysis import Parameter, Role, Trials
from playbook_plugins.charts.chart import VEGALITE_MIME

CELLS = [
    f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom example_trials import two_optimizers",
    "trials = two_optimizers(); trials",
    "from playbook_plugins.charts import axis_plot\naxis_plot(trials, 'adam.learning_rate')",
    "from IPython.display import Markdown\nfrom playbook_plugins.report import write_report\n"
    "Markdown(write_report(trials, 'report.md', format='markdown').read_text())",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    folder = str(tmp_path_factory.mktemp("notebook"))
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    nbformat.validate(notebook)
    return [cell["outputs"][-1]["data"] for cell in notebook.cells[1:]]


def test_a_study_shows_its_best_trials(outputs: list[dict[str, Any]]) -> None:
    assert "<table>" in outputs[0]["text/html"]
    assert "48 trials (40 complete, 8 infeasible)" in outputs[0]["text/html"]


def test_a_chart_is_vega_lite_with_a_picture_for_front_ends_that_cannot_draw_it(outputs: list[dict[str, Any]]) -> None:
    assert outputs[1][VEGALITE_MIME]["$schema"].endswith("v5.json")
    assert outputs[1]["image/png"].startswith("iVBOR")


def test_a_report_is_markdown(outputs: list[dict[str, Any]]) -> None:
    assert outputs[2]["text/markdown"].startswith("# digits: adam or nesterov\n")


def test_names_of_a_study_come_out_as_text() -> None:
    name = "</td><script>alert(1)</script>\x00\n" + "x" * 500
    trials = Trials.from_columns(
        name,
        [Parameter(name=name, kind="categorical", choices=(name, "b"), role=Role.SCIENTIFIC)],
        {name: [name, "b"]},
        [1.0, 2.0],
        objective_name=name,
        goal=name,
    )
    html = trials._repr_html_()
    assert "<script" not in html
    assert "\x00" not in html
    assert len(html) < 2_000


def test_a_study_without_a_result_is_shown_too() -> None:
    assert "0 trials (none)" in Trials.from_columns("empty", [], {}, [])._repr_html_()
