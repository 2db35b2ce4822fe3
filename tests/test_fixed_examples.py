"""Are the predictions of the same examples saved at each evaluation, by its weights, and without a trace?

As a script, ``python test_fixed_examples.py STRATEGY FOLDER`` trains with two real processes in both packages.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning
import support_runs
import torch
import torchmetrics
from averaging_toys import restore
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, _Toy, make_loader, make_model, make_trainer
from support_runs import CELLS, DECAY, EVERY, N_STEPS, Notes, fit
from torch.utils.data import DataLoader, Dataset, IterableDataset

from playbook_plugins.lightning.batch_norm import BatchNormSync
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.fixed_examples import INDEX_NAME, FixedExamples, load_fixed_examples
from playbook_plugins.lightning.weight_ema import WeightEMA

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")]
N = 20  # two batches, one of them not full
ONE_PROCESS = [pytest.param(cell, marks=pytest.mark.slow) if cell == "compile" else cell for cell in CELLS]


def predict(module: Any, batch: Any) -> Any:
    return module.second(module.first(batch[0]))


def expected(weights: Any, indices: Any, n_ranks: int = 1) -> Any:
    """Return the predictions of given weights in float64, by another way than the callback's."""
    model = support_runs.make_regression(pytorch_lightning).double()
    model.load_state_dict(weights)
    model.eval()
    x = support_runs.make_loaders(n_ranks)[1].dataset.tensors[0][torch.from_numpy(indices)]
    with torch.no_grad():
        return predict(model, [x.double()]).numpy()


def check(saved: Any, notes: Any, cell: str = "32-true", n_ranks: int = 1) -> None:
    """Assert that the predictions are those of the weights that each evaluation used."""
    last = 2 * N_STEPS if cell == "manual optimization" else N_STEPS
    assert saved["step"].tolist() == list(range(0, last + 1, EVERY)) == list(notes.seen)
    assert saved["prediction"].shape == (len(saved["step"]), N, 1)
    assert saved["prediction"].dtype == (np.float64 if cell == "64-true" else np.float32 if cell[:2] != "16" else "f2")
    tolerance = 0.1 if cell.startswith(("bf16", "16")) else 1e-5
    for step, prediction in zip(saved["step"].tolist(), saved["prediction"], strict=True):
        found = expected(notes.seen[step], saved["indices"], n_ranks)
        np.testing.assert_allclose(prediction, found, rtol=0, atol=tolerance)
        assert not np.allclose(prediction, expected(notes.seen[last if step < last else 0], saved["indices"], n_ranks))


def check_untouched(notes: Any, plain: Any) -> None:
    for step, weights in plain.trained.items():
        assert all(torch.equal(value, notes.trained[step][name]) for name, value in weights.items())
    assert notes.scores == plain.scores
    assert notes.losses == plain.losses


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("cell", ONE_PROCESS)
def test_every_evaluation_is_saved_and_training_is_the_same(package: Any, cell: str, tmp_path: Path) -> None:
    plain, _ = fit(package, [PeriodicEvaluation(EVERY)], cell)
    notes, _ = fit(package, [FixedExamples(N, tmp_path, predict), PeriodicEvaluation(EVERY)], cell)
    check(load_fixed_examples(tmp_path), notes, cell)
    check_untouched(notes, plain)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_the_average_predicts_wherever_the_callback_stands(package: Any, place: int, tmp_path: Path) -> None:
    stack = [WeightEMA(decay=DECAY), BatchNormSync(), PeriodicEvaluation(EVERY)]
    stack.insert(place, FixedExamples(N, tmp_path, predict))
    notes, _ = fit(package, stack)
    saved = load_fixed_examples(tmp_path)
    check(saved, notes)
    raw = expected(notes.trained[8], saved["indices"])
    assert np.abs(saved["prediction"][2] - raw).max() > 1e-3


