"""Does warmup or gradient clipping let this network train at a larger learning rate? By how much?

The playbook's answer to failing optimization ("How can optimization failures be debugged and mitigated?"), carried out
on deep and narrow transformers that normalize after the residual sum, ``Norm(x + f(x))``, which it names as a cause of
trouble. They learn to predict the next character of Python's own help texts. Two of them are unstable for two reasons:

- ten blocks and RMSProp, whose mean of squared gradients starts at zero: its first steps are far too long, which is
  what warmup is for;
- four blocks and momentum, with an output layer that starts four times too large: its first gradients are outliers,
  which is what clipping is for. The threshold is first the playbook's, the 90th percentile of the norms of the best run
  without clipping, then a smaller one, the 75th.

Each trains over a sweep of learning rates with and without the remedy, with three seeds, always for the same number of
steps. A run is unstable, and marked infeasible, where its loss ceases to be finite, rises (a flag of
`check_stability`), or ends less than half a nat below what the frequencies of the single characters give: a network
that has lost sight of its input still gets that far.

The runs are Optuna studies: start the script again to go on where it stopped. Beside the table that it prints it draws
what the playbook's figures 4, 5, 7, 8 and 9 show, from these runs, and writes one page.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, TypeAlias

import numpy as np
import optuna
import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.analysis import (
    Curve,
    InfeasibleError,
    Status,
    TrialRecord,
    Trials,
    Verdict,
    check_stability,
)
from playbook_plugins.charts import (
    axis_plot,
    gradient_norm_chart,
    gradient_norm_histogram,
    learning_rate_sweep_chart,
    run_comparison_chart,
    warmup_sweep_chart,
)
from playbook_plugins.lightning import (
    InstabilityProbe,
    LearningRateWarmup,
    PercentileGradientClipping,
    PeriodicEvaluation,
    TrialRecorder,
    build_optimizer,
    probe_instability,
)
from playbook_plugins.optuna import Plan, kept_record, run_plan
from playbook_plugins.report import word, write_report

CHARACTERS = "\n abcdefghijklmnopqrstuvwxyz0123456789.,;:'\"()[]{}<>_-+*/="
CONTEXT, WIDTH_OF_NETWORK, N_HEADS, BATCH_SIZE, N_VALIDATION = 16, 48, 4, 16, 64
# In nats per character, below the entropy of the single characters.
LEAST_GAIN = 0.5
# What makes a run unstable; outlying gradient norms and short spikes that pass do not.
BREAKS = ("non-finite", "early instability", "no progress", "loss rise")
N_EVALUATIONS = 75
# So many steps that no run has them: the norms are measured, and nothing is clipped.
NEVER = 10**9

# A function and its arguments.
Job: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A network with the optimizer that makes it unstable, and what is to be compared.

    The remedies are entries of the configuration, by their names; a clip threshold is a percentile, in [0, 100], of
    the norms of the best run without clipping.
    """

    name: str
    fixed: dict[str, Any]
    remedies: dict[str, dict[str, Any]]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Sweeps:
    """The runs of one workload and seed: all learning rates without a remedy, and with each."""

    bare: Trials
    treated: dict[str, Trials]


def rates_between(low: int, high: int) -> tuple[float, ...]:
    """Return learning rates, four a decade: 10 ** (low / 4) to 10 ** (high / 4), to three digits."""
    return tuple(float(f"{10 ** (exponent / 4):.3g}") for exponent in range(low, high + 1))


