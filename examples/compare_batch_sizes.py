"""From which batch size on do larger batches no longer save training steps, on handwritten digits?

The playbook's "Choosing the batch size to minimize training time": each batch size gets its own small quasi-random
search over learning rate and momentum, because a size with the hyperparameters of another looks worse than it is. All
sizes face the same points and train for the same number of steps. What counts is the fewest steps to one goal, a
validation loss; where the steps cease to halve as the batch doubles lies the critical batch size.

The runs are an Optuna study: start the script again to go on where it stopped.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import FloatDistribution
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from playbook_plugins.analysis import Curve, InfeasibleError, TrialRecord
from playbook_plugins.charts import steps_to_target_chart
from playbook_plugins.lightning import build_optimizer
from playbook_plugins.optuna import BatchSizeComparison, compare_batch_sizes
from playbook_plugins.report import write_report

# In nats; guessing gives 2.3.
GOAL = 0.3
NUISANCE = {
    "learning_rate": FloatDistribution(0.005, 2.0, log=True),
    "one_minus_momentum": FloatDistribution(0.02, 1.0, log=True),
}


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return 1,347 scans of 8 x 8 pixels and their digits for training, then 450 for validation."""
    scans, digits = load_digits(return_X_y=True)
    parts = train_test_split(scans / 16.0, digits, test_size=450, random_state=0, stratify=digits)
    training, validation, targets, answers = (torch.tensor(part) for part in parts)
    return training.float(), targets, validation.float(), answers


def train(config: dict[str, Any], data: tuple[Tensor, Tensor, Tensor, Tensor]) -> TrialRecord:
    """Train until the goal is beaten or the steps are spent, evaluate after every step, and return the record."""
    training, targets, validation, answers = data
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = build_optimizer(config, network.parameters())

    def evaluate() -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(network(validation), answers))

    losses = [evaluate()]
    while losses[-1] >= GOAL and len(losses) <= config["max_train_steps"]:
        # With replacement: batches larger than the data set stay what their size says.
        rows = torch.randint(len(training), (config["batch_size"],))
        optimizer.zero_grad()
        functional.cross_entropy(network(training[rows]), targets[rows]).backward()
        optimizer.step()
        losses.append(evaluate())
        if not math.isfinite(losses[-1]):
            raise InfeasibleError(f"diverged: the validation loss is {losses[-1]} after step {len(losses) - 1}")
    return TrialRecord(
        direction="minimize",
        objective_name="val_loss",
        max_steps=config["max_train_steps"],
        curve=Curve.from_columns(range(len(losses)), losses),
    )


def tabulate(comparison: BatchSizeComparison) -> Table:
    """Return the fewest steps of each batch size, with the hyperparameters that made them."""
    table = Table(title=f"Fewest steps to a validation loss below {GOAL}", title_justify="left")
    for heading in ("batch size", "steps", "examples", "learning rate", "momentum", "trials"):
        table.add_column(heading, justify="right")
    steps, trials = comparison.steps, comparison.trials["search"]
    for place, size in enumerate(steps.batch_size.tolist()):
        row = int(steps.best_row[place])
        if row < 0:
            table.add_row(str(size), f"> {steps.last_step[place]}", "", "", "", str(steps.n_trials[place]))
            continue
        best = trials.config(row)
        numbers = (
            f"{steps.steps[place]:.0f}",
            f"{steps.steps[place] * size:,.0f}",
            f"{best['learning_rate']:.3g}",
            f"{1 - best['one_minus_momentum']:.3g}",
        )
        table.add_row(str(size), *numbers, str(steps.n_trials[place]))
    return table


def main() -> None:
    """Search what is missing, print the table, draw the chart and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24, help="trials of each batch size (default: 24)")
    parser.add_argument("--output", type=Path, default=Path("runs/compare_batch_sizes"), help="the folder to write to")
    parser.add_argument("--short", action="store_true", help="fewer sizes, trials and steps, to see that it works")
    arguments = parser.parse_args()

    arguments.output.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Networks this small train faster on one core.
    torch.set_num_threads(1)
    sizes = [4, 16, 64, 256] if arguments.short else [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
    data = load_data()
    comparison = compare_batch_sizes(
        lambda config: train(config, data),
        {"optimizer": "nesterov", "max_train_steps": 300 if arguments.short else 1000},
        batch_sizes=sizes,
        nuisance=NUISANCE,
        goal=GOAL,
        n_trials=10 if arguments.short else arguments.trials,
        study_name="digits-short" if arguments.short else f"digits-{arguments.trials}",
        storage=f"sqlite:///{arguments.output / 'study.db'}",
    )
    console = Console()
    console.print(tabulate(comparison))
    scaling = comparison.scaling
    if scaling.value is None:
        console.print(f"No critical batch size: {scaling.refusal}.")
    else:
        console.print(
            f"Critical batch size {scaling.value:.0f}, {scaling.confidence:.0%} interval {scaling.low:.0f} to "
            f"{scaling.high:.0f}; however large the batch, at least {scaling.minimal_steps:.0f} steps."
        )
    if comparison.recommendation:
        settings = ", ".join(f"{name} {value:.3g}" for name, value in comparison.recommendation.items())
        console.print(f"The largest batch whose last doubling still saves a tenth of the steps: {settings}.")
    chart = steps_to_target_chart(scaling).save(arguments.output / "steps_to_target.svg")
    page = write_report(comparison, arguments.output / "report.html", title="Which batch size?")
    console.print(f"The chart: {chart.resolve()}", soft_wrap=True)
    console.print(f"The page: {page.resolve()}", soft_wrap=True)


if __name__ == "__main__":
    main()