class _Forward(_Toy):
    def forward(self, x: Any) -> Any:
        return self.net(x)


class _Step(_Forward):
    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logit": self.net(batch[0]), "target": batch[1].to(torch.bfloat16)}


def make(package: Any, kind: type, **options: Any) -> Any:
    return type("Mine", (kind, package.LightningModule), {})(**options)


def run(package: Any, callback: Any, model: Any = None, loader: Any = None, n_steps: int = 4, **options: Any) -> Any:
    trainer = make_trainer(package, [callback, PeriodicEvaluation(2)], max_steps=n_steps)
    ckpt_path = options.pop("ckpt_path", None)
    loading = SAFE_LOADING if ckpt_path else {}
    trainer.fit(
        make(package, _Forward) if model is None else model,
        make_loader(),
        make_loader(seed=1) if loader is None else loader,
        ckpt_path=ckpt_path,
        **loading,
    )
    return trainer


@pytest.mark.parametrize("package", PACKAGES)
def test_the_module_predicts_in_its_own_way(package: Any, tmp_path: Path) -> None:
    model = make(package, _Forward, dropout=0.5)
    run(package, FixedExamples([3, 0, 30], tmp_path / "forward"), model)
    saved = load_fixed_examples(tmp_path / "forward")
    assert set(saved) == {"step", "indices", "prediction"}
    assert saved["indices"].tolist() == [3, 0, 30]
    x, y = make_loader(seed=1).dataset[[3, 0, 30]]
    model.eval()
    assert np.array_equal(saved["prediction"][-1], model.net(x).detach().numpy())
    run(package, FixedExamples([3, 0, 30], tmp_path / "step"), make(package, _Step, dropout=0.5))
    found = load_fixed_examples(tmp_path / "step")
    assert np.array_equal(found["logit"], saved["prediction"])
    assert np.array_equal(found["target"][0], y.bfloat16().float().numpy())


class _Plain:
    """Without logging, in which torch's compiler asks for the gradient of the loss, and warns."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (self.net(batch[0]) - batch[1]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_a_compiled_module_predicts(package: Any, tmp_path: Path) -> None:
    for kind, name in ((_Forward, "prediction"), (_Step, "logit")):
        model = make(package, type("Compiled", (_Plain, kind), {}))
        compiled = torch.compile(model, backend=support_runs.COMPILER)
        run(package, FixedExamples([3, 0], tmp_path / name), compiled)
        expected = model.net(make_loader(seed=1).dataset[[3, 0]][0]).detach().numpy()
        np.testing.assert_allclose(load_fixed_examples(tmp_path / name)[name][-1], expected, rtol=1e-5)


class _Noisy(Dataset[Any]):
    """Examples that every reading changes, by four kinds of generators."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Any:
        noise = torch.rand(3) + torch.rand(3, generator=self.generator) + random.random() + np.random.rand()  # noqa: NPY002
        return index + noise, torch.ones(1)


