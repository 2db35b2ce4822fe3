"""Does each callback do what its support matrix says, in a real Trainer of both packages?

A fit of `support_runs` is checked whole, whichever callbacks took part: the rates of every step, the steps and the
weights of every evaluation, the weights with which training goes on, and the files.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import support_runs
import torch
from averaging_toys import restore
from lightning_toys import PACKAGES, QUIET
from support_runs import BASE, CELLS, DECAY, EVERY, GAMMA, N_STEPS, N_WARMUP, SAVED_AT, Notes, fit, make_stack

import playbook_plugins.lightning
from playbook_plugins.analysis import Status, TrialRecord
from playbook_plugins.lightning import LearningRateWarmup
from playbook_plugins.lightning.batch_norm import pool_moments
from playbook_plugins.lightning.checkpoint_index import CheckpointIndex

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:LearningRateWarmup takes"),
    # What torch's compiler says of its own modules, when it loads them.
    pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated"),
]

ROWS = ["precision", "accumulation", "manual optimization", "ddp", "ddp_spawn", "FSDP", "DeepSpeed", "compile"]
CALLBACKS = ["LearningRateWarmup", "PeriodicEvaluation", "WeightEMA", "BatchNormSync", "BestCheckpoints"]
WHOLE_MODELS = CALLBACKS[2:]
EXPORTED = [
    kind
    for kind in vars(playbook_plugins.lightning).values()
    if inspect.isclass(kind) and issubclass(kind, pytorch_lightning.Callback)
]


def parse_support(docstring: str) -> dict[str, str]:
    """Return the cells of a docstring's support matrix.

    Raises
    ------
    ValueError
        When a row is missing, misplaced, or says neither yes nor refused.
    """
    match = re.search(r"^Support\n((?:  .+\n?)+)", inspect.cleandoc(docstring), re.MULTILINE)
    lines = match[1].splitlines() if match else []
    cells = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines)
    if list(cells) != ROWS:
        raise ValueError(f"the rows are {list(cells)}")
    for row, cell in cells.items():
        if not re.match(r"(yes|refused): \S", cell):
            raise ValueError(f"{row} says {cell!r}")
    return cells


@pytest.mark.parametrize("kind", EXPORTED, ids=lambda kind: kind.__name__)
def test_every_callback_has_its_support_matrix(kind: type) -> None:
    cells = parse_support(str(kind.__doc__))
    assert cells["DeepSpeed"].startswith("refused: ")


def test_the_callbacks_of_this_file_are_exported() -> None:
    assert set(CALLBACKS) <= {kind.__name__ for kind in EXPORTED}


def test_a_matrix_with_a_hole_is_found() -> None:
    whole = str(LearningRateWarmup.__doc__)
    for row in ROWS:
        lines = [line for line in whole.splitlines() if not line.strip().startswith(f"{row}  ")]
        with pytest.raises(ValueError, match="the rows are"):
            parse_support("\n".join(lines))
    with pytest.raises(ValueError, match="FSDP says 'not tested: "):
        parse_support(re.sub(r"(FSDP +)yes", r"\1not tested", whole))
    with pytest.raises(ValueError, match="the rows are"):
        parse_support("Do something.")


def make(name: str, folder: Path) -> Any:
    return next(callback for callback in make_stack(folder) if type(callback).__name__ == name)


def steps_of(cell: str, callbacks: Sequence[str]) -> int:
    """Return the optimizer steps of a fit, those of two optimizers together."""
    one = N_STEPS + N_WARMUP * ("LearningRateWarmup" in callbacks)
    return 2 * one if cell == "manual optimization" else one


def expected_rates(callbacks: Sequence[str]) -> list[float]:
    rates = [BASE * step / N_WARMUP for step in range(N_WARMUP)] if "LearningRateWarmup" in callbacks else []
    rate = BASE
    for _ in range(N_STEPS):
        rates.append(rate)
        rate *= GAMMA
    return rates


def expected_weights(ranks: Sequence[Any], step: int, cell: str, callbacks: Sequence[str]) -> dict[str, Any]:
    """Return the weights with which to evaluate, by the definitions, in float64."""
    # The batch that overflows is the fourth of an epoch of eight.
    skipped = {4, 12} if cell == "16-mixed" else set()
    states = []
    for notes in ranks:
        state = {name: value.double() for name, value in notes.trained[step].items()}
        done = [known for known in sorted(notes.trained) if 0 < known <= step and known not in skipped]
        if "WeightEMA" in callbacks and done:
            for name, value in notes.trained[step].items():
                if value.is_floating_point():
                    state[name] = notes.trained[done[0]][name].double()
                    for known in done[1:]:
                        state[name] = DECAY * state[name] + (1 - DECAY) * notes.trained[known][name].double()
        states.append(state)
    pooled = dict(states[0])
    if "BatchNormSync" in callbacks:
        names = [f"first.1.running_{moment}" for moment in ("mean", "var")]
        moments = pool_moments(*(torch.stack([state[name] for state in states]) for name in names))
        pooled |= dict(zip(names, moments, strict=True))
    return pooled


def loss_of(weights: dict[str, Any], n_ranks: int) -> float:
    model = support_runs.make_regression(pytorch_lightning).double()
    model.load_state_dict(weights)
    model.eval()
    _, validation = support_runs.make_loaders(n_ranks)
    with torch.no_grad():
        losses = [model.loss([part.double() for part in batch]) for batch in validation]
    return float(torch.stack(losses).mean())


def check_fit(ranks: Sequence[Any], cell: str, callbacks: Sequence[str], folder: Path) -> None:
    """Assert that every callback did what it promises, and changed nothing else."""
    coarse = cell.startswith(("bf16", "16"))
    n_steps = steps_of(cell, callbacks)
    for notes in ranks:
        places = [0, 1] if cell == "manual optimization" else [0]
        for place in places:
            assert [rate for at, rate in notes.rates if at == place] == expected_rates(callbacks)
        assert notes.limit == n_steps
        if "PeriodicEvaluation" in callbacks:
            assert list(notes.seen) == sorted({*range(0, n_steps, EVERY), n_steps})
        assert list(notes.seen) == list(notes.scores)
        for step, seen in notes.seen.items():
            expected = expected_weights(ranks, step, cell, callbacks)
            tolerance = {"64-true": 1e-12, "bf16-true": 1e-2}.get(cell, 1e-5)
            for name, value in seen.items():
                torch.testing.assert_close(value.double(), expected[name], rtol=tolerance, atol=tolerance, msg=name)
            # By another way than the Trainer's, eagerly and in float64.
            loss = loss_of(seen, len(ranks))
            assert notes.scores[step] == pytest.approx(loss, rel=0.05 if coarse else 1e-5)
        for step, weights in notes.after.items():
            assert all(torch.equal(value, notes.trained[step][name]) for name, value in weights.items())
        last = max(notes.seen)
        if last == n_steps:
            assert all(torch.equal(value, notes.final[name]) for name, value in notes.seen[last].items())
    assert n_steps in ranks[0].trained
    if "BestCheckpoints" in callbacks:
        check_files(ranks[0], folder)


def check_files(notes: Any, folder: Path) -> None:
    rows = CheckpointIndex.read(folder).evaluations
    assert {row.step: row.score for row in rows} == notes.scores
    for row in rows:
        file = torch.load(folder / str(row.file), weights_only=True)
        assert file["global_step"] == row.step
        assert all(torch.equal(value, notes.seen[row.step][name]) for name, value in file["state_dict"].items())


def check_same_end(notes: Any, whole: Any, after: int = 0) -> None:
    """Assert that a run saw, bit for bit, what another one saw after some step."""
    n_rates = len(notes.rates)
    assert notes.rates == whole.rates[-n_rates:]
    assert notes.losses == whole.losses[-len(notes.losses) :]
    assert {step: score for step, score in notes.scores.items() if step > after} == {
        step: score for step, score in whole.scores.items() if step > after
    }
    for mine, others in (
        (notes.trained, whole.trained),
        (notes.seen, whole.seen),
        ({0: notes.final}, {0: whole.final}),
    ):
        for step, weights in mine.items():
            if isinstance(weights, dict):
                for name, value in weights.items():
                    assert torch.equal(value, others[step][name]), (step, name)


@functools.cache
def plain_fit(package: Any, cell: str) -> Notes:
    return fit(package, [], cell)[0]


# The first use of inductor takes seconds.
ONE_PROCESS = [pytest.param(cell, marks=pytest.mark.slow) if cell == "compile" else cell for cell in CELLS]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("cell", ONE_PROCESS)
@pytest.mark.parametrize("name", CALLBACKS)
def test_one_process(name: str, cell: str, package: Any, tmp_path: Path) -> None:
    notes, _ = fit(package, [make(name, tmp_path)], cell)
    check_fit([notes], cell, [name], tmp_path)
    if name != "LearningRateWarmup":
        # Training is as it was without the callback, to the last bit.
        for step, weights in plain_fit(package, cell).trained.items():
            assert all(torch.equal(value, notes.trained[step][part]) for part, value in weights.items())


@pytest.mark.parametrize("name", ["LearningRateWarmup", "PeriodicEvaluation", "WeightEMA", "BestCheckpoints"])
def test_the_check_finds_a_callback_that_does_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_fit([plain_fit(pytorch_lightning, "32-true")], "32-true", [name], tmp_path)


COPIES: list[Callable[[Any], Any]] = [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("copied", COPIES, ids=["deepcopy", "pickle"])
@pytest.mark.parametrize(
    ("name", "cell"), [*((name, "32-true") for name in CALLBACKS), ("LearningRateWarmup", "manual optimization")]
)
def test_copies_made_before_in_and_after_a_fit(name: str, cell: str, copied: Any, package: Any, tmp_path: Path) -> None:
    callback = copied(make(name, tmp_path))
    copies = []

    class CopyInside(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 2:  # inside the warmup
                copies.append(copied(callback))

    whole, _ = fit(package, [callback, CopyInside()], cell)
    check_fit([whole], cell, [name], tmp_path)
    for one in (*copies, copied(callback)):
        again, _ = fit(package, [one], cell)
        check_same_end(again, whole)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_resumed_run_is_the_straight_run(name: str, package: Any, tmp_path: Path) -> None:
    whole, _ = fit(package, [make(name, tmp_path)], notes=Notes(save_to=tmp_path / "8.ckpt"))
    # Its own file holds its own list.
    path = tmp_path / ("step=8.ckpt" if name == "BestCheckpoints" else "8.ckpt")
    resumed, _ = fit(package, [make(name, tmp_path)], ckpt_path=path)
    assert len(resumed.rates) == len(whole.rates) - SAVED_AT
    check_same_end(resumed, whole, after=SAVED_AT)
    if name == "BestCheckpoints":
        check_files(whole, tmp_path)


def train_with_two_processes(strategy: str, folder: Path) -> dict[str, list[Any]]:
    """Return the notes of both ranks by run; the strategy's own launcher starts the second process."""
    command = [sys.executable, str(Path(support_runs.__file__)), strategy, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    runs: dict[str, list[Any]] = {}
    for path in sorted(folder.glob("*-rank?.pt")):
        runs.setdefault(path.name.removesuffix(path.name[-9:]), []).append(_Written(torch.load(path)))
    assert {len(ranks) for ranks in runs.values()} == {2}
    return runs


class _Written:
    """Notes that were read from a file."""

    def __init__(self, values: dict[str, Any]) -> None:
        vars(self).update(values)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes(strategy: str, tmp_path: Path) -> None:
    runs = train_with_two_processes(strategy, tmp_path)
    for package in support_runs.PACKAGES:
        for cell in CELLS if strategy == "ddp" else ["32-true"]:
            ranks = runs[f"{package}-{cell}"]
            check_fit(ranks, cell, CALLBACKS, tmp_path / f"{package}-{cell}")
            assert all(torch.equal(value, ranks[1].final[name]) for name, value in ranks[0].final.items())
            # Without pooling each rank would evaluate with statistics of its own.
            with pytest.raises(AssertionError):
                check_fit(ranks, cell, [name for name in CALLBACKS if name != "BatchNormSync"], tmp_path)
        for rank, whole in enumerate(runs[f"{package}-32-true"]):
            resumed = runs[f"{package}-32-true-resumed"][rank]
            assert len(resumed.rates) == len(whole.rates) - SAVED_AT
            check_same_end(resumed, whole, after=SAVED_AT)


NO_FSDP1_ON_THE_CPU = pytest.mark.skipif(
    lightning.pytorch.__version__ < "2.6",
    reason="this Lightning refuses FSDP1 before any callback could, without a GPU",
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param("fsdp1", marks=NO_FSDP1_ON_THE_CPU), "fsdp2"])
def test_two_processes_with_a_sharded_model(kind: str, tmp_path: Path) -> None:
    runs = train_with_two_processes(kind, tmp_path)
    n_parameters = sum(parameter.numel() for parameter in support_runs.make_regression(pytorch_lightning).parameters())
    for package in support_runs.PACKAGES:
        ranks = runs[f"{package}-{kind}"]
        shards = [set(notes.seen.values()) for notes in ranks]
        assert all(len(sizes) == 1 and 0 < max(sizes) < n_parameters for sizes in shards)
        for rank, whole in enumerate(ranks):
            assert [rate for _, rate in whole.rates] == expected_rates(["LearningRateWarmup"])
            assert list(whole.seen) == [0, 4, 8, 12, 14]
            assert whole.limit == 14
            resumed = runs[f"{package}-{kind}-resumed"][rank]
            assert list(resumed.seen) == [12, 14]
            assert len(resumed.rates) == len(whole.rates) - SAVED_AT
            check_same_end(resumed, whole, after=SAVED_AT)
            for run in (f"{package}-{kind}", f"{package}-{kind}-resumed"):
                record = TrialRecord.from_json((tmp_path / f"{run}-rank{rank}.json").read_text())
                assert record.status is Status.COMPLETE
                # Evaluations before the resumption too.
                curve = dict(zip(record.curve.step.tolist(), record.curve.validation.tolist(), strict=True))
                assert curve == pytest.approx(whole.scores, rel=1e-6)


