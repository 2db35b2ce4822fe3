"""Do all ranks evaluate with the statistics of all the data?"""

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import batch_norm_run
import pytest
import pytorch_lightning
import torch
from averaging_toys import LIGHTNING_WARNINGS, PACKAGES, loaders, refusal_of_sharding, toy, trainer
from batch_norm_run import EVERY, FAILS_AT, LONG, N_FEATURES, N_STEPS, SAVED_AT, make_shifted, run

from playbook_plugins.lightning.batch_norm import BatchNormSync, pool_moments

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS]
PL = pytorch_lightning


def test_pooled_moments_by_hand():
    mean, variance = pool_moments(torch.tensor([[0.0], [2.0]]).double(), torch.tensor([[1.0], [3.0]]).double())
    # E[x²] = ((1 + 0) + (3 + 4)) / 2 = 4, less the squared mean 1: not the mean variance, 2.
    assert (float(mean), float(variance)) == (1.0, 3.0)


@pytest.mark.parametrize("n_ranks", [1, 2, 5])
def test_pooled_moments_are_those_of_the_union(n_ranks):
    generator = torch.Generator().manual_seed(n_ranks)
    data = torch.randn(n_ranks, 50, 7, generator=generator, dtype=torch.float64) * 2 + 1e4
    data += torch.arange(n_ranks).double()[:, None, None]
    mean, variance = pool_moments(data.mean(dim=1), data.var(dim=1, correction=0))
    union = data.reshape(-1, 7)
    torch.testing.assert_close(mean, union.mean(dim=0), rtol=1e-14, atol=0)
    torch.testing.assert_close(variance, union.var(dim=0, correction=0), rtol=1e-10, atol=0)
    shuffled = torch.randperm(n_ranks, generator=generator)
    again = pool_moments(data.mean(dim=1)[shuffled], data.var(dim=1, correction=0)[shuffled])
    torch.testing.assert_close(again, (mean, variance))


@pytest.mark.parametrize("package", PACKAGES, ids=["pytorch_lightning", "lightning"])
def test_one_process_changes_nothing(tmp_path, package):
    plain, model = toy(package), toy(package)
    trainer(package, tmp_path, []).fit(plain, *loaders())
    fitted = trainer(package, tmp_path, [BatchNormSync()])
    fitted.fit(model, *loaders())
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    assert "BatchNormSync" not in torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]


