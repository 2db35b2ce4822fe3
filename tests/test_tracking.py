from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from playbook_plugins.analysis import Curve, TrialRecord
from playbook_plugins.optuna import Round
from playbook_plugins.optuna.masking import mask_command, mask_text
from playbook_plugins.optuna.tracking import MAX_COMMAND_BYTES, MAX_DIFF_BYTES, RUN_PREFIX, study_sheet, track

COMMAND = ["python", "train.py"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "code"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "train.py").write_text("rate = 0.1\n")
    git(folder, "add", "train.py")
    git(folder, "commit", "--quiet", "--message", "first")
    return folder


def test_a_clean_repository_gives_its_commit_and_no_changes(repository: Path) -> None:
    study = optuna.create_study()
    run = track(study, repository=repository, command=COMMAND)
    assert run["commit"] == git(repository, "rev-parse", "HEAD")
    assert (run["diff"], run["diff_lines_left_out"], run["untracked"]) == ("", 0, [])
    assert run["command"] == "python train.py"
    assert run["versions"]["optuna"] == optuna.__version__
    assert run["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    [kept] = [value for key, value in study.user_attrs.items() if key.startswith(RUN_PREFIX)]
    assert kept == run


def test_the_kept_diff_restores_the_changes(repository: Path, tmp_path: Path) -> None:
    (repository / "train.py").write_text("rate = 0.3\n")
    (repository / "staged.py").write_text("x = 1\n")
    git(repository, "add", "staged.py")
    (repository / "new.py").write_text("not kept\n")
    # From a folder below, all the same of the whole repository.
    (repository / "below").mkdir()
    run = track(optuna.create_study(), repository=repository / "below", command=COMMAND)
    assert run["untracked"] == ["new.py"]
    assert "not kept" not in json.dumps(run)
    git(tmp_path, "clone", "--quiet", str(repository), "copy")
    (tmp_path / "kept.diff").write_text(run["diff"])
    git(tmp_path / "copy", "apply", str(tmp_path / "kept.diff"))
    assert (tmp_path / "copy" / "train.py").read_text() == "rate = 0.3\n"
    assert (tmp_path / "copy" / "staged.py").read_text() == "x = 1\n"


@pytest.mark.parametrize("character", ["a", "é", "\\"])
def test_a_long_diff_is_kept_in_whole_lines_up_to_its_limit(repository: Path, character: str) -> None:
    (repository / "train.py").write_text((character * 99 + "\n") * 5000)
    run = track(optuna.create_study(), repository=repository, command=COMMAND)
    size = len(json.dumps(run["diff"]))
    assert MAX_DIFF_BYTES - 700 < size <= MAX_DIFF_BYTES
    assert run["diff"].endswith("+" + character * 99 + "\n")
    n_lines = len(git(repository, "diff", "HEAD").splitlines())
    assert len(run["diff"].splitlines()) + run["diff_lines_left_out"] == n_lines


def test_a_long_command_is_cut(repository: Path) -> None:
    command = track(optuna.create_study(), repository=repository, command=["x" * 20_000])["command"]
    assert command == "x" * (MAX_COMMAND_BYTES - 2) + " ... (12002 more characters were not kept)"


def test_there_may_be_no_repository_and_no_commit(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {"commit": None, "diff": None, "diff_lines_left_out": 0, "untracked": []}
    run = track(optuna.create_study(), repository=tmp_path, command=COMMAND)
    assert {key: run[key] for key in nothing} == nothing
    git(tmp_path, "init", "--quiet")
    run = track(optuna.create_study(), repository=tmp_path, command=COMMAND)
    assert {key: run[key] for key in nothing} == nothing


def test_the_command_line_is_this_processs_own_by_default() -> None:
    text = (
        "import optuna; from playbook_plugins.optuna.tracking import track; "
        "print(track(optuna.create_study())['command'])"
    )
    options = ["--storage", "postgresql://me:hidden@host/db", "--token=hidden"]
    done = subprocess.run([sys.executable, "-c", text, *options], capture_output=True, text=True, check=True)
    assert done.stdout.endswith(" --storage 'postgresql://me:***@host/db' '--token=***'\n")


@pytest.mark.parametrize(
    ("argument", "masked"),
    [
        ("mysql+pymysql://me:a@b:c@host:3306/db?x=1", "mysql+pymysql://me:***@host:3306/db?x=1"),
        ("https://hidden@github.com/a/b", "https://***@github.com/a/b"),
        ("--storage=postgresql://me:hidden@host/db", "--storage=postgresql://me:***@host/db"),
        ("postgresql://host/db?user=me&password=hidden&ssl=1", "postgresql://host/db?user=me&password=***&ssl=1"),
        ("HF_TOKEN=hidden", "HF_TOKEN=***"),
        ("--wandb.apiKey=hidden", "--wandb.apiKey=***"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: Bearer ***"),
        ("ghp_0123456789abcdefghij", "***"),
        ("--max-tokens=512", "--max-tokens=512"),
        ("--token-limit=512", "--token-limit=512"),
        ("sqlite:///study.db", "sqlite:///study.db"),
        ("learning_rate=0.1", "learning_rate=0.1"),
        ("name@example.com", "name@example.com"),
    ],
)
def test_secrets_in_an_argument_are_masked_and_nothing_else(argument: str, masked: str) -> None:
    assert mask_command([argument]) == [masked]


def test_the_value_after_a_secret_option_is_masked() -> None:
    command = ["--api-key", "hidden", "--password", "--lr", "0.1", "--db-password", "hidden", "plain"]
    assert mask_command(command) == ["--api-key", "***", "--password", "--lr", "0.1", "--db-password", "***", "plain"]


def test_secrets_in_a_diff_are_masked_and_code_is_left_alone() -> None:
    text = "+api_key = 'hidden'\n+rows.sort(key=len)\n+url = 'mysql://me:hidden@host/db'\n+{\"token\": \"hidden\"}\n"
    masked = "+api_key = '***'\n+rows.sort(key=len)\n+url = 'mysql://me:***@host/db'\n+{\"token\": \"***\"}\n"
    assert mask_text(text) == masked


def test_equal_runs_are_kept_once_and_the_sheet_shows_the_latest(repository: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage)
    begin = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    for day, command in enumerate([["b"], ["a"], ["a"]]):
        track(study, repository=repository, command=command, now=begin + datetime.timedelta(days=day))
    (repository / "train.py").write_text("rate = 0.3\n")
    (repository / "new.py").write_text("")
    track(study, repository=repository, command=["c"], now=begin - datetime.timedelta(days=1))
    [row] = study_sheet(storage)
    assert (row["n_runs"], row["command"], row["uncommitted_changes"]) == (3, "a", "")
    track(study, repository=repository, command=["d"], now=begin + datetime.timedelta(days=9))
    [row] = study_sheet(storage)
    assert row["uncommitted_changes"].startswith("new file: new.py\ndiff --git a/train.py b/train.py\n")


def test_the_sheet_has_the_playbooks_columns_for_every_study(repository: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    design = Round("Which rate?", scientific={}, nuisance={"rate": FloatDistribution(0, 1)}, n_trials=3)

    def train(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        value = float("nan") if trial.number == 0 else 1.0 + trial.number
        return TrialRecord(direction="minimize", curve=Curve.from_columns([0, 1], [9.0, value]), max_steps=1)

    study = design.create_study(study_name="b", storage=url)
    design.optimize(study, train)
    track(study, config_url="https://me:hidden@example.com/c.yaml", repository=repository, command=COMMAND)
    other = optuna.create_study(study_name="a", storage=url, direction="maximize")
    other.add_trial(optuna.create_trial(state=TrialState.FAIL))
    other.add_trial(optuna.create_trial(value=2.0, system_attrs={"failed_trial": 0}))
    other.add_trial(optuna.create_trial(value=float("inf")))
    other.ask()
    optuna.create_study(study_name="c", storage=url, directions=["minimize", "maximize"])
    sheet = study_sheet(url)
    assert sheet == [
        {
            "study": "a",
            "config": None,
            "notes": None,
            "n_trials": 2,
            "best": 2.0,
            "command": None,
            "commit": None,
            "uncommitted_changes": None,
            "n_runs": 0,
        },
        {
            "study": "b",
            "config": "https://me:***@example.com/c.yaml",
            "notes": "Which rate?",
            "n_trials": 3,
            "best": 2.0,
            "command": "python train.py",
            "commit": git(repository, "rev-parse", "HEAD"),
            "uncommitted_changes": "",
            "n_runs": 1,
        },
        {**dict.fromkeys(("config", "notes", "best", "command", "commit", "uncommitted_changes")), "study": "c"}
        | {"n_trials": 0, "n_runs": 0},
    ]
    track(study, notes="Broken loader: ignore.", repository=repository, command=COMMAND)
    assert study_sheet(url)[1]["notes"] == "Broken loader: ignore."
