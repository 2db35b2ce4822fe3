"""The `playbook wandb` commands with the real client against a server of the tests, and with offline runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from command_line import Output

from playbook_plugins.analysis import Curve, TrialRecord
from playbook_plugins.optuna import Round, trial_callback
from playbook_plugins.optuna.attempts import NOT_NEEDED_KEY
from playbook_plugins.wandb import log_trial

if TYPE_CHECKING:
    from wandb_server import LoopbackServer

ENTITY = "playbook-team"

pytestmark = pytest.mark.filterwarnings("ignore:`n_trials` is:UserWarning")


def train(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
    del trial
    curve = Curve.from_columns([0, 10], [1.0, abs(config["learning_rate"] - 0.1)])
    return TrialRecord(direction="minimize", curve=curve, max_steps=10, objective_name="val_error")


def add_study(storage: str, n_trials: int = 4, **arguments: Any) -> optuna.Study:
    round = Round(
        "How low?",
        scientific={},
        nuisance={"learning_rate": optuna.distributions.FloatDistribution(1e-3, 1.0, log=True)},
        n_trials=n_trials,
        seed=0,
    )
    study = round.create_study(study_name="digits", storage=storage)
    round.optimize(study, train, **arguments)
    return study


def test_the_presets_are_published(playbook: Callable[..., Output], wandb_server: LoopbackServer) -> None:
    done = playbook("wandb", "presets", ENTITY)
    assert done.status == 0, done.stderr
    published = done.stdout.split()
    assert {f"{entity}/{name}" for entity, name in wandb_server.charts} == set(published)
    assert {chart.access for chart in wandb_server.charts.values()} == {"PRIVATE"}
    assert playbook("wandb", "presets", ENTITY).stdout.split() == published


def test_a_study_is_published_with_its_runs_once(
    playbook: Callable[..., Output], wandb_server: LoopbackServer, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    study = add_study(url)
    # One that another worker made superfluous tells nothing and becomes no run.
    superfluous = study.ask()
    superfluous.set_user_attr(NOT_NEEDED_KEY, "another attempt at this point is done or running")
    study.tell(superfluous, state=optuna.trial.TrialState.FAIL)
    # Nor does a killed attempt at a point that another attempt has done.
    again = {"failed_trial": 0, "retry_history": [0]}
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL, system_attrs=again))
    done = playbook("wandb", "publish", f"{ENTITY}/vision", "--from", url, "--runs", "--title", "Digits")
    assert done.status == 0, done.stderr
    first, link = done.stdout.splitlines()
    assert first == "4 trials logged as runs"
    assert link.startswith(wandb_server.url)
    [report] = wandb_server.reports
    assert (report.display_name, report.type) == ("Digits", "runs/draft")
    numbers = [run.config["playbook_number"]["value"] for run in wandb_server.runs if run.job_type == "trial"]
    assert sorted(numbers) == [0, 1, 2, 3]
    again = playbook("wandb", "publish", f"{ENTITY}/vision", "--from", url, "--runs", "--title", "Digits, again")
    assert again.stdout.splitlines()[0] == "0 trials logged as runs"
    [report] = wandb_server.reports
    assert report.display_name == "Digits, again"


def test_the_runs_of_a_project_become_a_page_and_a_report(
    playbook: Callable[..., Output], wandb_server: LoopbackServer, tmp_path: Path
) -> None:
    add_study(f"sqlite:///{tmp_path}/study.db", callbacks=[trial_callback(log_trial, project="vision", entity=ENTITY)])
    done = playbook("wandb", "report", f"{ENTITY}/vision", "-o", "page.html")
    assert done.status == 0, done.stderr
    page = Path(done.stdout.strip())
    assert page == tmp_path / "working" / "page.html"
    assert "How low?" in page.read_text()
    published = playbook("wandb", "publish", f"{ENTITY}/vision", "--live", "--final")
    assert published.status == 0, published.stderr
    [report] = wandb_server.reports
    assert report.type == "runs"
    assert wandb_server.api_key not in page.read_text() + done.stdout + done.stderr + published.stdout


def test_offline_runs_become_a_page_without_a_server(
    playbook: Callable[..., Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    add_study(f"sqlite:///{tmp_path}/study.db", callbacks=[trial_callback(log_trial, project="vision")])
    done = playbook("wandb", "report", tmp_path / "wandb")
    assert done.status == 0, done.stderr
    assert "How low?" in Path(done.stdout.strip()).read_text()


def test_another_tool_s_runs_need_an_objective_and_its_direction(
    playbook: Callable[..., Output], wandb_server: LoopbackServer
) -> None:
    for place in range(5):
        wandb_server.plant_run(
            ENTITY, "old", name=f"r{place}", config={"lr": 0.1 * 2**place}, summary={"val/loss": 1.0 + place}
        )
    done = playbook("wandb", "report", f"{ENTITY}/old", "--objective", "val/loss", "--direction", "minimize")
    assert done.status == 0, done.stderr
    assert "val/loss" in Path(done.stdout.strip()).read_text()
    unknown = playbook("wandb", "report", f"{ENTITY}/old", "--objective", "val/loss")
    assert unknown.status == 2
    assert "direction" in unknown.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("report", "vision"), "'vision' is no project, nor a folder here. Give ENTITY/PROJECT, as in the URL."),
        (("report", "a/b/c"), "'a/b/c' is no project, nor a folder here. Give ENTITY/PROJECT, as in the URL."),
        (("report", "a/b", "-o", "page.txt"), "'page.txt' is no name of a page. Give -o a name that ends in .html."),
        (("report", "a/b", "--direction", "down"), "--direction 'down' is none: give minimize or maximize."),
        (("report", ".", "--sweep", "s1"), "--sweep needs the server: offline runs know no sweep. Leave it out."),
        (
            ("publish", "a/b", "--runs"),
            "--runs logs the trials of an Optuna study: name its storage by --from.",
        ),
        (
            ("publish", "a/b", "--from", "sqlite:///study.db", "--sweep", "s1"),
            "--sweep, --objective and --direction are for runs that are read: leave --from out.",
        ),
    ],
)
def test_wrong_arguments_are_one_line(
    playbook: Callable[..., Output], arguments: tuple[str, ...], message: str
) -> None:
    done = playbook("wandb", *arguments)
    assert (done.status, done.stdout, done.stderr) == (2, "", f"playbook: {message}\n")
