from __future__ import annotations

import json
import os
import pickle
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, make_gan, make_loader, make_model, make_trainer
from probe_fingerprint import Tracer, differences, fingerprint
from torch.utils.data import DataLoader, IterableDataset

from playbook_plugins.analysis.throughput import Throughput
from playbook_plugins.lightning.batch_size_probe import BatchSizeProbe
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.probe_function import probe_batch_sizes
from playbook_plugins.lightning.weight_ema import WeightEMA

pytestmark = [*QUIET]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Steps of microseconds are slower on several threads, above all beside other work.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def probe(**options: Any) -> BatchSizeProbe:
    return BatchSizeProbe(**({"max_batch_size": 16, "n_warmup_steps": 1, "n_steps": 3, "max_seconds": 0.0} | options))


def make_tracer(package: Any, **options: Any) -> Any:
    return type("TracedModule", (Tracer, package.LightningModule), {})(**options)


def make_logger(package: Any) -> Any:
    class Recording(package.loggers.logger.Logger):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Any] = []

        name = "recording"
        version = 0

        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            self.calls.append((dict(metrics), step))

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            self.calls.append("hyperparams")

    return Recording()


class Between:
    """A callback that takes a fingerprint at the start of each batch; mix it into a Callback."""

    def __init__(self) -> None:
        super().__init__()
        self.prints: list[dict[str, str]] = []
        self.without: list[Any] = [self]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.prints.append(fingerprint(trainer, pl_module, self.without))


# Where nothing that is put back can reach it.
HEARD: list[Any] = []


class Later:
    """A callback that runs a probe after some batches; mix it into a Callback."""

    def __init__(self, probe: BatchSizeProbe, at: tuple[int, ...]) -> None:
        super().__init__()
        self.probe, self.at = probe, at
        self.changed: list[list[str]] = []

    def on_before_backward(self, *_: Any) -> None:
        HEARD.append(self)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 in self.at:
            before = fingerprint(trainer, pl_module, [self])
            self.probe.run(trainer, pl_module)
            self.changed.append(differences(before, fingerprint(trainer, pl_module, [self])))


def mix(package: Any, kind: type, *arguments: Any) -> Any:
    return type(kind.__name__, (kind, package.Callback), {})(*arguments)


def others() -> list[Any]:
    return [PercentileGradientClipping(min_steps=2), WeightEMA(decay=0.9)]


def end_of(model: Any, trainer: Any) -> dict[str, Any]:
    """Return what a run has come to."""
    logs = [logger.calls for logger in trainer.loggers]
    own = [call for calls in logs for call in calls if "playbook_probe_batch_size" not in call[0]]
    return {
        "losses": model.losses,
        "seen": model.seen,
        "weights": [parameter.tolist() for parameter in model.parameters()],
        "statistics": [buffer.tolist() for buffer in model.buffers()],
        "logged": repr(own),
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "random": (random.random(), float(np.random.rand()), torch.rand(2).tolist()),  # noqa: NPY002
        "attributes": (model.n_batches, model.outputs, model.history["means"].tolist(), model.history["set"]),
    }


def seed(value: int = 1) -> None:
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002
    torch.manual_seed(value)


OPTIMIZERS = {
    "momentum": None,
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True),
    "lbfgs": lambda parameters: torch.optim.LBFGS(parameters, lr=0.1, max_iter=3, history_size=3),
}


