"""The examples, run as a user runs them: as scripts, in an empty folder, in their short form."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import optuna
import pytest
from example_scripts import EXAMPLES, run

from playbook_plugins.optuna import trials_from_study


def test_a_study_made_without_the_package_gets_its_review_and_page(tmp_path: Path) -> None:
    output = run(tmp_path, "existing_study.py", "--trials", "30")
    assert "learning_rate: the best trials crowd" in output
    folder = tmp_path / "runs/existing_study"
    page = (folder / "report.html").read_text()
    assert "the best trials crowd against the upper bound" in page
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{folder}/study.db")
    assert len(study.trials) == 30
    # Nothing of this package stands in the study.
    assert not study.user_attrs
    assert not any(trial.user_attrs for trial in study.trials)
    before = study.trials
    assert "30 trials" in run(tmp_path, "existing_study.py", "--trials", "30")
    assert study.trials == before


def test_batch_sizes_are_compared_each_with_its_own_hyperparameters(tmp_path: Path) -> None:
    output = run(tmp_path, "compare_batch_sizes.py", "--short")
    rows = re.findall(r"│ +(\d+) │ +(\d+) │ +([\d,]+) │ +([\d.]+) │ +([\d.]+) │ +10 │", output)
    assert [int(row[0]) for row in rows] == [4, 16, 64, 256]
    steps = [int(row[1]) for row in rows]
    assert steps == sorted(steps, reverse=True)
    # Four times the batch never saves more than three quarters of the steps, and at the end it saves less.
    assert steps[0] > 2 * steps[1]
    assert steps[2] < 4 * steps[3]
    assert len({row[3] for row in rows}) > 1
    assert "ritical batch size" in output
    folder = tmp_path / "runs/compare_batch_sizes"
    assert (folder / "steps_to_target.svg").read_text().startswith("<svg")
    page = (folder / "report.html").read_text()
    assert "<h1>Which batch size?</h1>" in page
    assert "What it recommends" in page
    study = optuna.load_study(study_name="digits-short/search", storage=f"sqlite:///{folder}/study.db")
    trials = trials_from_study(study)
    # Every size has faced the same learning rates.
    rates = {
        size: sorted(trials.values["learning_rate"][[one == size for one in trials.values["batch_size"]]])
        for size in (4, 16, 64, 256)
    }
    assert rates[4] == rates[16] == rates[64] == rates[256]
    again = run(tmp_path, "compare_batch_sizes.py", "--short")
    assert again == output
    assert len(study.get_trials(deepcopy=False)) == 40


def test_ray_tune_draws_the_same_configurations_or_says_what_to_install(tmp_path: Path) -> None:
    has_ray = importlib.util.find_spec("ray") is not None
    output = run(tmp_path, "ray_tune.py", strict=False, status=0 if has_ray else 1)
    if has_ray:
        assert output.endswith("A plain study draws the same configurations.\n")
    else:
        assert output == "Ray Tune is not installed, and this example needs it. Run: pip install 'ray[tune]'\n"


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_the_callbacks_of_a_configuration_file_train_in_both_clis(package: str, tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    text = (EXAMPLES / "lightning_cli/main.py").read_text()
    script.write_text(
        text.replace("import lightning.pytorch as", f"import {package} as").replace(
            "from lightning.pytorch.cli", f"from {package}.cli"
        )
    )
    output = run(tmp_path, str(script), "fit", "--config", str(EXAMPLES / "lightning_cli/config.yaml"), strict=False)
    found = re.search(r"Best val_error ([\d.]+)% at step (\d+) of 315; (\d+)% of the updates were clipped", output)
    assert found is not None, output
    # Guessing one of ten digits is wrong nine times in ten.
    assert float(found[1]) < 10
    assert len(list((tmp_path / "runs/lightning_cli").glob("step=*.ckpt"))) == 3
