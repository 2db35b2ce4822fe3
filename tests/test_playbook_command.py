"""The `playbook` command on real storages: SQLite files, a journal, PostgreSQL, with and without a round."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
from command_line import Output
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from postgres import PostgresServer, free_port, start_server
from typer.testing import CliRunner

from playbook_plugins.analysis import Curve, InfeasibleError, TrialRecord, Verdict
from playbook_plugins.analysis import review as find
from playbook_plugins.cli.commands import app
from playbook_plugins.cli.secrets import mask_secrets, mask_url, printable
from playbook_plugins.optuna import (
    HaltonSampler,
    Round,
    create_exploitation_study,
    next_round,
    track,
    trials_from_study,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:`n_trials` is:UserWarning"),
]

SECRET = "s3cr3t-word"
_ABSENT = "there is no file {!r}. It is made by the study, not by looking at it."
_EMPTY = "{} holds no Optuna study yet. Create one first, or give another storage."


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "playbook_plugins.cli", *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def add_plain(url: str | JournalStorage, name: str = "plain", n_trials: int = 25) -> optuna.Study:
    """Run a study that knows nothing of this package; the best values of x lie in the middle of its range."""
    study = optuna.create_study(study_name=name, storage=url, sampler=HaltonSampler(seed=1))
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1) - 0.5) ** 2, n_trials=n_trials)
    return study


def train(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
    del trial
    if config["[bold]x"] > 0.95:
        raise InfeasibleError("diverged")
    error = (math.log10(config["learning_rate"]) + 0.5) ** 2 + 0.1 * config["[bold]x"] + 0.2 * (config["act"] == "gelu")
    return TrialRecord(direction="minimize", curve=Curve.from_columns([0, 5, 10], [1e3, error + 1, error]))


def add_round(url: str, n_trials: int = 60) -> optuna.Study:
    """Run a round whose best learning rates lie beyond the upper bound."""
    design = Round(
        "How low does the error get?",
        scientific={"act": ["relu", "gelu"]},
        nuisance={
            "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
            # A name is no markup.
            "[bold]x": FloatDistribution(0, 1),
        },
        n_trials=n_trials,
        seed=0,
    )
    study = design.create_study(study_name="round one", storage=url)
    design.optimize(study, train)
    return study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with storages that no test changes."""
    path = tmp_path_factory.mktemp("storages")
    add_round(f"sqlite:///{path}/round.db")
    add_plain(f"sqlite:///{path}/plain.db")
    many = f"sqlite:///{path}/many.db"
    add_plain(many, "plain", 12)
    add_plain(many, "plain 2", 12)
    optuna.create_study(study_name="empty", storage=many)
    optuna.create_study(study_name="two objectives", storage=many, directions=["minimize", "minimize"])
    add_plain(JournalStorage(JournalFileBackend(str(path / "study.log"))), "in a journal")
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    yield from start_server()


# Starting


def modules_of_help(*arguments: str) -> set[str]:
    code = (
        "import json, sys\nfrom playbook_plugins.cli import main\n"
        f"sys.argv = ['playbook', *{list(arguments)!r}]\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


HEAVY = {"torch", "lightning", "pytorch_lightning", "optuna", "numpy", "scipy", "vl_convert", "jinja2", "sqlalchemy"}


@pytest.mark.parametrize("arguments", [("--help",), ("review", "--help")])
def test_help_loads_no_framework(arguments: tuple[str, ...]) -> None:
    loaded = modules_of_help(*arguments)
    assert "typer" in loaded
    assert not loaded & HEAVY


def test_a_command_loads_what_it_needs_and_no_training_framework(folder: Path) -> None:
    loaded = modules_of_help("studies", f"sqlite:///{folder}/plain.db")
    assert "optuna" in loaded
    assert not loaded & {"torch", "lightning", "pytorch_lightning", "vl_convert"}


def test_help_names_the_commands_and_the_exit_statuses() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for command in ("report", "review", "next", "studies", "watch"):
        assert re.search(rf"\b{command}\b", shown.output)
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    assert "0 done, 1 a flag was raised" in " ".join(shown.output.split())


@pytest.mark.parametrize("missing", ["typer", "optuna"])
def test_a_missing_extra_is_told_with_the_command_that_installs_it(missing: str, folder: Path) -> None:
    code = (
        f"import sys\nsys.modules[{missing!r}] = None\nfrom playbook_plugins.cli import main\n"
        f"sys.argv = ['playbook', 'review', 'sqlite:///{folder}/plain.db']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    expected = {
        "typer": (
            "playbook: the command needs typer, which is not installed. Run: pip install "
            "'playbook-plugins[report,optuna]'\n"
        ),
        "optuna": "playbook: this needs optuna, which is not installed. Run: pip install 'playbook-plugins[optuna]'\n",
    }
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected[missing])