def refusal(package: Any, callback: Any, folder: Path, **options: Any) -> str:
    """Return the message with which a callback refuses a strategy; leaves no process group behind."""
    environment = dict(os.environ)
    try:
        with pytest.raises(ValueError, match="`strategy` is") as caught:
            fit(package, [callback], folder=folder, **options)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        restore(environment)
    return str(caught.value)


REMEDIES = {
    "LearningRateWarmup": "Use DeepSpeed's WarmupLR, or ddp instead.",
    "PeriodicEvaluation": "Use val_check_interval of the Trainer, or ddp instead.",
    "WeightEMA": "or remove WeightEMA and average in the strategy's own way.",
    "BatchNormSync": "or use the strategy's own synchronized batch normalization.",
    "BestCheckpoints": "or use Lightning's ModelCheckpoint.",
}


def message(name: str, strategy: str) -> str:
    if name in WHOLE_MODELS:
        return (
            f"`strategy` is {strategy}, which shards the model: {name} needs the whole parameters on every rank. Train "
            f"with a single device or with DDP, {REMEDIES[name]}"
        )
    return (
        f"`strategy` is {strategy}, and {name} does not support it: it counts optimizer steps itself. {REMEDIES[name]}"
    )


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", CALLBACKS)
def test_deepspeed_is_refused(name: str, package: Any, tmp_path: Path) -> None:
    strategies = package.strategies

    class Stage2(strategies.DeepSpeedStrategy):  # type: ignore[misc]
        """The real class, of which only what needs the library itself is left out."""

        def __init__(self) -> None:
            strategies.DDPStrategy.__init__(self, process_group_backend="gloo")

        setup_environment = strategies.DDPStrategy.setup_environment
        setup_distributed = strategies.DDPStrategy.setup_distributed

    assert refusal(package, make(name, tmp_path), tmp_path, strategy=Stage2()) == message(name, "Stage2")


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", [pytest.param("fsdp1", marks=NO_FSDP1_ON_THE_CPU), "fsdp2"])
@pytest.mark.parametrize("name", WHOLE_MODELS)
def test_sharded_models_are_refused(name: str, kind: str, package: Any, tmp_path: Path) -> None:
    options = support_runs.fsdp_options(package, kind, n_devices=1)
    strategy = {"fsdp1": "FSDPStrategy", "fsdp2": "ModelParallelStrategy"}[kind]
    assert refusal(package, make(name, tmp_path), tmp_path, **options) == message(name, strategy)
