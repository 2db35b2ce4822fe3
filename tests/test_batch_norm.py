"""Do all ranks evaluate with the statistics of all the data?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from averaging_toys import (
    LIGHTNING_WARNINGS,
    PACKAGES,
    ShiftedToy,
    StatisticsProbe,
    loaders,
    refusal_of_sharding,
    restore,
    toy,
    trainer,
)

from playbook_plugins.lightning.batch_norm import BatchNormSync, pool_moments
from playbook_plugins.lightning.checkpoints import BestCheckpoints
from playbook_plugins.lightning.weight_ema import WeightEMA

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


def fit_two(
    folder: Path, *, average: bool, rate: float, steps: int = 8, resume: Path | None = None, **settings: Any
) -> tuple[Any, list[Any]]:
    """Train with two real processes; return the module that comes back and the notes of each rank."""
    folder.mkdir(exist_ok=True)
    middle = [WeightEMA(decay=0.5)] if average else []
    files = BestCheckpoints("val_loss", save_top_k=-1, dirpath=folder / "files")
    callbacks = [StatisticsProbe(folder), *middle, BatchNormSync(), files]
    model = ShiftedToy(rate, **settings)
    fitted = trainer(
        PL, folder, callbacks, strategy="ddp_spawn", devices=2, max_steps=steps, val_check_interval=2,
        use_distributed_sampler=False, max_epochs=-1,
    )  # fmt: skip
    environment = dict(os.environ)
    try:
        fitted.fit(model, ckpt_path=resume)
    finally:
        restore(environment)
    assert fitted.checkpoint_callback.kept_checkpoints
    return model, [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def pooled(notes: list[Any], step: int, prefix: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    own = [note["own"][step] for note in notes]
    names = [f"{prefix}norm.running_mean", f"{prefix}norm.running_var"]
    return pool_moments(*(torch.stack([values[name].double() for values in own]) for name in names))


@pytest.mark.slow
@pytest.mark.parametrize("average", [False, True])
def test_two_ranks_evaluate_and_save_with_pooled_statistics(tmp_path, average):
    model, notes = fit_two(tmp_path, average=average, rate=0.01)
    for step in (2, 4, 6, 8):
        expected = pooled(notes, step)
        for note in notes:
            mean, variance = (note["pooled"][step][f"norm.running_{name}"] for name in ("mean", "var"))
            torch.testing.assert_close(mean.double(), expected[0], rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(variance.double(), expected[1], rtol=1e-6, atol=1e-6)
            if step < 8:  # training goes on with the rank's own
                prefix = "raw " if average else ""
                for name, value in note["after"][step].items():
                    assert torch.equal(value, note["own"][step][prefix + name])
        assert not torch.equal(notes[0]["own"][step]["norm.running_mean"], notes[1]["own"][step]["norm.running_mean"])
        file = torch.load(tmp_path / "files" / f"step={step}.ckpt", weights_only=True)
        torch.testing.assert_close(file["state_dict"]["norm.running_var"].double(), expected[1], rtol=1e-6, atol=1e-6)
        assert file["callbacks"]["BatchNormSync"]["statistics"].shape == (2, 2 if average else 1, 16)
    for name, value in notes[0]["end"].items():
        assert torch.equal(value, notes[1]["end"][name])
        assert torch.equal(value, model.state_dict()[name])
    # Four evaluations and the end of training, which finds what the last of them gathered.
    assert [note["n_gathers"] for note in notes] == [4, 4]
    for name, value in notes[0]["weights"].items():
        assert torch.equal(value, notes[1]["weights"][name]), name


@pytest.mark.slow
def test_two_ranks_agree_with_one_process_over_the_union(tmp_path):
    # Without learning the statistics depend on the data only, and evaluating often must not wear them down.
    two, _ = fit_two(tmp_path / "two", average=False, rate=0.0, steps=60)
    one = ShiftedToy(0.0)
    trainer(PL, tmp_path, [], max_steps=60, max_epochs=-1, val_check_interval=2).fit(one)
    torch.testing.assert_close(two.norm.running_mean, one.norm.running_mean, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(two.norm.running_var, one.norm.running_var, rtol=0.02, atol=0)


@pytest.mark.slow
def test_two_ranks_resume_with_their_own_statistics(tmp_path):
    _, straight = fit_two(tmp_path / "straight", average=True, rate=0.01, steps=8)
    fit_two(tmp_path / "first", average=True, rate=0.01, steps=4)
    last = tmp_path / "first" / "files" / "last.ckpt"
    _, resumed = fit_two(tmp_path / "resumed", average=True, rate=0.01, steps=8, resume=last)
    for one, other in zip(straight, resumed, strict=True):
        for step in (6, 8):
            for name, value in one["own"][step].items():
                assert torch.equal(other["own"][step][name], value), (step, name)
        for name, value in one["weights"].items():
            assert torch.equal(other["weights"][name], value), name


ALONE = """
import sys
sys.path.insert(0, {tests!r})
import pytorch_lightning as PL
from averaging_toys import ShiftedToy, StatisticsProbe, trainer
from pathlib import Path
from playbook_plugins.lightning.batch_norm import BatchNormSync
from playbook_plugins.lightning.weight_ema import WeightEMA
folder = Path({folder!r})
callbacks = [WeightEMA(decay=0.5), BatchNormSync(), StatisticsProbe(folder)]
trainer(
    PL, folder, callbacks, strategy="ddp", devices=2, val_check_interval=2, use_distributed_sampler=False, max_epochs=-1
).fit(ShiftedToy(0.01, fail_at_step=3))
"""


@pytest.mark.slow
def test_a_rank_that_saves_alone_does_not_wait_for_the_others(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(ALONE.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode != 0
    assert "on purpose" in run.stderr
    state = torch.load(tmp_path / "alone.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert "BatchNormSync" not in state["callbacks"]
    assert state["callbacks"]["WeightEMA"]["n_updates"] == [3]
