"""Do the files kept carry their own scores, and survive whatever happens to the run?"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import checkpoint_run
import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from averaging_toys import LIGHTNING_WARNINGS, PACKAGES, loaders, refusal_of_sharding, toy, trainer
from pytorch_lightning.plugins.io import AsyncCheckpointIO

from playbook_plugins.lightning.atomic_files import remove_leftovers, write_atomically
from playbook_plugins.lightning.checkpoint_index import CheckpointIndex, load_best, select_checkpoint
from playbook_plugins.lightning.checkpoints import BestCheckpoints
from playbook_plugins.lightning.weight_ema import WeightEMA

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS]
both = pytest.mark.parametrize("package", PACKAGES, ids=["pytorch_lightning", "lightning"])
PL = pytorch_lightning


def scripted(package: Any, scores: dict[int, float]) -> Any:
    """Return a model whose scores are written down beforehand: one an evaluation step."""

    class Scripted(type(toy(package))):  # type: ignore[misc]
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.log("scripted", scores.get(self.trainer.global_step, 9.0))

    return Scripted()


class EvaluateFirst(lightning.pytorch.Callback, PL.Callback):
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == 0:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True


def fit(
    tmp_path: Path,
    scores: dict[int, float],
    save_top_k: int = 2,
    mode: str = "min",
    package: Any = PL,
    **settings: Any,
) -> Any:
    callback = BestCheckpoints("scripted", mode, save_top_k=save_top_k, dirpath=tmp_path / "files")
    settings = {"val_check_interval": 2} | settings
    resume = settings.pop("ckpt_path", None)
    extra = settings.pop("callbacks", [])
    fitted = trainer(package, tmp_path, [*extra, callback], **settings)
    fitted.fit(scripted(package, scores), *loaders(), ckpt_path=resume)
    return callback


def names(callback: BestCheckpoints) -> list[str]:
    return [os.path.basename(path) for path in callback.kept_checkpoints]


def on_disk(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").iterdir())


@both
def test_each_file_carries_its_own_score(tmp_path, package):
    model = toy(package)
    callback = BestCheckpoints("val_loss", "min", save_top_k=-1, dirpath=tmp_path / "files")
    train, validation = loaders(n_batches=6)
    # In the middle of an epoch of six batches too, which val_check_interval counts on from epoch to epoch.
    settings = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    trainer(package, tmp_path, [callback], max_epochs=-1, max_steps=20, **settings).fit(model, train, validation)
    rows = callback.evaluations
    assert [row.step for row in rows] == [4, 8, 12, 16, 20]
    for row in rows:
        assert row.file == f"step={row.step}.ckpt"
        assert row.metrics["step_metric"] == row.step
        checkpoint = torch.load(tmp_path / "files" / row.file, weights_only=True)
        assert checkpoint["global_step"] == row.step
        own = checkpoint["callbacks"][callback.state_key]["evaluations"][-1]
        assert (own["step"], own["score"]) == (row.step, row.score)
        other = toy(package)
        other.load_state_dict(checkpoint["state_dict"])
        results = trainer(package, tmp_path, []).validate(other, validation, verbose=False)
        assert results[0]["val_loss"] == pytest.approx(row.score, rel=1e-6)
    index = CheckpointIndex.read(tmp_path / "files")
    assert list(index.evaluations) == rows


@both
def test_keeps_the_best_and_the_last(tmp_path, package):
    scores = {2: 5.0, 4: 3.0, 6: 4.0, 8: 1.0, 10: 2.0, 12: 6.0}
    callback = fit(tmp_path, scores, package=package)
    assert names(callback) == ["step=8.ckpt", "step=10.ckpt"]
    assert on_disk(tmp_path) == ["checkpoints.json", "last.ckpt", "step=10.ckpt", "step=8.ckpt"]
    assert torch.load(tmp_path / "files" / "last.ckpt", weights_only=True)["global_step"] == 12
    assert callback.best_model_path == callback.kept_checkpoints[0]
    assert float(callback.best_model_score) == 1.0
    data = json.loads((tmp_path / "files" / "checkpoints.json").read_text())
    assert [(row["step"], row["score"], row["file"]) for row in data["evaluations"]] == [
        (2, 5.0, None),
        (4, 3.0, None),
        (6, 4.0, None),
        (8, 1.0, "step=8.ckpt"),
        (10, 2.0, "step=10.ckpt"),
        (12, 6.0, None),
    ]


@both
def test_maximizing_is_minimizing_the_negative(tmp_path, package):
    scores = {2: 5.0, 4: 3.0, 6: 4.0, 8: 1.0, 10: 3.0, 12: 6.0}
    low = fit(tmp_path / "low", scores, package=package)
    high = fit(tmp_path / "high", {step: -score for step, score in scores.items()}, mode="max", package=package)
    assert names(low) == names(high) == ["step=8.ckpt", "step=4.ckpt"]  # the earlier of equals


@both
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_never_keeps_a_score_that_is_not_finite(tmp_path, bad, package):
    callback = fit(tmp_path, {2: bad, 4: 3.0, 6: bad, 8: bad}, save_top_k=-1, max_steps=8, package=package)
    assert names(callback) == ["step=4.ckpt"]
    assert torch.load(tmp_path / "files" / "last.ckpt", weights_only=True)["global_step"] == 8
    again = CheckpointIndex.read(tmp_path / "files").evaluations[0].score
    assert again == bad or (math.isnan(again) and math.isnan(bad))


@both
def test_step_zero_is_saved_and_the_sanity_check_is_not(tmp_path, package):
    callback = fit(
        tmp_path, {0: 1.0}, callbacks=[EvaluateFirst()], num_sanity_val_steps=1, max_steps=4, package=package
    )
    assert [row.step for row in callback.evaluations] == [0, 2, 4]
    assert names(callback)[0] == "step=0.ckpt"
    resumed = fit(tmp_path, {0: 1.0}, ckpt_path=tmp_path / "files" / "step=0.ckpt", max_steps=4, package=package)
    assert [row.step for row in resumed.evaluations] == [0, 2, 4]


@both
def test_keeping_none_still_keeps_the_last(tmp_path, package):
    callback = fit(tmp_path, {}, save_top_k=0, package=package)
    assert callback.kept_checkpoints == []
    assert on_disk(tmp_path) == ["checkpoints.json", "last.ckpt"]


@both
def test_best_and_last_are_known_to_the_trainer(tmp_path, package):
    model = toy(package)
    callback = BestCheckpoints("val_loss", save_top_k=1)
    fitted = trainer(package, tmp_path, [callback])
    train, validation = loaders()
    fitted.fit(model, train, validation)
    assert Path(callback.dirpath) == tmp_path / "checkpoints"
    best = torch.load(callback.best_model_path, weights_only=True)["state_dict"]
    rows = callback.evaluations
    fitted.test(model, validation, ckpt_path="best", verbose=False)
    assert torch.equal(model.outputs.weight, best["outputs.weight"])
    assert callback.evaluations == rows
    resumed = BestCheckpoints("val_loss", save_top_k=1)
    longer = trainer(package, tmp_path, [resumed], max_steps=16)
    longer.fit(toy(package), train, validation, ckpt_path="last")
    assert [row.step for row in resumed.evaluations] == [4, 8, 12, 16]
    assert on_disk_in(tmp_path / "checkpoints") == ["checkpoints.json", "last.ckpt", *names(resumed)]


def on_disk_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@both
def test_select_in_retrospect_and_from_a_moved_folder(tmp_path, package):
    callback = fit(tmp_path, {2: 5.0, 4: 3.0, 6: 4.0}, save_top_k=-1, max_steps=6, package=package)
    assert callback.select() == str(tmp_path / "files" / "step=4.ckpt")
    assert callback.select("step_metric", "max") == str(tmp_path / "files" / "step=6.ckpt")
    assert callback.select("step_metric", "min") == str(tmp_path / "files" / "step=2.ckpt")
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "files", moved)
    assert select_checkpoint(moved) == str(moved / "step=4.ckpt")
    model = scripted(package, {})
    assert load_best(model, moved) == str(moved / "step=4.ckpt")
    expected = torch.load(moved / "step=4.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    (moved / "step=4.ckpt").unlink()
    assert select_checkpoint(moved) == str(moved / "step=6.ckpt")


@both
def test_resuming_keeps_the_list_in_the_same_and_in_a_moved_folder(tmp_path, package):
    scores = {2: 5.0, 4: 1.0, 6: 2.0, 8: 4.0, 10: 1.5, 12: 6.0, 14: 7.0, 16: 8.0}
    whole = fit(tmp_path / "whole", scores, max_steps=16, package=package)
    fit(tmp_path / "cut", scores, max_steps=8, package=package)
    shutil.copytree(tmp_path / "cut", tmp_path / "moved")
    for place in ("cut", "moved"):
        last = tmp_path / place / "files" / "last.ckpt"
        resumed = fit(tmp_path / place, scores, max_steps=16, ckpt_path=last, package=package)
        assert [(row.step, row.score, row.file) for row in resumed.evaluations] == [
            (row.step, row.score, row.file) for row in whole.evaluations
        ]
        assert names(resumed) == ["step=4.ckpt", "step=10.ckpt"]
        assert on_disk(tmp_path / place) == on_disk(tmp_path / "whole")
        assert CheckpointIndex.read(tmp_path / place / "files").earlier_runs == ()


@both
def test_resuming_into_a_new_folder_leaves_the_old_one_alone(tmp_path, package):
    fit(tmp_path / "old", {2: 1.0, 4: 2.0}, max_steps=8, package=package)
    before = on_disk(tmp_path / "old")
    last = tmp_path / "old" / "files" / "last.ckpt"
    resumed = fit(tmp_path / "new", {10: 0.5, 12: 0.4, 14: 0.3, 16: 0.2}, max_steps=16, ckpt_path=last, package=package)
    assert on_disk(tmp_path / "old") == before
    assert names(resumed) == ["step=16.ckpt", "step=14.ckpt"]
    assert [row.step for row in resumed.evaluations] == [2, 4, 6, 8, 10, 12, 14, 16]


@both
def test_resuming_from_an_earlier_file_keeps_the_abandoned_branch(tmp_path, package):
    scores = {2: 1.0, 4: 2.0, 6: 0.5, 8: 0.4, 10: 0.3, 12: 0.2}
    fit(tmp_path, scores, save_top_k=-1, max_steps=12, package=package)
    resumed = fit(
        tmp_path, scores, save_top_k=-1, max_steps=12, ckpt_path=tmp_path / "files" / "step=8.ckpt", package=package
    )
    assert [row.file for row in resumed.evaluations][-2:] == ["step=10-v1.ckpt", "step=12-v1.ckpt"]
    assert {"step=10.ckpt", "step=12.ckpt"} <= set(on_disk(tmp_path))
    earlier = CheckpointIndex.read(tmp_path / "files").earlier_runs
    assert [[row.step for row in run] for run in earlier] == [[2, 4, 6, 8, 10, 12]]


@both
def test_never_touches_files_of_others(tmp_path, package):
    folder = tmp_path / "files"
    folder.mkdir()
    others = {"step=2.ckpt": b"mine", "last.ckpt": b"mine too", "notes.txt": b"hello", ".x.h.1.tmp": b"kept"}
    for name, content in others.items():
        (folder / name).write_bytes(content)
    callback = fit(tmp_path, {2: 3.0, 4: 2.0, 6: 1.0, 8: 0.5}, save_top_k=1, max_steps=8, package=package)
    assert {name: (folder / name).read_bytes() for name in others} == others
    assert callback.last_model_path.endswith("last-v1.ckpt")
    first_index = CheckpointIndex.read(folder).evaluations
    second = fit(tmp_path, {2: 3.0}, save_top_k=1, max_steps=2, package=package)
    assert {name: (folder / name).read_bytes() for name in others} == others
    assert (folder / "step=8.ckpt").exists()
    assert CheckpointIndex.read(folder).earlier_runs == (first_index,)
    assert names(second) == ["step=2-v2.ckpt"] or names(second) == ["step=2-v1.ckpt"]


@both
def test_the_file_resumed_from_is_not_deleted(tmp_path, package):
    fit(tmp_path, {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.6}, save_top_k=1, max_steps=8, package=package)
    source = tmp_path / "files" / "step=4.ckpt"
    fit(tmp_path, {6: 1.0, 8: 0.9, 10: 0.8}, save_top_k=1, max_steps=10, ckpt_path=source, package=package)
    assert source.exists()


@both
def test_one_serialization_an_evaluation(tmp_path, package):
    fit(tmp_path, {2: 3.0}, save_top_k=1, max_steps=2, package=package)
    folder = tmp_path / "files"
    assert os.path.samefile(folder / "last.ckpt", folder / "step=2.ckpt")
    assert on_disk(tmp_path) == ["checkpoints.json", "last.ckpt", "step=2.ckpt"]


@both
def test_averaged_weights_are_in_the_files_and_runs_resume_exactly(tmp_path, package):
    def run(folder: Path, steps: int, resume: Path | None = None) -> Any:
        model = toy(package, optimizer="adam")
        callbacks = [WeightEMA(decay=0.9), BestCheckpoints("val_loss", save_top_k=-1, dirpath=folder)]
        trainer(package, tmp_path, callbacks, max_steps=steps).fit(model, *loaders(n_batches=4), ckpt_path=resume)
        return model

    straight = run(tmp_path / "a", 16)
    run(tmp_path / "b", 8)
    resumed = run(tmp_path / "b", 16, tmp_path / "b" / "last.ckpt")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    file = torch.load(tmp_path / "a" / "step=16.ckpt", weights_only=True)
    assert all(torch.equal(value, file["state_dict"][name]) for name, value in straight.state_dict().items())
    assert not torch.equal(file["callbacks"]["WeightEMA"]["raw"]["outputs.weight"], straight.outputs.weight)


@both
def test_weights_only_files_hold_the_average(tmp_path, package):
    model, ema = toy(package), WeightEMA(decay=0.9)
    callback = BestCheckpoints("val_loss", dirpath=tmp_path / "files", save_top_k=-1, save_weights_only=True)
    trainer(package, tmp_path, [ema, callback]).fit(model, *loaders())
    file = torch.load(callback.last_model_path, weights_only=True)
    assert "callbacks" not in file
    assert all(torch.equal(value, file["state_dict"][name]) for name, value in model.state_dict().items())
    assert not torch.equal(ema.state_dict()["raw"]["outputs.weight"], file["state_dict"]["outputs.weight"])


@both
@pytest.mark.parametrize("which", ["best", "last"])
def test_a_full_disk_is_told_and_training_goes_on(tmp_path, which, package):
    """A limit on the size of files stands in for the disk: the same error of the same system call."""
    folder = tmp_path / "files"

    class FullDisk(package.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            full = 4 <= trainer.global_step < 8
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if full else resource.RLIM_INFINITY, soft[1]))

    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    scores = {2: 5.0, 4: 4.0, 6: 3.0, 8: 2.0} if which == "best" else {2: 1.0, 4: 4.0, 6: 3.0, 8: 2.0}
    try:
        with pytest.warns(UserWarning, match="could not be written") as caught:
            callback = fit(tmp_path, scores, save_top_k=1, max_steps=8, callbacks=[FullDisk()], package=package)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    name = "step=4.ckpt" if which == "best" else "last.ckpt"
    told = [str(warning.message) for warning in caught if "could not be" in str(warning.message)]
    assert len(told) == 2
    assert told[0] == (
        f"{folder / name} could not be written (File too large): training goes on, and the checkpoints before it are "
        "intact. Make room or correct the folder's permissions before the next evaluation."
    )
    assert [row.step for row in callback.evaluations] == [2, 4, 6, 8]
    assert names(callback) == (["step=8.ckpt"] if which == "best" else ["step=2.ckpt"])
    files = [row.file for row in callback.evaluations]
    assert files == ([None, None, None, "step=8.ckpt"] if which == "best" else ["step=2.ckpt", None, None, None])
    assert on_disk(tmp_path) == ["checkpoints.json", "last.ckpt", *names(callback)]


def own_mounts() -> list[str]:
    """Return the command before a program that may mount filesystems of its own; skip where none may."""
    for command in (["unshare", "--user", "--map-root-user", "--mount"], ["unshare", "--mount"]):
        trial = [*command, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
        with contextlib.suppress(OSError):
            if subprocess.run(trial, capture_output=True, check=False, timeout=30).returncode == 0:
                return command
    pytest.skip("mounting a small filesystem is not permitted here; a limit on the size of files stands in, see above")


@pytest.mark.slow
@both
def test_a_disk_that_is_really_full_is_told_and_training_goes_on(tmp_path, package):
    disk, report = tmp_path / "disk", tmp_path / "report"
    disk.mkdir()
    report.mkdir()
    command = [sys.executable, checkpoint_run.__file__, "full", package.__name__, str(disk), str(report)]
    subprocess.run([*own_mounts(), *command], check=True, capture_output=True, timeout=120)
    results = json.loads((report / "results.json").read_text())
    assert results["steps"] == 10
    assert results["told"] == [
        f"{disk / name} could not be written (No space left on device): training goes on, and the checkpoints before "
        "it are intact. Make room or correct the folder's permissions before the next evaluation."
        for name in ("step=4.ckpt", "checkpoints.json", "step=6.ckpt", "checkpoints.json")
    ]
    # While the disk was full: what there was before.
    full = report / "full"
    assert on_disk_in(full) == ["checkpoints.json", "last.ckpt", "step=2.ckpt"]
    assert select_checkpoint(full) == str(full / "step=2.ckpt")
    for name in ("step=2.ckpt", "last.ckpt"):
        assert torch.load(full / name, weights_only=True)["global_step"] == 2
    # Afterwards it goes on where it can: the scores of all evaluations, the files of those with room.
    end = report / "end"
    assert results["files"] == [None, None, None, None, "step=10.ckpt"]
    assert results["best"] == "step=10.ckpt"
    assert on_disk_in(end) == ["checkpoints.json", "last.ckpt", "step=10.ckpt"]
    assert [row.step for row in CheckpointIndex.read(end).evaluations] == [2, 4, 6, 8, 10]
    assert torch.load(end / "last.ckpt", weights_only=True)["global_step"] == 10


def test_a_failed_write_leaves_the_file_before(tmp_path):
    target = tmp_path / "file"
    write_atomically(target, b"first")
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, soft[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(target, b"x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert target.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_dead_processes_only(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = __import__("socket").gethostname().replace(".", "-")
    gone = tmp_path / f".step=2.ckpt.{host}.{dead.pid}.playbook-tmp"
    kept = [
        tmp_path / f".step=2.ckpt.{host}.{os.getppid()}.playbook-tmp",
        tmp_path / f".step=2.ckpt.elsewhere.{dead.pid}.playbook-tmp",
        tmp_path / "step=2.ckpt",
    ]
    for path in (gone, *kept):
        path.write_bytes(b"")
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def kill_while_saving(folder: Path, package: Any, rng: random.Random, temporary: str | None) -> None:
    """Start a run that saves at every step, and kill it somewhere."""
    environment = dict(os.environ, OMP_NUM_THREADS="1") | ({} if temporary is None else {"TMPDIR": temporary})
    command = [sys.executable, checkpoint_run.__file__, "killed", package.__name__, str(folder)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    while not (folder / "checkpoints.json").exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(rng.uniform(0.0, 0.4))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()


def check_after_kill(folder: Path) -> None:
    index = CheckpointIndex.read(folder)
    kept = [row for row in index.evaluations if row.file is not None]
    assert kept
    for row in kept:
        assert torch.load(folder / str(row.file), weights_only=True)["global_step"] == row.step
    best = min(index.evaluations, key=lambda row: row.score)
    assert best.file is not None
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] >= index.evaluations[-1].step


def elsewhere(tmp_path: Path) -> str | None:
    """A folder on another filesystem than the checkpoints, where the machine has one."""
    memory = Path("/dev/shm")
    return str(memory) if memory.is_dir() and memory.stat().st_dev != tmp_path.stat().st_dev else None


def test_a_killed_run_lists_whole_files_only(tmp_path):
    kill_while_saving(tmp_path / "run", PL, random.Random(0), elsewhere(tmp_path))
    check_after_kill(tmp_path / "run")


@pytest.mark.slow
@both
@pytest.mark.parametrize("temporary", ["here", "elsewhere"])
@pytest.mark.parametrize("seed", range(10))
def test_many_killed_runs_list_whole_files_only(tmp_path, seed, temporary, package):
    folder = elsewhere(tmp_path) if temporary == "elsewhere" else str(tmp_path)
    if folder is None:
        pytest.skip("/dev/shm is no other filesystem here")
    kill_while_saving(tmp_path / "run", package, random.Random(f"{seed} {temporary} {package.__name__}"), folder)
    check_after_kill(tmp_path / "run")


@both
def test_early_stopping_is_warned_of(tmp_path, package):
    with pytest.warns(UserWarning, match="EarlyStopping") as caught:
        fit(tmp_path, {}, max_steps=2, callbacks=[package.callbacks.EarlyStopping("scripted")], package=package)
    assert str(caught[0].message) == (
        "EarlyStopping is among the callbacks: a run that ends on a noisy evaluation biases the best step, which tells "
        "whether to train longer. The playbook's advice is to train for max_steps and to select the best checkpoint "
        "afterwards; remove EarlyStopping."
    )


def message_of(function: Any, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        function(*arguments, **settings)
    return str(caught.value)


def test_bad_arguments():
    assert message_of(BestCheckpoints, "loss", "lowest") == (
        "`mode` is 'lowest': it must be 'min' or 'max'. Pass which way loss gets better."
    )
    assert message_of(BestCheckpoints, "loss", save_top_k=-2) == (
        "`save_top_k` is -2: it must be at least 0, or -1 to keep every checkpoint. Pass how many of the best to keep."
    )
    assert message_of(BestCheckpoints, "loss", dirpath="s3://bucket/run") == (
        "`dirpath` is 's3://bucket/run': BestCheckpoints writes to local folders only, where a file can be replaced at "
        "once. Pass a local path and copy the folder afterwards, or use Lightning's ModelCheckpoint."
    )


@both
def test_a_metric_that_was_not_logged(tmp_path, package):
    callback = BestCheckpoints("accuracy", "max", dirpath=tmp_path)
    message = message_of(trainer(package, tmp_path, [callback]).fit, toy(package), *loaders())
    assert message == (
        "`monitor` is 'accuracy': no such metric was logged at step 4. Log it in validation_step, or pass one of "
        "['step_metric', 'val_loss']."
    )


def test_one_folder_for_one_callback(tmp_path):
    callbacks = [BestCheckpoints(metric, dirpath=tmp_path / "files") for metric in ("val_loss", "step_metric")]
    message = message_of(trainer(PL, tmp_path, callbacks).fit, toy(PL), *loaders())
    assert message == (
        f"`dirpath` is {str(tmp_path / 'files')!r} for two BestCheckpoints: each needs a folder of its own for its "
        "last.ckpt and its index. Pass another dirpath to one of them."
    )


def test_sharded_strategies_and_other_plugins_are_refused(tmp_path):
    callback = BestCheckpoints("val_loss", dirpath=tmp_path)
    assert refusal_of_sharding(PL, tmp_path, callback) == (
        "`strategy` is ModelParallelStrategy, which shards the model: BestCheckpoints needs the whole parameters on "
        "every rank. Train with a single device or with DDP, or use Lightning's ModelCheckpoint."
    )
    plugin = AsyncCheckpointIO()
    message = message_of(trainer(PL, tmp_path, [callback], plugins=[plugin]).fit, toy(PL), *loaders())
    assert message == (
        "`plugins` holds AsyncCheckpointIO: BestCheckpoints writes its files itself, so that they are replaced at once "
        "and on time. Remove the plugin, or use Lightning's ModelCheckpoint."
    )


def test_questions_that_a_folder_cannot_answer(tmp_path):
    assert message_of(select_checkpoint, tmp_path) == (
        f"`folder` is {str(tmp_path)!r}: it holds no checkpoints.json. Pass the folder into which BestCheckpoints "
        "wrote."
    )
    fit(tmp_path, {2: 1.0}, max_steps=2)
    folder = tmp_path / "files"
    assert message_of(select_checkpoint, folder, "val_loss") == (
        "`mode` is None, and `metric` is 'val_loss': the folder knows the direction of 'scripted' only. Pass 'min' or "
        "'max'."
    )
    assert message_of(select_checkpoint, folder, "val_loss", "lowest") == (
        "`mode` is 'lowest': it must be 'min' or 'max'. Pass which way the metric gets better."
    )
    assert message_of(select_checkpoint, folder, "accuracy", "max") == (
        f"`metric` is 'accuracy': no kept checkpoint in {str(folder)!r} has a finite value of it. Pass one of "
        "['scripted', 'step_metric', 'val_loss']."
    )
    (folder / "checkpoints.json").write_text("{}")
    expected = (
        f"`folder` is {str(folder)!r}: its checkpoints.json is not an index of version 1 of BestCheckpoints. Upgrade "
        "playbook-plugins if a newer one wrote it, or use another folder."
    )
    assert message_of(select_checkpoint, folder) == expected
    assert message_of(fit, tmp_path, {2: 1.0}, max_steps=2) == expected  # nor is a foreign file overwritten
