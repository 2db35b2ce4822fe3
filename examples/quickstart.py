"""Does Adam or Nesterov momentum reach the lower validation error on handwritten digits, each at its best?

One round of the playbook from the goal to the page: 48 trials of a quasi-random search over the learning rate and the
momentum (or beta1) of both optimizers, trained by the real Lightning Trainer, kept in a study that can be interrupted
at any moment, and a page that answers the checklist. Run it by ``make demo``; run it again to go on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.analysis import Finding, TrialRecord, Verdict, review
from playbook_plugins.charts import axis_plot
from playbook_plugins.lightning import (
    BatchNormSync,
    BestCheckpoints,
    LearningRateWarmup,
    PercentileGradientClipping,
    PeriodicEvaluation,
    TrialRecorder,
    WeightEMA,
    build_optimizer,
)
from playbook_plugins.optuna import Round, next_round, optimizer_space, study_sheet, track, trials_from_study
from playbook_plugins.report import VERDICTS, word, word_quiet, write_report

GOAL = "Does Adam or Nesterov momentum reach the lower validation error, each at its best?"
WARMUP_STEPS = 15
STEPS_BETWEEN_EVALUATIONS = 20


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Return 1,078 training and 359 validation scans of 8 x 8 pixels; 360 more stay untouched for a final test."""
    scans, digits = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(digits)), test_size=360, random_state=0, stratify=digits)
    train, validation = train_test_split(rest, test_size=359, random_state=0, stratify=digits[rest])
    inputs = torch.tensor(scans / 16.0, dtype=torch.float32)
    targets = torch.tensor(digits)
    del test
    return TensorDataset(inputs[train], targets[train]), TensorDataset(inputs[validation], targets[validation])