def choose_workloads(is_short: bool) -> tuple[Workload, Workload]:
    """Return the workloads of warmup and of clipping; the short ones are smaller in every respect and prove nothing."""
    rmsprop = {"optimizer": "rmsprop", "one_minus_rho": 0.001, "n_blocks": 10, "output_scale": 1.0}
    momentum = {"optimizer": "momentum", "one_minus_momentum": 0.1, "n_blocks": 4, "output_scale": 4.0}
    seeds: tuple[int, ...] = (0, 1, 2)
    # After the warmup comes twice its length, as the playbook has it ("Learning rate warmup").
    warmup_steps, rmsprop["max_steps"], rates = 120, 360, rates_between(-16, -10)
    momentum["max_steps"], momentum_rates = 200, rates_between(-5, 0)
    if is_short:
        seeds = (0,)
        rmsprop |= {"n_blocks": 2, "max_steps": 90}
        warmup_steps, rates = 30, rates[4::2]
        momentum |= {"n_blocks": 1, "max_steps": 90}
        momentum_rates = momentum_rates[1:5:2]
    percentiles = {f"clipping, {percent}th pct": {"clip_threshold": percent} for percent in (90, 75)}
    return (
        Workload(
            name="short warmup" if is_short else "warmup",
            fixed=rmsprop,
            remedies={f"warmup, {warmup_steps} steps": {"warmup_steps": warmup_steps}},
            rates=rates,
            seeds=seeds,
        ),
        Workload(
            name="short clipping" if is_short else "clipping",
            fixed=momentum,
            remedies=percentiles,
            rates=momentum_rates,
            seeds=seeds,
        ),
    )


def load_text() -> Tensor:
    """Return Python's help texts as numbers of characters, shape (n_characters,)."""
    text = "\n".join(topics[name] for name in sorted(topics)).lower()
    number = {character: place for place, character in enumerate(CHARACTERS)}
    return torch.tensor([number[character] for character in text if character in number])