@pytest.mark.parametrize(
    ("package", "optimizer"),
    [
        pytest.param(pytorch_lightning, "momentum", id="pytorch_lightning-momentum"),
        pytest.param(lightning.pytorch, "momentum", id="lightning-momentum", marks=pytest.mark.slow),
        pytest.param(pytorch_lightning, "adam", id="pytorch_lightning-adam", marks=pytest.mark.slow),
        pytest.param(lightning.pytorch, "lbfgs", id="lightning-lbfgs", marks=pytest.mark.slow),
    ],
)
def test_it_leaves_no_trace_at_the_start_and_later(package: Any, optimizer: str) -> None:
    def run(with_probe: bool) -> dict[str, Any]:
        seed()
        at_start, before, after = probe(), mix(package, Between), mix(package, Between)
        before.without = after.without = [at_start, before, after]
        later = mix(package, Later, probe(), (3, 10))
        callbacks = [before, at_start, after, later, *others()] if with_probe else others()
        model = make_tracer(package, optimizer=OPTIMIZERS[optimizer])
        trainer = make_trainer(
            package, callbacks, max_epochs=2, logger=make_logger(package), log_every_n_steps=1, num_sanity_val_steps=0
        )
        trainer.fit(model, make_loader(8, shuffle=True))
        if with_probe:
            assert [differences(*pair) for pair in zip(before.prints, after.prints, strict=True)] == [[]] * 16
            assert later.changed == [[], []]
            # Callbacks hear of training only.
            assert HEARD.count(later) == len(model.losses)
            for one in (at_start, later.probe):
                assert one.result is not None
                assert one.result.batch_size.tolist() == [2, 4, 8, 16]
        return end_of(model, trainer)

    assert run(True) == run(False)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_fingerprints_see_a_trace(package: Any) -> None:
    class Careless(package.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.training_step(batch, batch_idx).backward()

    before, after = mix(package, Between), mix(package, Between)
    before.without = after.without = [before, after]
    trainer = make_trainer(package, [before, Careless(), after], max_steps=1, logger=make_logger(package))
    trainer.fit(make_tracer(package), make_loader(2))
    changed = differences(before.prints[0], after.prints[0])
    for part in ("buffers", "gradients", "attributes", "metrics", "python", "numpy", "torch", "results", "loggers"):
        assert part in changed


class Stream(IterableDataset[Any]):
    """Examples one after the other, which can be read once only, or anew from the start."""

    def __init__(self, n: int = 48, is_shared: bool = False, seconds: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(n, 3, generator=generator)
        self.shared = iter(range(n)) if is_shared else None
        self.seconds = seconds
        self.n_given = 0

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.x)) if self.shared is None else self.shared:
            if self.seconds:
                time.sleep(self.seconds)
            self.n_given += 1
            yield self.x[index], self.x[index].sum(0, keepdim=True)


class Positioned(IterableDataset[Any]):
    """Its own iterator, with a position that a module that holds it could put back."""

    def __init__(self) -> None:
        self.position = 0

    def __iter__(self) -> Positioned:
        return self

    def __next__(self) -> Any:
        if self.position == 48:
            raise StopIteration
        self.position += 1
        x = torch.full((3,), float(self.position) / 48)
        return x, x[:1]


def generate(n_batches: int = 12) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(6)
    for _ in range(n_batches):
        x = torch.randn(4, 3, generator=generator)
        yield {"x": x, "pair": (x.sum(1, keepdim=True), ["text"] * 4), "scale": torch.tensor(1.0)}


