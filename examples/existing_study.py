"""What does the playbook's checklist say about an Optuna study that was made without this package?

First the study, as anybody makes one: `optuna.create_study`, the TPE sampler, an objective that returns a number, an
SQLite file. Then three lines: read it as a table of trials, review it, write its page. What only training can tell
(curves, best steps, gradient norms) a study of plain numbers does not hold, and the page says which questions stay
open; `playbook_plugins.optuna.record_trial` and `trial_callback` are the ways to answer them next time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.model_selection import train_test_split

from playbook_plugins.analysis import Verdict, review
from playbook_plugins.optuna import trials_from_study
from playbook_plugins.report import VERDICTS, word, word_quiet, write_report


def make_study(storage: str, n_trials: int) -> optuna.Study:
    """Return a study of a linear classifier of handwritten digits, with nothing of this package in it."""
    scans, digits = load_digits(return_X_y=True)
    parts = train_test_split(scans / 16.0, digits, test_size=360, random_state=0, stratify=digits)
    training, validation, targets, answers = parts

    def objective(trial: optuna.Trial) -> float:
        model = SGDClassifier(
            loss=trial.suggest_categorical("loss", ["log_loss", "hinge"]),
            learning_rate="constant",
            # The upper bound is too low, as it may be in a first study.
            eta0=trial.suggest_float("learning_rate", 1e-5, 1e-3, log=True),
            alpha=trial.suggest_float("weight_decay", 1e-7, 1e-1, log=True),
            max_iter=5,
            tol=None,
            random_state=0,
        )
        return 1 - float(model.fit(training, targets).score(validation, answers))

    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(study_name="digits", storage=storage, sampler=sampler, load_if_exists=True)
    study.optimize(objective, n_trials=max(0, n_trials - len(study.trials)))
    return study


def main() -> None:
    """Make the study, or take it as it is, and say what the checklist finds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=50, help="number of trials in all (default: 50)")
    parser.add_argument("--output", type=Path, default=Path("runs/existing_study"), help="the folder to write to")
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = make_study(f"sqlite:///{arguments.output / 'study.db'}", arguments.trials)

    trials = trials_from_study(study)
    findings = review(trials)
    page = write_report(trials, arguments.output / "report.html", findings=findings)

    console = Console()
    table = Table(title=f"{len(trials)} trials, the best {trials.objective.min():.2%}", title_justify="left")
    table.add_column("finding", overflow="fold", ratio=1)
    table.add_column("what to do", overflow="fold", ratio=1)
    for words in (word(finding) for finding in findings if finding.verdict is Verdict.FLAG):
        table.add_row(f"[bold]{words.headline}[/bold]\n{words.sentence}", words.action)
    console.print(table)
    for verdict in (Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE):
        n_questions = len(word_quiet([finding for finding in findings if finding.verdict is verdict]))
        console.print(f"{VERDICTS[verdict]}: {n_questions} questions.")
    console.print(f"The page: {page.resolve()}", soft_wrap=True)


if __name__ == "__main__":
    main()
