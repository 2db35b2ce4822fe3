"""What importing costs: a subprocess shows what is loaded, and a second test that the first can fail."""

from __future__ import annotations

import json
import subprocess
import sys

FRAMEWORKS = {
    "torch",
    "optuna",
    "wandb",
    "wandb_workspaces",
    "lightning",
    "pytorch_lightning",
    "jinja2",
    "typer",
    "rich",
    "vl_convert",
    "sklearn",
}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return set(json.loads(output))


def test_the_package_loads_no_framework() -> None:
    loaded = loaded_by("import playbook_plugins")
    assert not loaded & FRAMEWORKS
    assert not loaded & {"numpy", "scipy"}


def test_analysis_loads_no_framework_and_charts_none_either() -> None:
    assert not loaded_by("import playbook_plugins.analysis") & FRAMEWORKS
    assert not loaded_by("import playbook_plugins.charts") & FRAMEWORKS


def test_the_search_loads_no_training_framework() -> None:
    assert not loaded_by("import playbook_plugins.optuna") & (FRAMEWORKS - {"optuna"})


def test_statistics_load_when_something_is_judged() -> None:
    slow = {"scipy.stats", "scipy.special", "scipy.optimize"}
    assert not loaded_by("from playbook_plugins.optuna import HaltonSampler") & slow
    assert not loaded_by("import playbook_plugins.charts") & slow
    judged = "from playbook_plugins.analysis import expected_selection_bias as bias; bias(10, 1.0, 1.0)"
    assert "scipy.special" in loaded_by(judged)


def test_the_check_can_fail() -> None:
    assert "optuna" in loaded_by("import playbook_plugins.analysis, optuna") & FRAMEWORKS