# report


def test_report_writes_the_page_of_the_only_study(playbook: Callable[..., Output], folder: Path) -> None:
    output = playbook("report", f"sqlite:///{folder}/round.db", "--title", "My <title>")
    page = Path("playbook.html").resolve()
    assert output == Output(0, f"{page}\n", "")
    text = page.read_text()
    assert "<title>My &lt;title&gt;</title>" in text
    assert "round one" in text
    assert "How low does the error get?" in text
    assert "<h2>The next round</h2>" in text
    assert "<h2>The studies</h2>" in text
    # A study without a round has no next one.
    playbook("report", f"sqlite:///{folder}/many.db", "--study", "plain")
    assert "<h2>The next round</h2>" not in page.read_text()


def test_report_of_a_journal_in_a_process_of_its_own(folder: Path, tmp_path: Path) -> None:
    run = start("report", str(folder / "study.log"), "-o", "a page.html", cwd=tmp_path)
    stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stdout, stderr) == (0, f"{tmp_path / 'a page.html'}\n", "")
    assert "in a journal" in (tmp_path / "a page.html").read_text()


def test_report_of_several_studies(playbook: Callable[..., Output], folder: Path) -> None:
    many = f"sqlite:///{folder}/many.db"
    output = playbook("report", many)
    assert output == Output(
        2,
        "",
        f"playbook: {many} holds 4 studies: choose one by --study, or take all by --all. They are 'empty', 'plain', "
        "'plain 2', 'two objectives'.\n",
    )
    assert playbook("report", many, "--study", "plain", "--study", "plain 2", "-o", "two.html").status == 0
    assert "<title>plain, plain 2</title>" in Path("two.html").read_text()
    output = playbook("report", many, "--all", "-o", "all.html")
    assert output.status == 0
    assert "<title>plain, plain 2</title>" in Path("all.html").read_text()
    assert output.stderr == (
        "note: 'empty' is left out: the study 'empty' has no trial yet. Run it first.\n"
        "note: 'two objectives' is left out: `study` 'two objectives' has 2 objectives: the playbook compares trials "
        "by one. Use a study with one objective.\n"
    )
    output = playbook("report", many, "--all", "--study", "plain")
    assert output.stderr == ("playbook: --study and --all exclude each other: name some studies, or take all.\n")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("page.txt", "'page.txt' is no name of a page. Give -o a name that ends in .html."),
        ("no/x.html", "'no/x.html' cannot be written: there is no folder 'no'."),
        ("d.html", "'d.html' is a folder. Give -o the name of a file."),
        ("/proc/x.html", "'/proc/x.html' cannot be written: No such file or directory."),
    ],
)
def test_a_page_that_cannot_be_written(playbook: Callable[..., Output], folder: Path, output: str, reason: str) -> None:
    Path("d.html").mkdir()
    for command in ("report", "watch"):
        assert playbook(command, folder / "study.log", "-o", output) == Output(2, "", f"playbook: {reason}\n")
    assert [path.name for path in Path().iterdir()] == ["d.html"]


# review