def error(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the share of wrong answers."""
    return (logits.argmax(dim=1) != targets).float().mean()


class Classifier(pl.LightningModule):
    """A small network with batch normalization."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        width = config["width"]
        self.network = nn.Sequential(
            nn.Linear(64, width),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )

    def training_step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Return the training loss, and the error for the training curve."""
        inputs, targets = batch
        logits = self.network(inputs)
        return {"loss": functional.cross_entropy(logits, targets), "error": error(logits.detach(), targets)}

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Log the loss and the objective."""
        inputs, targets = batch
        logits = self.network(inputs)
        self.log("val_loss", functional.cross_entropy(logits, targets), batch_size=len(targets))
        self.log("val_error", error(logits, targets), batch_size=len(targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that the configuration describes."""
        return build_optimizer(self.config, self.parameters())


def design_round(n_trials: int, seed: int) -> Round:
    """Return the round: its goal, and which hyperparameter plays which role."""
    optimizers = ["adam", "nesterov"]
    return Round(
        GOAL,
        scientific={"optimizer": optimizers},
        nuisance={},
        conditional={"optimizer": {name: optimizer_space(name, n_trials // 2) for name in optimizers}},
        fixed={"width": 64, "weight_decay": 1e-3, "batch_size": 64, "max_train_steps": 300},
        n_trials=n_trials,
        seed=seed,
    )


def train(config: dict[str, Any], checkpoints: Path, data: tuple[TensorDataset, TensorDataset]) -> TrialRecord:
    """Train one configuration and return its record; a diverged run raises InfeasibleError with the record in it."""
    training, validation = data
    recorder = TrialRecorder("val_error", "min", train="error")
    trainer = pl.Trainer(
        max_steps=config["max_train_steps"],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            LearningRateWarmup(WARMUP_STEPS),
            PercentileGradientClipping(),
            PeriodicEvaluation(STEPS_BETWEEN_EVALUATIONS),
            WeightEMA(),
            BatchNormSync(),
            recorder,
            BestCheckpoints("val_error", "min", save_top_k=1, dirpath=checkpoints),
        ],
    )
    trainer.fit(
        Classifier(config),
        DataLoader(training, batch_size=config["batch_size"], shuffle=True, drop_last=True),
        DataLoader(validation, batch_size=len(validation)),
    )
    return recorder.record


def log_to_wandb(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """Log one finished trial to Weights & Biases, offline when not logged in."""
    import wandb

    record = trials_from_study(study).select([-1])
    [curve], [status], [objective] = record.curves, record.status, record.objective
    is_logged_in = wandb.api.api_key is not None
    run = wandb.init(
        project="playbook-quickstart",
        group=study.study_name,
        name=f"trial {trial.number}",
        config=trial.params,
        mode="online" if is_logged_in else "offline",
        dir="runs",
        settings=wandb.Settings(silent=True),
    )
    if curve is not None:
        for row, step in enumerate(curve.step):
            run.log({"val_error": curve.validation[row], "train_error": curve.train[row]}, step=int(step))
    # The same flat keys for every run: a chart leaves out the runs that lack one of its keys.
    run.summary.update({"playbook_objective": float(objective), "playbook_status": str(status)})
    run.finish()


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print the findings, what to do first at the top."""
    flags = [word(finding) for finding in findings if finding.verdict is Verdict.FLAG]
    table = Table(title="What the playbook's checklist says", title_justify="left", show_lines=True)
    table.add_column("finding", overflow="fold", ratio=3)
    table.add_column("what to do", overflow="fold", ratio=2)
    for words in flags:
        table.add_row(f"[bold]{words.headline}[/bold]\n{words.sentence}", words.action)
    if flags:
        console.print(table)
    else:
        console.print("No check of the playbook's checklist raised a flag.")
    # The page holds every sentence; here those that ask for something.
    for verdict in (Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE):
        n_questions = len(word_quiet([finding for finding in findings if finding.verdict is verdict]))
        console.print(f"{VERDICTS[verdict]}: {n_questions} questions.")


def keep_notes_in(log: Path) -> None:
    """Send the libraries' notes and warnings on every trial to a file: the terminal shows one progress bar."""
    notes = logging.FileHandler(log, delay=True)
    notes.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "optuna", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [notes], False


def main() -> None:
    """Run the round, or go on with it, and write its page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=48, help="number of trials in all (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="draw of the search and of the weights (default: 0)")
    parser.add_argument("--storage", help="Optuna storage URL (default: an SQLite file in runs/)")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart.html"), help="the page to write")
    parser.add_argument("--picture", type=Path, help="also draw the axis plot of Nesterov's learning rate")
    parser.add_argument("--wandb", action="store_true", help="log every trial to Weights & Biases too")
    arguments = parser.parse_args()

    started = time.monotonic()
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    keep_notes_in(runs / "quickstart.log")
    # Networks this small train faster on one core.
    torch.set_num_threads(1)
    console = Console()
    design = design_round(arguments.trials, arguments.seed)
    storage = arguments.storage or f"sqlite:///{runs / 'quickstart.db'}"
    study = design.create_study(study_name=f"digits-seed-{arguments.seed}", storage=storage, load_if_exists=True)
    track(study)
    data = load_data()

    def train_trial(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        pl.seed_everything(arguments.seed, verbose=False)
        return train(config, runs / "checkpoints" / study.study_name / f"trial-{trial.number}", data)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("trials", total=arguments.trials)

        def show(study: optuna.Study, _: optuna.trial.FrozenTrial) -> None:
            trials = trials_from_study(study)
            best = trials.ranking()[:1]
            words = f"best validation error {trials.objective[best[0]]:.2%}" if len(best) else "no feasible trial yet"
            done = int(trials.is_judged.sum())
            progress.update(bar, completed=done, description=f"{words}, {int(trials.is_infeasible.sum())} infeasible")

        callbacks = [show, log_to_wandb] if arguments.wandb else [show]
        design.optimize(study, train_trial, callbacks=callbacks)
        progress.update(bar, completed=arguments.trials)

    trials = trials_from_study(study)
    print_findings(review(trials), console)
    proposal = next_round(design, trials)
    page = write_report(trials, arguments.output, next_round=proposal, sheet=study_sheet(storage, [study.study_name]))
    if arguments.picture:
        axis_plot(trials, "nesterov.learning_rate").save(arguments.picture)
    console.print(f"The page, after {time.monotonic() - started:.0f} seconds: {page.resolve()}", soft_wrap=True)


if __name__ == "__main__":
    main()