def split_text(text: Tensor) -> tuple[TensorDataset, TensorDataset]:
    """Return windows of the first nine tenths for training, and 64 of the rest for validation."""
    windows = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    n_train = len(windows) * 9 // 10
    rest = windows[n_train:]
    return TensorDataset(windows[:n_train]), TensorDataset(rest[:: len(rest) // N_VALIDATION][:N_VALIDATION])


def entropy(text: Tensor) -> float:
    """Return the entropy of the single characters, in nats: the loss of whoever knows their frequencies only."""
    share = torch.bincount(text).double() / len(text)
    return -float((share[share > 0] * share[share > 0].log()).sum())


class Block(nn.Module):
    """Attention and a small network, each normalized after the residual sum."""

    def __init__(self) -> None:
        super().__init__()
        width = WIDTH_OF_NETWORK
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the next layer, of the shape of the inputs: (batch, position, width)."""
        n, length, width = inputs.shape
        parts = self.project(inputs).view(n, length, 3, N_HEADS, width // N_HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True).transpose(1, 2)
        hidden = self.norms[0](inputs + self.merge(mixed.reshape(n, length, width)))
        return self.norms[1](hidden + self.network(hidden))


class CharacterModel(pl.LightningModule):
    """Predicts each character from those before it."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.characters = nn.Embedding(len(CHARACTERS), WIDTH_OF_NETWORK)
        self.positions = nn.Embedding(CONTEXT, WIDTH_OF_NETWORK)
        self.blocks = nn.Sequential(*(Block() for _ in range(config["n_blocks"])))
        self.output = nn.Linear(WIDTH_OF_NETWORK, len(CHARACTERS))
        with torch.no_grad():
            self.output.weight *= config["output_scale"]

    def loss(self, windows: Tensor) -> Tensor:
        """Return the cross-entropy in nats per character."""
        hidden = self.blocks(self.characters(windows[:, :-1]) + self.positions.weight)
        return functional.cross_entropy(self.output(hidden).flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the loss of one batch."""
        return self.loss(batch[0])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Log the loss of the validation windows."""
        self.log("val_loss", self.loss(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer that the configuration describes."""
        return build_optimizer(self.config, self.parameters())


def loaders(data: tuple[TensorDataset, TensorDataset]) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of training and validation."""
    training, validation = data
    return DataLoader(training, BATCH_SIZE, shuffle=True, drop_last=True), DataLoader(validation, N_VALIDATION)


def train(config: dict[str, Any], text: Tensor) -> TrialRecord:
    """Train one configuration and return its record; an unstable run raises InfeasibleError with the record in it."""
    pl.seed_everything(config["seed"], verbose=False)
    max_steps, threshold = config["max_steps"], config["clip_threshold"]
    recorder = TrialRecorder("val_loss", "min")
    trainer = pl.Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            # Runs with and without warmup have the same number of steps, so that none gains by training longer.
            LearningRateWarmup(config["warmup_steps"], extend_max_steps=False, max_share=1.0),
            PercentileGradientClipping(threshold=threshold, min_steps=NEVER),
            PeriodicEvaluation(max(1, max_steps // N_EVALUATIONS)),
            recorder,
        ],
    )
    trainer.fit(CharacterModel(config), *loaders(split_text(text)))
    record = recorder.record
    reason = why_unstable(record, entropy(text) - LEAST_GAIN)
    if reason:
        error = InfeasibleError(reason)
        error.record = replace(record, status=Status.INFEASIBLE, reason=reason)
        raise error
    return record


def why_unstable(record: TrialRecord, highest: float) -> str:
    """Return what makes a finished run unstable, "" where nothing does."""
    for finding in check_stability(record):
        if finding.check in BREAKS and finding.verdict is Verdict.FLAG:
            return f"{finding.check} at step {finding.numbers['step']}"
    final = record.final_objective
    return "" if final < highest else f"the final loss is {final:.3g}, not below {highest:.3g}"


def carry_out(storage: str, name: str, plan: Plan) -> Trials:
    """Return the runs of a plan, trained where they are missing; those that another process has in hand included."""
    text = load_text()
    while True:
        trials = run_plan(plan, lambda config: train(config, text), study_name=name, storage=storage)
        if Status.RUNNING not in trials.status:
            return trials
        time.sleep(1)


def load_record(storage: str, trials: Trials, row: int) -> TrialRecord:
    """Return the whole record of a run, with the gradient norms of all steps."""
    study = optuna.load_study(study_name=trials.name, storage=storage)
    record = kept_record(study.trials[int(trials.number[row])])
    if record is None:
        raise ValueError(f"`trials` of {trials.name!r} has no record of trial {trials.number[row]}. Train it again.")
    return record


def sweep_rates(storage: str, workload: Workload, seed: int) -> Sweeps:
    """Train all learning rates without a remedy, then with each."""
    points = tuple({"learning_rate": rate} for rate in workload.rates)

    def sweep(name: str, **remedy: Any) -> Trials:
        plan = Plan(
            goal=f"Which learning rates train stably: {name}?",
            points=points,
            fixed={**workload.fixed, "warmup_steps": 0, "clip_threshold": None, **remedy},
            passed=({"seed": seed},) * len(points),
            log=("learning_rate",),
        )
        return carry_out(storage, f"{workload.name}, seed {seed}: {name}", plan)

    bare = sweep("no remedy")
    best = int(bare.ranking()[0]) if bare.is_feasible.any() else 0
    treated = {}
    for name, entries in workload.remedies.items():
        remedy = dict(entries)
        if "clip_threshold" in remedy:
            remedy["clip_threshold"] = load_record(storage, bare, best).clip_threshold(remedy["clip_threshold"])
        treated[name] = sweep(name, **remedy)
    return Sweeps(bare, treated)


def sweep_warmups(storage: str, workload: Workload) -> Trials:
    """Train several lengths of warmup at base learning rates in the upper half of the sweep."""
    [remedy] = workload.remedies.values()
    longest, n_rates = remedy["warmup_steps"], len(workload.rates)
    base_rates = sorted({workload.rates[n_rates // 2], workload.rates[-2]})
    lengths = sorted({0, longest // 8, longest // 3, longest})
    points = tuple({"learning_rate": rate, "warmup_steps": steps} for rate in base_rates for steps in lengths)
    plan = Plan(
        goal="What is the shortest warmup that allows a base learning rate?",
        points=points,
        fixed={**workload.fixed, "clip_threshold": None},
        passed=({"seed": workload.seeds[0]},) * len(points),
        log=("learning_rate", "warmup_steps"),
    )
    return carry_out(storage, f"{workload.name}: lengths", plan)


def largest_stable(trials: Trials) -> float:
    """Return the largest learning rate that trained stably, NaN where none did."""
    rates = trials.values["learning_rate"][trials.is_feasible]
    return float(rates.max()) if len(rates) else float("nan")


def pattern(trials: Trials) -> str:
    """Return a sign for each learning rate, the smallest first: o for stable, x for unstable."""
    order = np.argsort(trials.values["learning_rate"])
    return "".join("o" if trials.is_feasible[row] else "x" for row in order)


def tabulate(workloads: dict[str, tuple[Workload, list[Sweeps]]]) -> Table:
    """Return the largest stable learning rates by remedy and seed, with their ratios."""
    table = Table(title="The largest stable learning rate (o: stable, x: unstable)", title_justify="left")
    for heading in ("remedy", "seed", "without", "with", "ratio"):
        table.add_column(heading, justify="left" if heading == "remedy" else "right")
    for workload, sweeps in workloads.values():
        for name in workload.remedies:
            ratios = []
            for seed, one in zip(workload.seeds, sweeps, strict=True):
                tables = (one.bare, one.treated[name])
                limits = [largest_stable(trials) for trials in tables]
                ratios.append(limits[1] / limits[0])
                cells = [f"{limit:.3g} {pattern(trials)}" for limit, trials in zip(limits, tables, strict=True)]
                # A limit at the end of the sweep is known to be at least so large.
                at_least = ">= " if limits[1] == workload.rates[-1] else ""
                table.add_row(name, str(seed), *cells, f"{at_least}{ratios[-1]:.3g}")
            table.add_row("", "least", "", "", f"[bold]{min(ratios):.3g}[/bold]", end_section=True)
    return table


def draw_figures(
    storage: str, warmup: Sweeps, clipping: Sweeps, lengths: Trials, probe: InstabilityProbe, folder: Path
) -> list[Path]:
    """Draw what the playbook's figures show, by the runs of the first seed, as SVG and as PNG."""
    charts = {"figure-4-sweep": learning_rate_sweep_chart({"no warmup": warmup.bare, **warmup.treated})}
    twice = probe.records[2.0]
    every = max(1, len(twice.curve) // 4)
    charts["figure-5-evaluations"] = run_comparison_chart(
        {"evaluated at every step": twice, f"every {every} steps": seldom(twice, every)},
        split="validation",
        title="Validation loss at twice the best learning rate",
    )
    charts["figure-7a-axis"] = axis_plot(warmup.bare, "learning_rate")
    charts["figure-7b-losses"] = run_comparison_chart(
        {f"x {factor:g}": record for factor, record in probe.records.items()},
        average=5,
        title="Training loss at multiples of the best learning rate",
    )
    charts["figure-8-warmup"] = warmup_sweep_chart(lengths)
    # The smallest rate that only clipping makes stable; where there is none, as in a short run, the largest.
    name, clipped = list(clipping.treated.items())[-1]
    cured = np.flatnonzero(~clipping.bare.is_feasible & clipped.is_feasible)
    row = int(cured[0]) if len(cured) else len(clipped) - 1
    records = {"no clipping": clipping.bare, name: clipped}
    records = {one: load_record(storage, trials, row) for one, trials in records.items()}
    charts["figure-9-clipping"] = run_comparison_chart(
        records,
        average=2,
        title=f"Training loss at a learning rate of {clipped.values['learning_rate'][row]:.3g}",
    )
    charts["figure-9-norms"] = gradient_norm_chart(records[name])
    charts["figure-9-histogram"] = gradient_norm_histogram(records[name])
    return [chart.save(folder / f"{stem}.{kind}") for stem, chart in charts.items() for kind in ("svg", "png")]


def seldom(record: TrialRecord, every: int) -> TrialRecord:
    """Return the record as it would be with fewer evaluations."""
    curve = record.curve
    return replace(record, curve=Curve.from_columns(curve.step[::every], curve.validation[::every]))


def probe_best(workload: Workload, bare: Trials) -> InstabilityProbe:
    """Train at 1, 2, 5 and 10 times the best learning rate without a remedy, evaluated at every step."""
    text = load_text()
    training, validation = loaders(split_text(text))
    best = int(bare.ranking()[0]) if bare.is_feasible.any() else 0
    pl.seed_everything(workload.seeds[0], verbose=False)
    model = CharacterModel({**workload.fixed, "learning_rate": float(bare.values["learning_rate"][best])})
    max_steps = max(60, workload.fixed["max_steps"] // 2)
    return probe_instability(model, training, validation=validation, max_steps=max_steps, accelerator="cpu")


def prepare(log: str) -> None:
    """Set a process up: one thread, since the networks are small, and the libraries' notes in a file."""
    torch.set_num_threads(1)
    notes = logging.FileHandler(log, delay=True)
    notes.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "optuna", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [notes], False
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: BaseProcess) -> None:
    """End this process when its parent is gone: a pool's processes would wait for a killed one for ever."""
    parent.join()
    os._exit(1)


def work(jobs: list[Job], n_processes: int, log: str) -> Iterator[Any]:
    """Yield what the jobs return, in their order, done by this process or by several others."""
    if n_processes == 1:
        yield from map(do, jobs)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, mp_context=spawn, initializer=prepare, initargs=(log,)) as pool:
        yield from pool.map(do, jobs)


def do(job: Job) -> Any:
    """Call a function with its arguments."""
    function, *arguments = job
    return function(*arguments)


def main() -> None:
    """Train what is missing, print the table, draw the figures and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/instability"), help="the folder to write to")
    parser.add_argument("--processes", type=int, help="how many processes train (default: 2, in a short run 1)")
    parser.add_argument("--short", action="store_true", help="smaller networks, fewer runs: only to see that it works")
    arguments = parser.parse_args()

    started = time.monotonic()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    log = str(folder / "instability.log")
    prepare(log)
    console = Console()
    storage = f"sqlite:///{folder / 'instability.db'}"
    # Made before several processes try to at once.
    optuna.storages.RDBStorage(storage)
    warmup, clipping = choose_workloads(arguments.short)
    if arguments.short:
        console.print("A short run, to see that all works: its ratios say nothing.")

    # The longest first, so that no process is left with one of them at the end.
    jobs: list[Job] = [(sweep_rates, storage, warmup, seed) for seed in warmup.seeds]
    jobs += [(sweep_warmups, storage, warmup)]
    jobs += [(sweep_rates, storage, clipping, seed) for seed in clipping.seeds]
    results: list[Any] = []
    n_processes = arguments.processes if arguments.processes is not None else 1 if arguments.short else 2
    for one in work(jobs, n_processes, log):
        results.append(one)
        console.print(f"{len(results)} of {len(jobs)} sweeps are done.")
    n_seeds = len(warmup.seeds)
    lengths = results.pop(n_seeds)
    workloads = {"warmup": (warmup, results[:n_seeds]), "clipping": (clipping, results[n_seeds:])}

    first: list[Sweeps] = [sweeps[0] for _, sweeps in workloads.values()]
    probe = probe_best(warmup, first[0].bare)
    figures = draw_figures(storage, *first, lengths, probe, folder)
    tables = [trials for one in first for trials in (one.bare, *one.treated.values())]
    page = write_report([*tables, lengths], folder / "report.html", title="Warmup, clipping and the learning rate")
    console.print(tabulate(workloads))
    limit = probe[0]
    words = word(limit).sentence if limit.verdict is Verdict.FLAG else "no run is flagged by its loss; see figure 7b."
    console.print(f"At multiples of the best learning rate without warmup: {words}")
    console.print(f"{len(figures)} files of figures and the page: {page.resolve()}", soft_wrap=True)
    console.print(f"{time.monotonic() - started:.0f} seconds.")


if __name__ == "__main__":
    main()