class _Counting(_Forward):
    """Its validation_step, used for predicting, draws, logs and counts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.error = torchmetrics.MeanMetric()
        self.all = torchmetrics.CatMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        y = self.net(batch[0]) + 0.1 * torch.rand(1)
        self.error.update(y.abs())
        self.all.update(y)
        self.log("val_loss", y.abs().mean(), on_step=True, on_epoch=True)
        self.log_dict({"error": self.error, "largest": y.max()})
        batch[0].zero_()
        return y

    def on_validation_epoch_end(self) -> None:
        self.log("n_seen", float(len(self.all.compute())))
        self.all.reset()


@pytest.mark.parametrize("package", PACKAGES)
def test_no_trace_is_left(package: Any, tmp_path: Path) -> None:
    class Watch(package.Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            modes = {name: module.training for name, module in pl_module.named_modules()}
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.seen.append((metrics, modes, set(vars(pl_module)), random.random(), np.random.rand()))  # noqa: NPY002

    def train(callbacks: list[Any]) -> Any:
        pytorch_lightning.seed_everything(1, verbose=False)
        watch, model, noisy = Watch(), make(package, _Counting, dropout=0.3), _Noisy()
        loader = DataLoader(noisy, batch_size=8)
        # Its own evaluations, after which PeriodicEvaluation does not restore the generators.
        trainer = make_trainer(package, [*callbacks, watch], max_steps=8, val_check_interval=2, num_sanity_val_steps=1)
        trainer.fit(model, make_loader(shuffle=True), loader)
        return watch.seen, model.losses, noisy.generator.get_state().tolist(), torch.rand(3).tolist()

    state = torch.random.get_rng_state()
    callback = FixedExamples(10, tmp_path, lambda module, batch: module.validation_step(batch, 0))
    plain, mine, again = train([]), train([callback]), train([FixedExamples(10, tmp_path / "no", _draw)])
    torch.random.set_rng_state(state)
    assert plain == mine == again
    assert plain[0][-1][0]["n_seen"] == 24
    saved = load_fixed_examples(tmp_path)
    assert saved["step"].tolist() == [2, 4, 6, 8]
    assert saved["prediction"].shape == (4, 10, 1)
    # The same inputs and the same draws: what differs is the weights.
    drawn = load_fixed_examples(tmp_path / "no")["prediction"]
    assert (drawn == drawn[0]).all()
    assert len(np.unique(drawn)) > 10


def _draw(module: Any, batch: Any) -> Any:
    return batch[0] + torch.rand(len(batch[0]), 3) + random.random()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_seed_draws_the_examples_once(package: Any, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(package, FixedExamples(8, tmp_path / name, seed=seed))
    a, b, c = (load_fixed_examples(tmp_path / name) for name in "abc")
    assert np.array_equal(a["indices"], b["indices"])
    assert np.array_equal(a["prediction"], b["prediction"])
    assert not np.array_equal(a["indices"], c["indices"])
    for found in (a, c):
        assert len(set(found["indices"].tolist())) == 8
        assert found["indices"].tolist() == sorted(found["indices"].tolist()) != list(range(8))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != INDEX_NAME}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_resumed_run_goes_on_with_its_list(package: Any, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    whole = run(package, FixedExamples(4, folder), n_steps=6)
    first = load_fixed_examples(folder)
    assert first["step"].tolist() == [0, 2, 4, 6]
    whole.save_checkpoint(tmp_path / "6.ckpt")
    resumed = run(package, FixedExamples(4, folder), n_steps=10, ckpt_path=tmp_path / "6.ckpt")
    resumed.save_checkpoint(tmp_path / "10.ckpt")
    # Once more from the earlier file: the branch begun before stays, but for the list.
    before = files(folder)
    run(package, FixedExamples(4, folder), n_steps=8, ckpt_path=tmp_path / "6.ckpt")
    saved = load_fixed_examples(folder)
    assert saved["step"].tolist() == [0, 2, 4, 6, 8]
    assert np.array_equal(saved["prediction"][:4], first["prediction"])
    assert {name: content for name, content in files(folder).items() if name in before} == before
    assert files(folder).keys() - before.keys() == {"step=8-v1.npz"}
    index = json.loads((folder / INDEX_NAME).read_text())
    assert [step for step, _ in index["earlier_runs"][0]["evaluations"]] == [0, 2, 4, 6, 8, 10]
    # A moved folder.
    shutil.move(folder, tmp_path / "there")
    run(package, FixedExamples(4, tmp_path / "there"), n_steps=12, ckpt_path=tmp_path / "10.ckpt")
    assert load_fixed_examples(tmp_path / "there")["step"].tolist() == [0, 2, 4, 6, 8, 10, 12]
    # A new one: the files of before are not in it.
    run(package, FixedExamples(5, tmp_path / "new"), n_steps=12, ckpt_path=tmp_path / "10.ckpt")
    assert load_fixed_examples(tmp_path / "new")["step"].tolist() == [12]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_resumed_run_saves_what_the_straight_run_saves(package: Any, tmp_path: Path) -> None:
    notes = Notes(save_to=tmp_path / "8.ckpt")
    fit(package, [FixedExamples(N, tmp_path / "a", predict), PeriodicEvaluation(EVERY)], notes=notes)
    whole = load_fixed_examples(tmp_path / "a")
    stack = [FixedExamples(N, tmp_path / "a", predict), PeriodicEvaluation(EVERY)]
    fit(package, stack, ckpt_path=tmp_path / "8.ckpt")
    resumed = load_fixed_examples(tmp_path / "a")
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)
    assert sorted(files(tmp_path / "a")) == [f"step={step}.npz" for step in ("0", "12-v1", "12", "4", "8")]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_second_run_and_a_second_fit(package: Any, tmp_path: Path) -> None:
    callback = FixedExamples(4, tmp_path)
    run(package, callback)
    before = files(tmp_path)
    trainer = run(package, callback)
    assert load_fixed_examples(tmp_path)["step"].tolist() == [0, 2, 4]
    assert {name: content for name, content in files(tmp_path).items() if name in before} == before
    assert len(files(tmp_path)) == 6
    (tmp_path / "mine.txt").write_text("mine")
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(trainer.lightning_module, make_loader(), make_loader(seed=1))
    assert load_fixed_examples(tmp_path)["step"].tolist() == [0, 2, 4, 6]
    assert len(json.loads((tmp_path / INDEX_NAME).read_text())["earlier_runs"]) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_only_evaluations_of_a_fit(package: Any, tmp_path: Path) -> None:
    callback = FixedExamples(4, tmp_path / "a")
    trainer = make_trainer(
        package, [callback], num_sanity_val_steps=1, max_steps=16, val_check_interval=4, limit_val_batches=1
    )
    model = make(package, _Forward)
    trainer.validate(model, make_loader(), verbose=False)
    trainer.fit(model, make_loader(), make_loader())
    trainer.validate(model, make_loader(), verbose=False)
    assert load_fixed_examples(tmp_path / "a")["step"].tolist() == [4, 8, 12, 16]
    quick = make_trainer(package, [FixedExamples(4, tmp_path / "b")], fast_dev_run=True)
    quick.fit(make(package, _Forward), make_loader(), make_loader())
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_the_folder_is_beside_the_checkpoints_by_default(package: Any, tmp_path: Path) -> None:
    logger = package.loggers.CSVLogger(tmp_path, name="mine", version=3)
    for options, folder in (
        ({"logger": logger, "log_every_n_steps": 1}, tmp_path / "mine" / "version_3"),
        ({"default_root_dir": tmp_path}, tmp_path),
    ):
        callback = FixedExamples(4)
        trainer = make_trainer(package, [callback, PeriodicEvaluation(2)], max_steps=2, **options)
        trainer.fit(make(package, _Forward), make_loader(), make_loader())
        assert callback.folder == folder / "fixed_examples"
        assert load_fixed_examples(folder / "fixed_examples")["step"].tolist() == [0, 2]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_full_disk_warns_and_training_goes_on(package: Any, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(package.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 4:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    stack = [FixedExamples(N, tmp_path, predict), PeriodicEvaluation(EVERY), Fill()]
    message = (
        f"{tmp_path / 'step=4.npz'} could not be written (File too large): training goes on, and the predictions saved "
        "before are intact. Make room or correct the folder's permissions before the next evaluation."
    )
    try:
        with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
            notes, _ = fit(package, stack)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert load_fixed_examples(tmp_path)["step"].tolist() == [0, 8, 12]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        INDEX_NAME, "step=0.npz", "step=12.npz", "step=8.npz",
    ]  # fmt: skip
    assert len(notes.trained) == N_STEPS + 1


def refused(package: Any, callback: Any, model: Any = None, loader: Any = None, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"`n`|`predict`|`dataset`") as caught:
        run(package, callback, model, loader, **options)
    return str(caught.value)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_cannot_be_predicted_is_refused(package: Any, tmp_path: Path) -> None:
    assert refused(package, FixedExamples(4, tmp_path), make_model(package)) == (
        "`predict` is None, and Toy defines neither predict_step nor forward. Define one of them, or pass "
        "predict=lambda module, batch: ..."
    )
    assert refused(package, FixedExamples(33, tmp_path)) == (
        "`n` is 33, and the validation set has 32 examples. Pass fewer, or smaller indices."
    )
    assert refused(package, FixedExamples([1, 32], tmp_path)) == (
        "`n` is [1, 32], and the validation set has 32 examples. Pass fewer, or smaller indices."
    )
    wrong = FixedExamples(6, tmp_path, lambda module, batch: {"loss": torch.zeros(())})
    assert refused(package, wrong) == (
        "`predict` returned 'loss' of shape (): for 4 examples it must return a tensor of shape (4, ...), or a "
        "dictionary of them, with names other than step and indices. Correct it."
    )
    wrong = FixedExamples(4, tmp_path, lambda module, batch: None)
    assert "`predict` returned 'prediction' of type NoneType: for 4 examples" in refused(package, wrong)
    assert not tmp_path.is_dir() or not list(tmp_path.iterdir())


class _Stream(IterableDataset[Any]):
    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return iter([(torch.zeros(3), torch.zeros(1))] * 4)


class _Named(Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        return {"x": torch.zeros(3)}


class _Anything(_Forward):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
@pytest.mark.parametrize("package", PACKAGES)
def test_what_cannot_be_read_is_refused(package: Any, tmp_path: Path) -> None:
    stream = DataLoader(_Stream(), batch_size=4)
    assert refused(package, FixedExamples(4, tmp_path), loader=stream) == (
        "`dataset` is None, and the first validation loader is a DataLoader of _Stream: examples cannot be read from "
        "it by number. Pass a map-style data set, with __len__ and __getitem__, as dataset=."
    )
    run(package, FixedExamples(4, tmp_path, dataset=make_loader().dataset), loader=stream)
    assert load_fixed_examples(tmp_path)["prediction"].shape == (3, 4, 1)
    named = DataLoader(_Named(), batch_size=4)
    assert refused(package, FixedExamples(4, tmp_path), make(package, _Anything), named) == (
        "`predict` is None, and the batch is a dict, of which the input is not known. Pass predict=lambda module, "
        "batch: ..., or define predict_step."
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_other_examples_are_refused_on_resuming(package: Any, tmp_path: Path) -> None:
    run(package, FixedExamples([1, 2], tmp_path)).save_checkpoint(tmp_path / "4.ckpt")
    message = refused(package, FixedExamples([1, 3], tmp_path), n_steps=6, ckpt_path=tmp_path / "4.ckpt")
    assert message == (
        "`n` gives the examples [1, 3], and the run that is resumed saved the predictions for [1, 2]: they cannot be "
        "compared. Resume with the same n, seed and validation set, or pass another dirpath."
    )


@pytest.mark.parametrize("n", [0, True, [], [1, 1], [-1, 2]])
def test_the_number_of_examples_is_checked(n: Any) -> None:
    message = (
        f"`n` is {n!r}: it must be a number of examples, at least 1, or their indices, at least 0 and each once. Pass "
        "for instance 16."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FixedExamples(n)


def test_remote_folders_are_refused() -> None:
    message = (
        "`dirpath` is 's3://bucket': FixedExamples writes to local folders only. Pass a local path, and copy the "
        "folder afterwards."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        FixedExamples(4, "s3://bucket")


def test_folders_that_cannot_be_loaded(tmp_path: Path) -> None:
    def message(kind: str) -> str:
        return re.escape(
            f"`folder` is {str(tmp_path)!r}, which has no list of predictions to read ({kind} of fixed_examples.json). "
            "Pass the dirpath of a FixedExamples, and move files of that name from elsewhere away."
        )

    with pytest.raises(ValueError, match=f"^{message('FileNotFoundError')}$"):
        load_fixed_examples(tmp_path)
    (tmp_path / INDEX_NAME).write_text("{}")
    with pytest.raises(ValueError, match=f"^{message('KeyError')}$"):
        load_fixed_examples(tmp_path)
    rows = [[0, "a.npz"], [1, "b.npz"]]
    (tmp_path / INDEX_NAME).write_text(json.dumps({"indices": [0], "evaluations": rows, "earlier_runs": []}))
    np.savez(tmp_path / "a.npz", step=0, indices=[0], prediction=[[0.0]])
    np.savez(tmp_path / "b.npz", step=1, indices=[0], prediction=[[0.0, 1.0]])
    shapes = [f"{{'step': (), 'indices': (1,), 'prediction': (1, {n})}}" for n in (2, 1)]
    message_ = (
        f"`folder` holds arrays of the shapes {shapes[0]} in b.npz and {shapes[1]} in a.npz: they cannot be stacked. "
        "Read the files one by one with numpy.load."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message_)}$"):
        load_fixed_examples(tmp_path)


def refusal_of(package: Any, folder: Path, **options: Any) -> str:
    environment = dict(os.environ)
    try:
        with pytest.raises(ValueError, match="`strategy` is") as caught:
            fit(package, [FixedExamples(N, folder, predict)], folder=folder, **options)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        restore(environment)
    return str(caught.value)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_sharded_models_are_refused(package: Any, kind: str, tmp_path: Path) -> None:
    if kind == "DeepSpeedStrategy":
        strategies = package.strategies

        class Stage2(strategies.DeepSpeedStrategy):  # type: ignore[misc]
            """The real class, of which only what needs the library itself is left out."""

            def __init__(self) -> None:
                strategies.DDPStrategy.__init__(self, process_group_backend="gloo")

            setup_environment = strategies.DDPStrategy.setup_environment
            setup_distributed = strategies.DDPStrategy.setup_distributed

        options: dict[str, Any] = {"strategy": Stage2()}
    else:
        options = support_runs.fsdp_options(package, "fsdp1" if kind == "FSDPStrategy" else "fsdp2", n_devices=1)
    name = "Stage2" if kind == "DeepSpeedStrategy" else kind
    assert refusal_of(package, tmp_path, **options) == (
        f"`strategy` is {name}, which shards the model: FixedExamples needs the whole parameters on every rank. Train "
        "with a single device or with DDP, or remove FixedExamples and predict from the checkpoints after training."
    )


class _Written:
    def __init__(self, values: dict[str, Any]) -> None:
        vars(self).update(values)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_two_processes(strategy: str, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__)), strategy, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for package in support_runs.PACKAGES:
        saved = load_fixed_examples(tmp_path / package)
        for rank in (0, 1):
            notes, plain = (
                _Written(torch.load(tmp_path / f"{package}-{run}-rank{rank}.pt")) for run in ("with", "without")
            )
            check(saved, notes, n_ranks=2)
            check_untouched(notes, plain)
        assert saved["indices"].max() > 63  # beyond what one process trains on
        assert len(list((tmp_path / package).iterdir())) == 5


def main(strategy: str, folder: Path) -> None:
    for name, package in support_runs.PACKAGES.items():
        for run_name, mine in (("with", [FixedExamples(N, folder / name, predict)]), ("without", [])):
            stack = [*mine, WeightEMA(decay=DECAY), BatchNormSync(), PeriodicEvaluation(EVERY)]
            fit(package, stack, notes=Notes(folder / f"{name}-{run_name}"), n_ranks=2, strategy=strategy, folder=folder)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