def test_one_process_takes_up_the_pooled_statistics_of_several(tmp_path):
    fitted = trainer(PL, tmp_path, [BatchNormSync()], max_steps=8)
    fitted.fit(toy(PL), *loaders())
    fitted.save_checkpoint(tmp_path / "8.ckpt")
    checkpoint = torch.load(tmp_path / "8.ckpt", weights_only=True)
    rows = torch.rand(2, 1, 16, dtype=torch.float64) + 0.5
    checkpoint["callbacks"]["BatchNormSync"] = {"statistics": rows}
    torch.save(checkpoint, tmp_path / "8.ckpt")
    seen: list[Any] = []

    class Look(PL.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append([pl_module.norm.running_mean.clone(), pl_module.norm.running_var.clone()])

    trainer(PL, tmp_path, [BatchNormSync(), Look()], max_steps=10).fit(
        toy(PL), *loaders(), ckpt_path=tmp_path / "8.ckpt"
    )
    expected = pool_moments(rows[:, 0, :8], rows[:, 0, 8:])
    for value, pooled in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(value.double(), pooled, rtol=1e-6, atol=1e-6)

    checkpoint["callbacks"]["BatchNormSync"] = {"statistics": rows[..., :6]}
    torch.save(checkpoint, tmp_path / "8.ckpt")
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        trainer(PL, tmp_path, [BatchNormSync()]).fit(toy(PL), *loaders(), ckpt_path=tmp_path / "8.ckpt")
    assert str(caught.value) == (
        "`ckpt_path` holds 6 running statistics, the model 16: a run is resumed with the model that wrote the file. "
        "Build the same model, or load its weights without resuming."
    )


def test_sharded_strategies_are_refused(tmp_path):
    assert refusal_of_sharding(PL, tmp_path, BatchNormSync()) == (
        "`strategy` is ModelParallelStrategy, which shards the model: BatchNormSync needs the whole parameters on "
        "every rank. Train with a single device or with DDP, or use the strategy's own synchronized batch "
        "normalization."
    )


@dataclass(frozen=True)
class TwoRanks:
    """What the two processes of `batch_norm_run` left behind."""

    package: Any
    folder: Path

    def notes(self, name: str) -> list[Any]:
        return [torch.load(self.folder / f"{name}-rank{rank}.pt") for rank in range(2)]

    def file(self, name: str) -> Any:
        return torch.load(self.folder / name, weights_only=True)


@pytest.fixture(scope="module")
def train_with_two_ranks(tmp_path_factory: Any) -> Callable[[str, str], TwoRanks]:
    """Return a function of the strategy and the package that runs all fits together, once."""
    return functools.cache(lambda strategy, name: start_two_ranks(strategy, name, tmp_path_factory.mktemp("run")))


def start_two_ranks(strategy: str, name: str, folder: Path) -> TwoRanks:
    command = [sys.executable, str(Path(batch_norm_run.__file__)), strategy, name, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            process.kill()  # a rank that waits for another ignores milder signals
            raise
    if strategy == "ddp":
        assert process.returncode != 0
        assert "on purpose" in errors
    else:
        assert process.returncode == 0, errors[-4000:]
    return TwoRanks(batch_norm_run.PACKAGES[name], folder)


@pytest.fixture
def two_ranks(train_with_two_ranks: Any, strategy: str, package_name: str) -> TwoRanks:
    return train_with_two_ranks(strategy, package_name)


packages = pytest.mark.parametrize("package_name", batch_norm_run.PACKAGES)
strategies = pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
ddp_only = pytest.mark.parametrize("strategy", ["ddp"])


def names(n_layers: int, prefix: str = "") -> list[tuple[str, str]]:
    """Return the names of the mean and the variance of each layer."""
    return [(f"{prefix}norms.{place}.running_mean", f"{prefix}norms.{place}.running_var") for place in range(n_layers)]


def pooled(notes: list[Any], step: int, n_layers: int) -> dict[str, torch.Tensor]:
    """Return the moments over both ranks, raw ones and those of the average, from what each rank had."""
    expected: dict[str, torch.Tensor] = {}
    own = [note["own"][step] for note in notes]
    for pair in (*names(n_layers), *names(n_layers, "raw ")):
        moments = (torch.stack([values[name].double() for values in own]) for name in pair)
        expected |= dict(zip(pair, pool_moments(*moments), strict=True))
    return expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "name", "n_layers"),
    [
        ("ddp", "1 layers", 1),
        ("ddp", "7 layers", 7),
        # Raw statistics are looked at in the fits that average, too.
        *((strategy, name, 7) for strategy in ("ddp", "ddp_spawn") for name in ("averaged", "union")),
    ],
)
@packages
def test_two_ranks_evaluate_and_save_with_pooled_statistics(two_ranks, name, n_layers):
    notes = two_ranks.notes(name)
    last = LONG if name == "union" else N_STEPS
    is_averaged = not name.endswith("layers")
    assert list(notes[0]["own"]) == list(range(EVERY, last + 1, EVERY))
    for step in notes[0]["own"]:
        expected = pooled(notes, step, n_layers)
        for key, values in expected.items():
            own = [note["own"][step][key] for note in notes]
            assert not torch.equal(*own), key
            for note in notes:
                torch.testing.assert_close(note["seen"][step][key].double(), values, rtol=1e-6, atol=1e-6, msg=key)
            assert torch.equal(notes[0]["seen"][step][key], notes[1]["seen"][step][key]), key
        if is_averaged:
            mean = names(1)[0][0]
            assert not torch.equal(notes[0]["seen"][step][mean], notes[0]["seen"][step][f"raw {mean}"])
        for note in notes:
            if step < last:  # training goes on with the rank's own
                for key, value in note["after"][step].items():
                    assert torch.equal(value, note["own"][step][f"raw {key}"]), key
        file = two_ranks.file(f"{name}/step={step}.ckpt")
        for pair in names(n_layers):
            for key in pair:
                assert torch.equal(file["state_dict"][key], notes[0]["seen"][step][key]), key
        n_values = n_layers * 2 * N_FEATURES
        assert file["callbacks"]["BatchNormSync"]["statistics"].shape == (2, 2 if is_averaged else 1, n_values)
    for key, value in notes[0]["end"].items():
        assert torch.equal(value, notes[1]["end"][key]), key
        if key in notes[0]["seen"][last]:
            assert torch.equal(value, notes[0]["seen"][last][key]), key
    if name == "averaged":
        came_back = two_ranks.file("came back.pt")
        assert all(torch.equal(value, came_back[key]) for key, value in notes[0]["end"].items())