class ByName:
    """Takes the batches of `generate`, and spoils them; mix it in before `Tracer`."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert len(batch["pair"][1]) == len(batch["x"])
        loss = super().training_step((batch["x"].clone(), batch["pair"][0]), batch_idx)  # type: ignore[misc]
        batch["x"].zero_()
        return loss


class Batches(torch.utils.data.Dataset[Any]):
    """A map-style data set of whole batches."""

    def __init__(self) -> None:
        self.batches = list(make_loader(8))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.batches[index]


STREAMS: dict[str, Any] = {
    "anew": lambda: DataLoader(Stream(), batch_size=4),
    "shared": lambda: DataLoader(Stream(is_shared=True), batch_size=4),
    "held": lambda: DataLoader(Positioned(), batch_size=4),
    "workers": lambda: DataLoader(Stream(), batch_size=4, num_workers=2),
    "generator": generate,
    "shuffled workers": lambda: DataLoader(
        make_loader(8).dataset, batch_size=4, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(8)
    ),
    "without batches": lambda: DataLoader(Batches(), batch_size=None, shuffle=True),
}


@pytest.mark.parametrize(
    ("package", "kind", "limit"),
    [
        pytest.param(
            PACKAGES[place % 2].values[0],
            kind,
            limit,
            id=f"{kind}-{limit}",
            marks=[] if limit is None and kind in ("shared", "generator") else [pytest.mark.slow],
        )
        for place, kind in enumerate(STREAMS)
        for limit in (None, 7)
    ],
)
def test_training_sees_every_batch_of_a_stream_in_order(package: Any, kind: str, limit: int | None) -> None:
    def run(with_probe: bool) -> Any:
        seed()
        # There is time to read ahead.
        start, one = (probe(max_batch_size=32, max_seconds=0.1) for _ in range(2))
        later = mix(package, Later, one, (3,))
        bases = (ByName, Tracer) if kind == "generator" else (Tracer,)
        model = type("Streamed", (*bases, package.LightningModule), {})()
        options = {} if limit is None else {"limit_train_batches": limit}
        callbacks = [start, later] if with_probe else []
        trainer = make_trainer(package, callbacks, max_epochs=2, logger=make_logger(package), **options)
        data = STREAMS[kind]()
        model.held = getattr(data, "dataset", None) if kind == "held" else None
        trainer.fit(model, data)
        if with_probe:
            assert later.changed == [[]]
            assert start.result is not None
            assert start.result.batch_size.tolist()[:4] == [2, 4, 8, 16]
        return end_of(model, trainer), next(iter(data), None) if kind == "generator" else None

    assert repr(run(True)) == repr(run(False))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed", "16-mixed"])
def test_precisions_and_accumulation(package: Any, precision: str) -> None:
    def run(with_probe: bool) -> Any:
        seed()
        options: dict[str, Any] = {"precision": precision}
        if precision == "16-mixed":
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
            options = {"plugins": [package.plugins.MixedPrecision(precision, "cpu", scaler)]}
        later = mix(package, Later, probe(max_batch_size=4), (1, 4))
        model = make_model(package, dropout=0.5, configure=lambda me: torch.optim.Adam(me.net.parameters(), lr=0.01))
        trainer = make_trainer(
            package, [probe(), later] if with_probe else [], max_steps=4, accumulate_grad_batches=3, **options
        )
        trainer.fit(model, make_loader(20))
        assert later.changed == [[], []] * with_probe
        return model.losses, model.rates, [parameter.tolist() for parameter in model.parameters()]

    assert run(True) == run(False)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_optimizer_steps_for_real_under_a_scaler(package: Any) -> None:
    # While the scaler skips steps, the optimizer has no state, and a step is too fast.
    states: list[int] = []

    class Told(torch.optim.Adam):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            result = super().step(*args, **kwargs)
            states.append(len(self.state))
            return result

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    model = make_model(package, configure=lambda me: Told(me.net.parameters(), lr=0.01))
    one = probe(max_batch_size=2)
    plugin = package.plugins.MixedPrecision("16-mixed", "cpu", scaler)
    trainer = make_trainer(package, [one, stop_at_first(package)], plugins=[plugin], max_steps=1)
    trainer.fit(model, make_loader(4))
    # Three steps that the scaler took at last, one more to warm up, and three that are timed.
    assert states == [4] * len(states)
    assert len(states) >= 7
    assert scaler.get_scale() == 2.0**30
    assert not trainer.optimizers[0].state


def stop_at_first(package: Any) -> Any:
    class Stop(package.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            raise package.utilities.exceptions._TunerExitException

    return Stop()


@pytest.mark.parametrize("package", PACKAGES)
def test_manual_optimization(package: Any) -> None:
    def run(with_probe: bool) -> Any:
        model = make_gan(package)
        model.n_batches = 0
        later = mix(package, Later, probe(), (2,))
        trainer = make_trainer(package, [probe(), later] if with_probe else [], max_steps=8)
        trainer.fit(model, make_loader(5))
        assert later.changed == [[]] * with_probe
        return model.rates, [parameter.tolist() for parameter in model.parameters()], trainer.global_step

    assert run(True) == run(False)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_compiled_network(package: Any) -> None:
    def run(with_probe: bool) -> Any:
        one = probe(max_batch_size=8)
        model = make_model(package)
        n_compiled: list[int] = []

        def backend(graph: Any, examples: Any) -> Any:
            n_compiled.append(len(examples))
            return graph.forward

        model.net = torch.compile(model.net, backend=backend)
        trainer = make_trainer(package, [one] if with_probe else [], max_steps=4)
        trainer.fit(model, make_loader(5))
        return model.losses, len(n_compiled)

    with_probe, n_with = run(True)
    without, n_without = run(False)
    assert with_probe == without
    # Three sizes, and training once more.
    assert (n_with, n_without) == (4, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_it_puts_everything_back_after_an_error_too(error: type[BaseException]) -> None:
    package = pytorch_lightning

    class Breaks(make_tracer(package).__class__):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            if len(batch[0]) == 8:
                raise error
            return loss

    class Try(package.Callback):
        changed: list[str] | None = None

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if pl_module.n_batches == 2:
                before = fingerprint(trainer, pl_module, [self])
                with pytest.raises(error):
                    probe().run(trainer, pl_module)
                self.changed = differences(before, fingerprint(trainer, pl_module, [self]))

    one = Try()
    trainer = make_trainer(package, [one], max_steps=4, logger=make_logger(package), log_every_n_steps=1)
    trainer.fit(Breaks(), make_loader(8))
    assert one.changed == []
    assert trainer.global_step == 4


@pytest.mark.parametrize("package", PACKAGES)
def test_out_of_memory_ends_the_search_below(package: Any) -> None:
    class Large(make_tracer(package).__class__):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(batch[0]) >= self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return super().training_step(batch, batch_idx)

    for limit, start, expected in ((8, 2, [2, 4]), (8, 16, [4])):
        model = Large()
        model.limit = limit
        one = probe(start=start, max_batch_size=64)
        make_trainer(package, [one, stop_at_first(package)], max_steps=1).fit(model, make_loader(8))
        assert one.result is not None
        assert one.result.batch_size.tolist() == expected
        assert (one.result.limit, one.result.failed_batch_size) == ("memory", 8)
    model = Large()
    model.limit = 1
    one = probe()
    with pytest.warns(UserWarning, match=r"^BatchSizeProbe: not even a batch of one example fits into memory\.$"):
        make_trainer(package, [one, stop_at_first(package)], max_steps=1).fit(model, make_loader(8))
    assert one.result is not None
    assert (len(one.result), one.result.failed_batch_size) == (0, 1)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wait_for_data_and_the_knee_by_a_clock(package: Any) -> None:
    now = [0.0]

    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            now[0] += 0.002
            return torch.zeros(3), torch.zeros(1)

    class SlowStream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return map(Slow().__getitem__, range(64))

    class Knee(make_model(package).__class__):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            now[0] += max(0.010, 0.001 * len(batch[0]))
            return super().training_step(batch, batch_idx)

    for data in (Slow(), SlowStream()):
        one = BatchSizeProbe(max_batch_size=16, clock=lambda: now[0])
        trainer = make_trainer(package, [one, stop_at_first(package)], max_epochs=1)
        trainer.fit(Knee(), DataLoader(data, batch_size=2))
        assert one.result is not None
        np.testing.assert_allclose(one.result.seconds_per_step, [0.014, 0.018, 0.026, 0.048])
        np.testing.assert_allclose(one.result.data_wait_share, [4 / 14, 8 / 18, 16 / 26, 32 / 48])


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_it_finds_a_known_knee(package: Any) -> None:
    now = [0.0]
    noise = np.random.default_rng(0)

    class Knee(make_model(package).__class__):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            # A step's time varies by 10%, and one in ten is held up by something else.
            noisy = np.exp(0.1 * noise.standard_normal()) * (3 if noise.random() < 0.1 else 1)
            now[0] += noisy * max(0.008, 0.001 * len(batch[0]))
            return super().training_step(batch, batch_idx)

    found = [
        probe_batch_sizes(Knee(), make_loader(16), max_batch_size=64, clock=lambda: now[0], max_seconds=0.5).recommended
        for _ in range(20)
    ]
    assert sum(one in (4, 8, 16) for one in found) >= 19, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["map", "workers", "stream"])
def test_the_share_of_the_wait_is_the_injected_one(kind: str) -> None:
    package = lightning.pytorch

    # Long enough that what a busy machine adds to each, some milliseconds, is a small share of it.
    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 64

        def __getitem__(self, index: int) -> Any:
            time.sleep(0.04)
            return torch.zeros(3), torch.zeros(1)

    class Busy(make_model(package).__class__):  # type: ignore[misc]
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            time.sleep(0.16)
            return super().training_step(batch, batch_idx)

    data = Stream(64, seconds=0.04) if kind == "stream" else Slow()
    n_workers = 2 if kind == "workers" else 0
    loader = DataLoader(data, batch_size=4, num_workers=n_workers)
    result = probe_batch_sizes(Busy(), loader, start=4, max_batch_size=16, n_warmup_steps=1, max_seconds=6.0)
    sizes = result.batch_size
    # One process loads 40 ms an example beside the 160 ms of a step; two of them meanwhile load two batches at once.
    expected = sizes / (4 + sizes) if not n_workers else np.maximum(0, 1 - 8 / sizes)
    np.testing.assert_allclose(result.data_wait_share, expected, atol=0.1)


@pytest.mark.parametrize("package", PACKAGES)
def test_as_a_function_it_leaves_the_model_as_it_was(package: Any) -> None:
    class Data(package.LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.batch_size = 4

        def setup(self, stage: str) -> None:
            self.dataset = make_loader(8).dataset

        def train_dataloader(self) -> Any:
            return DataLoader(self.dataset, batch_size=self.batch_size, shuffle=True)

    module = Data()
    for data in (make_loader(8, shuffle=True), list(make_loader(8)), module, DataLoader(Stream(), batch_size=4)):
        model = make_tracer(package)
        model.eval()
        model.net.train()
        model.net[0].weight.grad = torch.ones(6, 3)
        before = picture(model), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        gradient = model.net[0].weight.grad
        result = probe_batch_sizes(model, data, max_batch_size=64, n_warmup_steps=1, n_steps=3, max_seconds=0.1)
        assert result.batch_size.tolist()[:5] == [2, 4, 8, 16, 32]
        assert result.limit == "data"
        after = picture(model), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        assert after == before
        assert model.net[0].weight.grad is gradient
        assert model._trainer is None
    assert not hasattr(module, "dataset")


def picture(model: Any) -> Any:
    return (
        [
            (name, value.tolist(), value.requires_grad, id(value))
            for name, value in model.state_dict(keep_vars=True).items()
        ],
        [None if parameter.grad is None else parameter.grad.tolist() for parameter in model.parameters()],
        [(name, part.training) for name, part in model.named_modules()],
        sorted(vars(model)),
        repr({name: value for name, value in vars(model).items() if not name.startswith("_")}),
    )


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("holder", ["module", "hparams", "data module"])
def test_batches_that_cannot_be_cut_are_made_by_the_attribute(package: Any, holder: str) -> None:
    class Graphs:
        def __init__(self, x: Any) -> None:
            self.x, self.num_graphs = x, len(x)

    class Loader:
        def __init__(self, batch_size: int) -> None:
            self.batch_size = batch_size

        def __iter__(self) -> Iterator[Any]:
            for x, _ in make_loader(32 // self.batch_size, self.batch_size):
                yield Graphs(x)

    class Hook:
        def train_dataloader(self) -> Any:
            return Loader(self.hparams.batch_size if holder == "hparams" else self.batch_size)  # type: ignore[attr-defined]

    class Model(Hook, make_model(package).__class__):  # type: ignore[misc]
        def __init__(self, batch_size: int = 4) -> None:
            super().__init__()
            if holder == "hparams":
                self.save_hyperparameters()
            elif holder == "module":
                self.batch_size = batch_size

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.net(batch.x).square().mean()
            self.log("loss", loss, batch_size=batch.num_graphs)
            self.losses.append(float(loss.detach()))
            return loss

    class Data(Hook, package.LightningDataModule):
        batch_size = 4

    def run(callbacks: list[Any]) -> Any:
        model = Model()
        data = {"datamodule": Data()} if holder == "data module" else {}
        trainer = make_trainer(package, callbacks, max_epochs=2)
        trainer.fit(model, **data)
        assert (model.hparams.get("batch_size"), getattr(data.get("datamodule", model), "batch_size", 4))[1] == 4
        return model.losses

    one = probe(max_batch_size=64)
    assert run([one]) == run([])
    assert one.result is not None
    assert (one.result.batch_size.tolist(), one.result.limit) == ([2, 4, 8, 16, 32], "data")


@pytest.mark.parametrize("package", PACKAGES)
def test_it_runs_once_and_logs_at_the_end(package: Any, tmp_path: Any) -> None:
    one = probe()
    logger = make_logger(package)
    trainer = make_trainer(package, [one], max_steps=4, logger=logger, log_every_n_steps=100)
    trainer.fit(make_model(package), make_loader(8))
    result = one.result
    assert isinstance(result, Throughput)
    metrics, step = logger.calls[-1]
    assert step == 4
    assert metrics["playbook_probe_batch_size"] == result.recommended
    assert metrics["playbook_probe_examples_per_second"] == result.examples_per_second[result.recommended_row]
    assert metrics["playbook_probe_largest_batch_size"] == 16
    assert "playbook_probe_peak_memory" not in metrics
    assert sum("playbook_probe_batch_size" in call[0] for call in logger.calls) == 1
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = probe()
    trainer = make_trainer(package, [again], max_steps=6)
    trainer.fit(make_model(package), make_loader(8), ckpt_path=tmp_path / "last.ckpt", **SAFE_LOADING)
    assert again.result is not None
    assert again.result.to_dict() == result.to_dict()
    # A further fit leaves the result alone, unless it was asked for.
    make_trainer(package, [one], max_steps=1).fit(make_model(package), make_loader(8))
    assert one.result is result
    one.every_fit = True
    make_trainer(package, [one], max_steps=1).fit(make_model(package), make_loader(8))
    assert one.result is not result
    # Lightning leaves a reference to the module in every callback of a fit.
    fresh = probe()
    fresh.load_state_dict(one.state_dict())
    assert pickle.loads(pickle.dumps(fresh)).result.to_dict() == one.result.to_dict()


def test_it_logs_after_an_error_too() -> None:
    package = pytorch_lightning

    class Fails(package.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyError("end")

    logger = make_logger(package)
    with pytest.raises(KeyError):
        make_trainer(package, [probe(), Fails()], max_steps=4, logger=logger).fit(make_model(package), make_loader(2))
    assert "playbook_probe_batch_size" in logger.calls[-1][0]


ARGUMENTS = {
    "`start` is 0: a batch holds at least 1 example. Pass a power of two, such as 2.": {"start": 0},
    "`max_batch_size` is 4 and `start` 8: the search goes up from start. Pass a larger max_batch_size or a smaller "
    "start.": {"start": 8, "max_batch_size": 4},
    "`n_warmup_steps` is 0: it must be at least 1, for the first step also allocates memory. Pass 1 or more.": {
        "n_warmup_steps": 0
    },
    "`n_steps` is 2: a median needs at least 3 steps. Pass 3 or more.": {"n_steps": 2},
    "`max_seconds` is inf: it must be finite and not negative. Pass the time that each batch size may take, in "
    "seconds.": {"max_seconds": float("inf")},
}


@pytest.mark.parametrize("message", ARGUMENTS)
def test_bad_arguments_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BatchSizeProbe(**ARGUMENTS[message])


REFUSED = {
    "FSDPStrategy": "every step communicates, so that a rank that runs out of memory would leave the others waiting. "
    "Probe with strategy='ddp' or on one device, if the model fits there.",
    "ModelParallelStrategy": "every step communicates, so that a rank that runs out of memory would leave the others "
    "waiting. Probe with strategy='ddp' or on one device, if the model fits there.",
    "DeepSpeedStrategy": "it takes the optimizer step itself. Probe with strategy='ddp'.",
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", REFUSED)
def test_sharded_strategies_are_refused(package: Any, name: str) -> None:
    strategy = type(name, (package.strategies.SingleDeviceStrategy,), {})(
        device="cpu", accelerator=package.accelerators.CPUAccelerator()
    )
    message = f"`strategy` is {name}, and BatchSizeProbe does not support it: {REFUSED[name]}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(package, [probe()], max_steps=1, strategy=strategy, accelerator="auto", devices="auto").fit(
            make_model(package), make_loader(2)
        )


def test_spawned_processes_are_refused() -> None:
    message = (
        "`strategy` is DDPStrategy, and BatchSizeProbe does not support it: the result would stay behind in the worker "
        "process. Use strategy='ddp'."
    )
    with pytest.raises(Exception, match=re.escape(message)):
        make_trainer(pytorch_lightning, [probe()], max_steps=1, strategy="ddp_fork", devices=2).fit(
            make_model(pytorch_lightning), make_loader(8)
        )


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.filterwarnings("ignore:Found `dataloader_iter` argument in the `training_step`")
def test_what_else_is_refused() -> None:
    package = lightning.pytorch
    message = (
        "`train_dataloaders` are 2 loaders, and BatchSizeProbe doubles one batch size. Pass one loader, or probe each "
        "of them by itself with probe_batch_sizes."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(package, [probe()], max_steps=1).fit(make_model(package), [make_loader(2), make_loader(2)])

    class Reads(make_model(package).__class__):  # type: ignore[misc]
        def training_step(self, dataloader_iter: Any) -> Any:
            return self.loss(next(dataloader_iter)[0])

    message = (
        "`training_step` takes a dataloader_iter, and BatchSizeProbe does not support it: the batches are fetched "
        "where it cannot see them. Take a batch instead."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(package, [probe()], max_steps=1).fit(Reads(), make_loader(2))

    class Opaque:
        pass

    message = (
        "`train_dataloaders` gives batches of type Opaque, which cannot be cut into batches of another size. Give the "
        "module or the data module an attribute `batch_size` that its train_dataloader uses, or pass a map-style data "
        "set in a DataLoader."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(package, [probe()], max_steps=1).fit(make_model(package), (Opaque() for _ in range(8)))
    with pytest.raises(
        ValueError, match=r"^`data` holds no batch: the loader gave nothing to train on\. Pass a loader"
    ):
        probe_batch_sizes(make_model(package), [])
    message = (
        "`devices` is 2: probe_batch_sizes measures one device. Pass devices=1, or add BatchSizeProbe to the callbacks "
        "of a Trainer with several."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        probe_batch_sizes(make_model(package), make_loader(2), accelerator="cpu", devices=2)

    class Validates(package.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            probe().run(trainer, pl_module)

    message = (
        "`trainer` is in stage validate: the probe runs training steps. Call run from a hook of training between two "
        "steps, such as on_train_batch_end."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(package, [Validates()], max_steps=2, num_sanity_val_steps=0).fit(
            make_model(package), make_loader(2), make_loader(2)
        )


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
@pytest.mark.parametrize("package", PACKAGES)
def test_real_shortage_of_memory(package: Any) -> None:
    script = Path(__file__).parent / "probe_memory_script.py"
    command = [sys.executable, str(script), str(script.parent), package.__name__]
    done = subprocess.run(
        command, check=True, timeout=250, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    told = json.loads(done.stdout)
    for where in ("step", "collate"):
        result = told[f"{where} with"].pop("result")
        assert told[f"{where} with"].items() <= told[f"{where} without"].items()
        assert result["limit"] == "memory"
        assert result["failed_batch_size"] == 2 * result["batch_size"][-1]
        # A GiB holds no more than 64 examples of 16 MiB, and in a step twice as much each.
        assert 16 <= result["failed_batch_size"] <= (128 if where == "collate" else 64)
        assert Throughput.from_dict(result).recommended in result["batch_size"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("package", PACKAGES)
def test_out_of_memory_of_a_gpu(package: Any) -> None:
    def run(with_probe: bool) -> Any:
        seed()
        later = mix(package, Later, probe(max_batch_size=2**22), (3,))
        model = make_tracer(package, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True))
        step = model.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            # Some 64 MiB an example.
            wide = batch[0][:, :1].expand(-1, 2**24).exp().mean()
            return step(batch, batch_idx) + 0 * wide

        model.training_step = training_step
        model.to("cpu")
        trainer = make_trainer(package, [later] if with_probe else [], max_steps=6, accelerator="gpu")
        trainer.fit(model, DataLoader(make_loader(2**18, 4).dataset, 4, shuffle=True))
        if with_probe:
            assert later.changed == [[]]
            assert later.probe.result is not None
            assert later.probe.result.limit == "memory"
            peaks = later.probe.result.peak_memory
            assert (peaks[1:] > 1.5 * peaks[:-1])[2:].all()
        return model.losses

    assert run(True) == run(False)