def test_review_prints_flags_and_what_to_do_and_ends_with_status_1(
    playbook: Callable[..., Output], folder: Path
) -> None:
    output = playbook("review", f"sqlite:///{folder}/round.db")
    assert (output.status, output.stderr) == (1, "")
    assert "learning_rate: the best trials crowd against the upper bound" in output.stdout
    assert "Raise the upper bound of learning_rate and search again" in output.stdout
    # One row a question, though it is also asked of each scientific value.
    assert output.stdout.count("learning_rate: the best trials crowd") == 1
    assert re.search(r"Also\s+(│\s+│\s+)?raised", output.stdout)
    # A name in brackets is shown as it is.
    assert "[bold]x" in output.stdout
    lines = output.stdout.splitlines()
    assert "Too few trials to say:" in lines
    assert "- No evidence of an infeasible majority of the trials" in lines


def test_review_shows_on_a_terminal_what_it_does_and_prints_the_same(folder: Path) -> None:
    arguments = ("review", f"sqlite:///{folder}/round.db", "--json")
    quiet = start(*arguments)
    expected, nothing = quiet.communicate(timeout=60)
    assert nothing == ""
    terminal, other_end = os.openpty()
    run = subprocess.Popen(
        [sys.executable, "-m", "playbook_plugins.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=other_end,
        env=os.environ | {"TERM": "xterm"},
    )
    stdout, _ = run.communicate(timeout=60)
    os.close(other_end)
    shown = os.read(terminal, 100_000)
    os.close(terminal)
    assert stdout.decode() == expected
    assert b"Reviewing the trials" in shown


def test_a_terminal_without_the_signs_is_no_error(folder: Path) -> None:
    run = start("review", f"sqlite:///{folder}/round.db", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stderr) == (1, "")
    assert "Raise the upper bound" in stdout


def test_review_of_a_study_without_flags_ends_with_status_0(playbook: Callable[..., Output], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/few.db"
    add_plain(url, n_trials=3)
    output = playbook("review", url)
    assert output.status == 0
    assert output.stdout.startswith("plain: no check of the playbook's checklist raised a flag.\n")


def test_review_as_json_holds_every_finding(folder: Path) -> None:
    url = f"sqlite:///{folder}/round.db"
    run = start("review", url, "--json", "--retrain-sd", "0.01")
    stdout, stderr = run.communicate(timeout=60)
    assert (run.returncode, stderr) == (1, "")
    found = json.loads(stdout, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    trials = trials_from_study(optuna.load_study(study_name="round one", storage=url))
    expected = find(trials, retrain_sd=0.01)
    assert [(one["check"], one["subject"], one["verdict"]) for one in found] == [
        (finding.check, finding.subject, str(finding.verdict)) for finding in expected
    ]
    assert set(found[0]) == {
        "check",
        "subject",
        "verdict",
        "numbers",
        "section",
        "error_rate",
        "headline",
        "sentence",
        "action",
    }
    assert found[0]["numbers"]["bound"] == 0.1
    assert find(trials) != expected


def test_review_joins_the_studies_of_a_round(playbook: Callable[..., Output], folder: Path) -> None:
    many = f"sqlite:///{folder}/many.db"
    tables = [trials_from_study(optuna.load_study(study_name=name, storage=many)) for name in ("plain", "plain 2")]
    output = playbook("review", many, "--study", "plain", "--study", "plain 2", "--json")
    expected = find(tables)
    assert [(one["check"], one["subject"], one["verdict"]) for one in json.loads(output.stdout)] == [
        (finding.check, finding.subject, str(finding.verdict)) for finding in expected
    ]
    assert output.status == int(any(finding.verdict is Verdict.FLAG for finding in expected))


def test_review_takes_what_else_is_known(playbook: Callable[..., Output], folder: Path) -> None:
    plain = f"sqlite:///{folder}/plain.db"
    output = playbook("review", plain, "--validation-examples", 1000, "--json")
    assert "selection bias" in {one["check"] for one in json.loads(output.stdout)}
    assert "selection bias" not in {one["check"] for one in json.loads(playbook("review", plain, "--json").stdout)}
    output = playbook("review", plain, "--retrain-sd", 0)
    assert (output.status, output.stdout) == (2, "")
    assert output.stderr.startswith("playbook: `retrain_sd` is 0.0: it is a standard deviation")
    output = playbook("review", plain, "--validation-examples", 0)
    assert (output.status, output.stdout, output.stderr.count("\n")) == (2, "", 1)
    output = playbook("review", plain, "--goal", "nan")
    assert (output.status, output.stdout, output.stderr.count("\n")) == (2, "", 1)


# next


def test_next_prints_the_proposal(playbook: Callable[..., Output], folder: Path) -> None:
    url = f"sqlite:///{folder}/round.db"
    output = playbook("next", url)
    assert (output.status, output.stderr) == (0, "")
    told = " ".join(output.stdout.replace("│", " ").split())
    assert "Move the upper bound of learning_rate" in told
    assert "from 0.1 to 1." in told
    assert "The best trial has learning_rate =" in told
    shown = json.loads(playbook("next", url, "--json").stdout)
    study = Round.load_study(study_name="round one", storage=url)
    proposal = next_round(Round.from_study(study), trials_from_study(study))
    # What is printed can be run.
    assert Round.from_json(json.dumps(shown["round"])).to_json() == proposal.round.to_json()
    assert [change["move"] for change in shown["changes"]] == [str(change.move) for change in proposal.changes]
    assert shown["n_more"] == proposal.n_more
    assert f"Run {proposal.n_more} trials: were they drawn" in output.stdout


def test_next_without_changes_says_that_the_bayesian_phase_can_follow(
    playbook: Callable[..., Output], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/r.db"
    design = Round("x?", scientific={}, nuisance={"x": FloatDistribution(0, 1)}, n_trials=40, seed=0)
    study = design.create_study(study_name="settled", storage=url)
    design.optimize(
        study,
        lambda config, trial: TrialRecord(
            # Good and bad values lie everywhere.
            direction="minimize",
            curve=Curve.from_columns([0, 10], [9.0, math.sin(40 * config["x"])]),
        ),
    )
    assert not next_round(design, trials_from_study(study)).changes
    output = playbook("next", url)
    assert output.status == 0
    assert output.stdout == (
        "settled: Nothing is to change: the search space holds, and the Bayesian phase can follow "
        "(create_exploitation_study).\n"
    )
    create_exploitation_study(study, study_name="bayes", storage=url)
    output = playbook("next", url, "--study", "bayes")
    assert output == Output(
        2,
        "",
        "playbook: the study 'bayes' is the Bayesian phase of a round, after which no next round is proposed. Name the "
        "round's own study.\n",
    )


def test_next_of_a_study_without_a_round(playbook: Callable[..., Output], folder: Path) -> None:
    assert playbook("next", f"sqlite:///{folder}/plain.db", "--json") == Output(
        2,
        "",
        "playbook: the study 'plain' has no round kept with it, so that there is nothing to change: it was not made by "
        "Round.create_study. `playbook review` reads any study.\n",
    )


# studies


def test_studies_are_listed(playbook: Callable[..., Output], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = add_plain(url, n_trials=4)
    track(study, notes="A first look", repository=tmp_path, command=["python", "train.py"])
    study.enqueue_trial({"x": 0.1})
    optuna.create_study(study_name="escape \x1b[31m", storage=url)
    output = playbook("studies", url)
    assert (output.status, output.stderr) == (0, "")
    assert re.search(r"plain +│ A first look +│ 4 ", output.stdout)
    assert "\x1b" not in output.stdout
    sheet = json.loads(playbook("studies", url, "--json").stdout)
    assert [row["study"] for row in sheet] == ["escape \x1b[31m", "plain"]
    assert sheet[1]["command"] == "python train.py"
    assert sheet[1]["n_trials"] == 4
    assert sheet[1]["best"] == study.best_value


# watch


def end(run: subprocess.Popen[str]) -> None:
    with run:
        run.kill()


def read_line(run: subprocess.Popen[str]) -> str:
    assert run.stdout is not None
    return run.stdout.readline()


def test_watch_writes_the_page_when_trials_finish_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(study_name="s", storage=url)
    # A shell may start its jobs with the interrupt ignored.
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from playbook_plugins.cli import main\nmain()"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, "watch", url, "--every", "0.1", "-o", "live.html"],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        # A study without a trial is waited for, and so is a first trial that only begins.
        assert run.stderr is not None
        assert run.stderr.readline() == "note: no trial has finished yet: the page is written when one has.\n"
        running = study.ask()
        time.sleep(0.5)
        assert run.poll() is None
        assert not (tmp_path / "live.html").exists()
        study.tell(running, state=optuna.trial.TrialState.FAIL)
        assert "  1 finished trial  " in read_line(run)
        for n_finished in ("2 finished trials", "3 finished trials"):
            study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
            assert re.fullmatch(rf"\d\d:\d\d:\d\d  {n_finished}  {tmp_path}/live.html\n", read_line(run))
        written = (tmp_path / "live.html").stat().st_mtime_ns
        # A trial that only begins changes nothing.
        study.ask()
        time.sleep(0.5)
        assert (tmp_path / "live.html").stat().st_mtime_ns == written
        run.send_signal(signal.SIGINT)
        stdout, stderr = run.communicate(timeout=30)
    finally:
        end(run)
    assert (run.returncode, stdout) == (0, "")
    assert stderr == "note: stopped. The page stays as it was last written.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["live.html", "s.db"]


def test_watch_ends_by_itself(playbook: Callable[..., Output], folder: Path) -> None:
    output = playbook("watch", folder / "study.log", "--until", 25, "--every", 100)
    assert output.status == 0
    assert output.stdout.endswith(f"  25 finished trials  {Path('playbook.html').resolve()}\n")
    assert "in a journal" in Path("playbook.html").read_text()


def test_watch_goes_on_when_the_database_is_away_for_a_while(server: PostgresServer, tmp_path: Path) -> None:
    url = server.create_database()
    storage = RDBStorage(url)
    study = add_plain_in(storage, 1)
    run = start("watch", url, "--every", "0.1", "--until", "2", cwd=tmp_path)
    try:
        assert "  1 finished trial  " in read_line(run)
        name = url.rpartition("/")[2]
        with server.connect() as connection:
            # Nobody gets in, and who is in goes out.
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')  # type: ignore[call-overload]
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
            time.sleep(1)
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')  # type: ignore[call-overload]
        storage.engine.dispose()
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
        stdout, stderr = run.communicate(timeout=60)
    finally:
        end(run)
        storage.engine.dispose()
    assert run.returncode == 0, stderr
    assert "  2 finished trials  " in stdout
    lines = stderr.splitlines()
    assert lines
    assert all(line.startswith("note: the storage postgresql+psycopg://postgres:***@127.0.0.1") for line in lines)
    assert all(line.endswith("Trying again.") for line in lines)
    assert server.password not in stdout + stderr


def add_plain_in(storage: RDBStorage, n_trials: int) -> optuna.Study:
    study = optuna.create_study(study_name="plain", storage=storage)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=n_trials)
    return study


# Storages that cannot be read


def make_files(folder: Path) -> None:
    (folder / "zero.db").touch()
    (folder / "text.db").write_text("just a text, and no database at all")
    (folder / "folder.db").mkdir()
    with sqlite3.connect(folder / "other.db") as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    connection.close()
    (folder / "zero.log").touch()
    (folder / "text.log").write_text("12:00 started\n12:01 ended\n")
    (folder / "json.log").write_text('{"a": 1}\n')
    (folder / "sqlite.log").write_bytes((folder / "other.db").read_bytes())


@pytest.mark.parametrize(
    ("storage", "reason"),
    [
        ("sqlite:///none.db", _ABSENT.format("none.db")),
        (
            "sqlite:///file:none.db?uri=true",
            _ABSENT.format("none.db"),
        ),
        ("none.log", _ABSENT.format("none.log")),
        (
            "sqlite:///zero.db",
            _EMPTY.format("sqlite:///zero.db"),
        ),
        ("zero.log", _EMPTY.format("zero.log")),
        (
            "sqlite:///other.db",
            _EMPTY.format("sqlite:///other.db"),
        ),
        ("sqlite:///text.db", "'text.db' is no SQLite database. Give the file of a study."),
        ("sqlite:///folder.db", "'folder.db' is a folder. Give the file of a study inside it."),
        ("text.log", "'text.log' is no journal of Optuna. Give the file of a study."),
        ("json.log", "'json.log' is no journal of Optuna. Give the file of a study."),
        ("sqlite.log", "'sqlite.log' is an SQLite database and no journal. Give it as sqlite:///sqlite.log"),
        (
            "other.db",
            "'other.db' is no storage URL and no journal file (.log, .journal). An SQLite file is given as "
            "sqlite:///other.db",
        ),
        (
            "study",
            "'study' is no storage URL and no journal file (.log, .journal). An SQLite file is given as "
            "sqlite:///study.db",
        ),
        ("sqlite://s.db", "sqlite://s.db names a host, and SQLite has none: write three slashes, sqlite:///study.db"),
        ("sqlite://", "sqlite:// lies in the memory of one program: no other one can read it."),
        ("sqlite:///:memory:", "sqlite:///:memory: lies in the memory of one program: no other one can read it."),
        (
            f"nothing://user:{SECRET}@host/name",
            "'nothing' is no kind of database that is known here. Use sqlite, postgresql or mysql.",
        ),
        (
            f"mysql://user:{SECRET}@host/name",
            "'mysql' needs the package MySQLdb, which is not installed. Run: pip install mysqlclient",
        ),
        (
            f"postgresql://user:{SECRET}@host:port/name",
            "postgresql://user:***@host:port/name is no storage URL. Give one such as sqlite:///study.db or "
            "postgresql://user:***@host/database, with special characters of the password percent-encoded.",
        ),
    ],
)
@pytest.mark.parametrize("command", ["review", "studies"])
def test_a_storage_that_cannot_be_read(
    playbook: Callable[..., Output], command: str, storage: str, reason: str
) -> None:
    make_files(Path())
    before = {path: path.stat().st_size for path in Path().iterdir()}
    assert playbook(command, storage) == Output(2, "", f"playbook: {reason}\n")
    # Nothing is created by looking at it.
    assert {path: path.stat().st_size for path in Path().iterdir()} == before


def test_a_study_that_cannot_be_shown(playbook: Callable[..., Output], folder: Path) -> None:
    many = f"sqlite:///{folder}/many.db"
    assert playbook("report", many, "--study", "plan") == Output(
        2, "", f"playbook: {many} holds no study 'plan'. The nearest: 'plain', 'plain 2'.\n"
    )
    assert playbook("watch", many, "--study", "zzz").stderr == (
        f"playbook: {many} holds no study 'zzz'. There are 'empty', 'plain', 'plain 2', 'two objectives'.\n"
    )
    for command in ("report", "review"):
        assert playbook(command, many, "--study", "empty") == Output(
            2, "", "playbook: the study 'empty' has no trial yet. Run it first.\n"
        )
        assert playbook(command, many, "--study", "two objectives") == Output(
            2,
            "",
            "playbook: `study` 'two objectives' has 2 objectives: the playbook compares trials by one. Use a study "
            "with one objective.\n",
        )
    assert list(Path().iterdir()) == []


def test_reading_changes_nothing(playbook: Callable[..., Output], folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert playbook("review", f"sqlite:///{folder}/round.db").status == 1
    assert playbook("next", f"sqlite:///{folder}/round.db").status == 0
    assert playbook("report", folder / "study.log").status == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("query", ["mode=ro&uri=true", "uri=true", "mode=ro&immutable=1&uri=true"])
def test_an_sqlite_uri_is_read(playbook: Callable[..., Output], folder: Path, query: str) -> None:
    output = playbook("studies", f"sqlite:///file:{folder}/plain.db?{query}", "--json")
    assert [row["study"] for row in json.loads(output.stdout)] == ["plain"]


def test_a_path_with_odd_characters_is_read(playbook: Callable[..., Output], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a #1 50% study.db"
    path.write_bytes((folder / "plain.db").read_bytes())
    output = playbook("studies", f"sqlite:///{path}".replace("%", "%25"), "--json")
    assert [row["study"] for row in json.loads(output.stdout)] == ["plain"]


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_file_and_folder_that_must_not_be_written_to_are_read(folder: Path, tmp_path: Path, mode: str) -> None:
    with tempfile.TemporaryDirectory(prefix="playbook-read-only-") as name:
        path = Path(name) / "plain.db"
        path.write_bytes((folder / "plain.db").read_bytes())
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.close()
        path.chmod(0o444)
        Path(name).chmod(0o555)
        # Root may write everywhere: it becomes somebody else once all is imported.
        code = (
            "import os, sys\nfrom typer.testing import CliRunner\nfrom playbook_plugins.cli.commands import app\n"
            f"reading = ['studies', 'sqlite:///{path}', '--json']\n"
            f"writing = ['report', 'sqlite:///{path}', '-o']\n"
            f"CliRunner().invoke(app, [*writing, {str(tmp_path / 'page.html')!r}])\n"
            "os.geteuid() or os.seteuid(65534)\n"
            f"assert not os.access({name!r}, os.W_OK, effective_ids=True)\n"
            "result = CliRunner().invoke(app, reading)\nprint(result.output)\n"
            f"refused = CliRunner().invoke(app, [*writing, '{name}/page.html'])\n"
            "assert refused.exit_code == 2\nsys.stderr.write(refused.output)\n"
            "sys.exit(result.exit_code)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        Path(name).chmod(0o755)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == f"playbook: '{name}/page.html' cannot be written: Permission denied.\n"
        assert [entry.name for entry in Path(name).iterdir()] == ["plain.db"]
        assert [row["study"] for row in json.loads(done.stdout)] == ["plain"]


def test_a_locked_database_is_waited_for_and_then_told(
    playbook: Callable[..., Output], folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "locked.db"
    path.write_bytes((folder / "plain.db").read_bytes())
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    output = playbook("review", f"sqlite:///{path}")
    seconds = time.monotonic() - began
    writer.close()
    assert output == Output(
        2, "", f"playbook: the storage sqlite:///{path} is locked by another program: try again in a moment.\n"
    )
    assert 4 < seconds < 20
    assert playbook("review", f"sqlite:///{path}").status in (0, 1)


def test_a_damaged_database_is_told(playbook: Callable[..., Output], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    content = bytearray((folder / "plain.db").read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)
    output = playbook("review", f"sqlite:///{path}")
    assert (output.status, output.stdout) == (2, "")
    assert output.stderr.startswith(f"playbook: the storage sqlite:///{path} cannot be read: database disk image is")
    assert output.stderr.count("\n") == 1


def test_tables_of_another_version_are_told(playbook: Callable[..., Output], folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    path.write_bytes((folder / "plain.db").read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v1.3.0.a'")
    connection.close()
    output = playbook("studies", f"sqlite:///{path}")
    assert (output.status, output.stdout, output.stderr.count("\n")) == (2, "", 1)
    assert "optuna storage upgrade" in output.stderr
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE alembic_version")
    connection.close()
    output = playbook("studies", f"sqlite:///{path}")
    assert (output.status, output.stderr.count("\n")) == (2, 1)
    with sqlite3.connect(path) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    connection.close()
    assert "alembic_version" not in tables


def test_debug_shows_where_an_error_comes_from(playbook: Callable[..., Output]) -> None:
    url = f"postgresql+psycopg://user:{SECRET}@127.0.0.1:{free_port()}/name?application_name=x"
    quiet = playbook("review", url)
    assert quiet.stderr.count("\n") == 1
    output = playbook("review", url, "--debug")
    assert output.status == 2
    assert "Traceback (most recent call last)" in output.stderr
    assert output.stderr.endswith(quiet.stderr)
    assert "Connection refused" in quiet.stderr
    assert SECRET not in output.stderr


# Secrets


def test_a_server_is_read_and_its_password_never_shown(playbook: Callable[..., Output], server: PostgresServer) -> None:
    url = server.create_database()
    shown = url.replace(server.password, "***")
    assert playbook("studies", url) == Output(
        2, "", f"playbook: {shown} holds no Optuna study yet. Create one first, or give another storage.\n"
    )
    storage = RDBStorage(url)
    add_plain_in(storage, 12)
    storage.engine.dispose()
    for arguments in (("review",), ("review", "--json"), ("report",), ("studies",), ("watch", "--until", 1)):
        output = playbook(arguments[0], url, *arguments[1:])
        assert output.status in (0, 1), output.stderr
        assert server.password not in output.stdout + output.stderr
    assert playbook("report", url, "--study", "plane").stderr == (
        f"playbook: {shown} holds no study 'plane'. The nearest: 'plain'.\n"
    )
    assert server.password not in Path("playbook.html").read_text()


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_no_error_of_a_server_shows_the_password(
    playbook: Callable[..., Output], server: PostgresServer, debug: tuple[str, ...]
) -> None:
    url = server.create_database()
    database = url.rpartition("/")[2]
    odd = "pa/ss wörd?#&"
    wrong = url.replace(server.password, quote(odd, safe=""))
    for broken in (
        url.replace(server.password, SECRET),
        wrong,
        url.replace(f"/{database}", "/nothing"),
        url.replace(str(server.port), str(free_port())),
        url.replace("127.0.0.1", "no-such-host.invalid"),
        f"postgresql+psycopg://127.0.0.1:{server.port}/{database}?user=postgres&password={SECRET}",
        f"{url}?sslmode=require&sslpassword={SECRET}",
        f"{url}?token={SECRET}",
    ):
        output = playbook("review", broken, *debug)
        assert (output.status, output.stdout) == (2, ""), broken
        last = output.stderr.splitlines()[-1]
        assert last.startswith("playbook: the storage postgresql+psycopg://")
        assert debug or output.stderr.count("\n") == 1
        for secret in (server.password, SECRET, odd, quote(odd, safe=""), "wörd"):
            assert secret not in output.stderr
    refused = playbook("review", url.replace(server.password, SECRET)).stderr
    assert "password authentication failed" in refused


@pytest.mark.parametrize(
    "arguments",
    [
        ("review", "journal.log", f"postgresql://user:{SECRET}@host/name?token=abcdef-{SECRET}"),
        (f"postgresql://user:{SECRET}@host/name",),
        ("--storage", f"postgresql://user:{SECRET}@host/name"),
        ("watch", "x.log", "--every", f"postgresql://user:{SECRET}@host/name"),
    ],
)
def test_wrong_usage_is_one_line_without_secrets(playbook: Callable[..., Output], arguments: tuple[str, ...]) -> None:
    output = playbook(*arguments)
    assert (output.status, output.stdout, output.stderr.count("\n")) == (2, "", 1)
    assert re.search(r"Try: playbook( review| watch)? --help\n$", output.stderr)
    assert SECRET not in output.stderr


def test_secrets_of_a_url_are_masked_in_every_form() -> None:
    url = "postgresql://user:p%40ss%2Fword@host/db?password=other-one&sslmode=require&token=abcd%20efg"
    assert mask_url(url) == "postgresql://user:***@host/db?password=***&sslmode=require&token=***"
    text = f"{url}: p@ss/word, p%40ss%2Fword, other-one, 'abcd efg', abcd+efg at host, user"
    masked = mask_secrets(text, url)
    assert masked == f"{mask_url(url)}: ***, ***, ***, '***', *** at host, user"
    # A raw @ cuts the password, and its end looks like a host.
    assert mask_secrets("no host 'rd@host'", "postgresql://user:p@rd@host/db") == "no host '***@host'"
    # A short one is no part of other words.
    assert mask_secrets("a bad database: a", "postgresql://user:a@host/db") == "*** bad database: ***"
    for harmless in ("sqlite:////data/a:b@c.db", "study.log", "", "postgresql://user@host/db"):
        assert mask_url(harmless) == harmless
        assert mask_secrets("a text", harmless) == "a text"


def test_control_characters_are_not_printed() -> None:
    assert printable("a\x1b[31m\x00\u202eb\nç") == "a\ufffd[31m\ufffd\ufffdb\nç"