@pytest.mark.slow
@ddp_only
@packages
def test_one_collective_however_many_layers(two_ranks):
    counts = {}
    for name in ("1 layers", "7 layers", "1 layers without", "7 layers without"):
        one, other = (note["n_collectives"] for note in two_ranks.notes(name))
        assert one == other
        # Three evaluations with a save that training follows, each with Lightning's own collectives.
        assert len(one) == N_STEPS // EVERY - 1
        counts[name] = one
    assert counts["1 layers"] == [n + 1 for n in counts["1 layers without"]]
    assert counts["7 layers"] == [n + 1 for n in counts["7 layers without"]] == counts["1 layers"]


@pytest.mark.slow
@ddp_only
@packages
def test_without_pooling_the_statistics_are_those_of_one_rank(two_ranks):
    # What DDP does by itself: rank 0's statistics everywhere, far from those of the union.
    notes = two_ranks.notes("7 layers without")
    expected = pooled(two_ranks.notes("7 layers"), N_STEPS, 7)
    variance = names(1)[0][1]
    assert not torch.allclose(notes[0]["end"][variance].double(), expected[variance], rtol=0.1)


@pytest.mark.slow
@strategies
@packages
def test_two_ranks_agree_with_one_process_over_the_union(two_ranks, tmp_path):
    one = make_shifted(two_ranks.package, 7, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(two_ranks.package, "auto", tmp_path, "one", one, average=True, sync=False, steps=LONG)
    raw = torch.load(tmp_path / "one" / "last.ckpt", weights_only=True)["callbacks"]["WeightEMA"]["raw"]
    seen = two_ranks.notes("union")[0]["seen"][LONG]
    for pair in names(7):
        for key in pair:
            for found, expected in ((seen[key], one.state_dict()[key]), (seen[f"raw {key}"], raw[key])):
                torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3 if "mean" in key else 0, msg=key)


@pytest.mark.slow
@strategies
@packages
def test_two_ranks_resume_with_their_own_statistics(two_ranks):
    for one, other in zip(two_ranks.notes("averaged"), two_ranks.notes("resumed"), strict=True):
        assert list(other["own"]) == list(range(SAVED_AT + EVERY, N_STEPS + 1, EVERY))
        for moment in ("own", "seen"):
            for step, values in other[moment].items():
                for name, value in values.items():
                    assert torch.equal(value, one[moment][step][name]), (moment, step, name)
        for name, value in one["end"].items():
            assert torch.equal(other["end"][name], value), name


@pytest.mark.slow
@ddp_only
@packages
def test_two_ranks_resumed_after_their_last_step_end_with_pooled_statistics(two_ranks):
    for one, other in zip(two_ranks.notes("due"), two_ranks.notes("due resumed"), strict=True):
        assert list(other["seen"]) == [N_STEPS]
        for name, value in one["seen"][N_STEPS].items():
            assert torch.equal(other["seen"][N_STEPS][name], value), name
    expected = two_ranks.notes("due")[0]["end"]
    for name in ("due", "due resumed"):
        for model in two_ranks.notes(f"{name} model"):
            assert all(torch.equal(value, expected[key]) for key, value in model.items()), name


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("where", ["raw validation", "averaged validation", "training"])
@ddp_only  # under ddp_spawn Lightning calls on_exception in the main process only, which trained nothing
@packages
def test_a_save_by_one_rank_after_an_exception_takes_no_collective(two_ranks, where, which):
    # `which`: the callback that saves comes before BatchNormSync or after it.
    file = two_ranks.file(f"{where}-{which}.ckpt")
    assert file["n_collectives"] == 0
    if where == "training":
        # Training went on since the last evaluation: the rank's own statistics, as nothing else is known.
        assert file["global_step"] == FAILS_AT + 1
        assert "BatchNormSync" not in file["callbacks"]
        assert file["callbacks"]["WeightEMA"]["n_updates"] == [FAILS_AT + 1]
        return
    assert file["global_step"] == FAILS_AT
    statistics = file["callbacks"]["BatchNormSync"]["statistics"][:, -1]
    assert statistics.shape == (2, 7 * 2 * N_FEATURES)
    for pair, own in zip(names(7), statistics.chunk(7, dim=1), strict=True):
        means, variances = own.chunk(2, dim=1)
        for key, values in zip(pair, pool_moments(means, variances), strict=True):
            torch.testing.assert_close(file["state_dict"][key].double(), values, rtol=1e-6, atol=1e-6, msg=key)
        assert not torch.equal(*means)
