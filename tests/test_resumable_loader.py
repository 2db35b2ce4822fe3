"""A run that is killed in the middle of an epoch and resumed: the loader by itself, and the whole stack bit for bit."""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, make_gan, make_loader, make_model, make_trainer
from resume_run import Examples, make_callbacks, train
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from playbook_plugins.lightning import BestCheckpoints, PeriodicEvaluation
from playbook_plugins.lightning.random_state import RandomState, capture, restore, undisturbed
from playbook_plugins.lightning.resumable_loader import ResumableDataLoader

pytestmark = [*QUIET, pytest.mark.filterwarnings(r"ignore:LearningRateWarmup takes \d+% of the")]

N_EXAMPLES = 22


class Numbers(Dataset[Any]):
    """The numbers from 0, which notes what is read of it."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return N_EXAMPLES

    def __getitem__(self, index: int) -> int:
        self.read.append(index)
        return index


class Shuffled(Sampler[int]):
    """An order by Python's and NumPy's global generators, drawn at the start of an epoch."""

    def __len__(self) -> int:
        return N_EXAMPLES

    def __iter__(self) -> Iterator[int]:
        order = list(range(N_EXAMPLES))
        random.shuffle(order)
        yield from np.random.permutation(order).tolist()  # noqa: NPY002


class DrawnAsItGoes(Sampler[int]):
    """An order by torch's global generator, drawn one at a time."""

    def __len__(self) -> int:
        return N_EXAMPLES

    def __iter__(self) -> Iterator[int]:
        for _ in range(N_EXAMPLES):
            yield int(torch.randint(N_EXAMPLES, ()))


def make_generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def shared_generator() -> dict[str, Any]:
    generator = make_generator()
    return {
        "sampler": RandomSampler(range(N_EXAMPLES), True, 40, generator=generator),
        "batch_size": 4,
        "generator": generator,
    }


# What the loader is made with; a function each, as generators must be new in the resumed run.
WAYS = {
    "in order": lambda: {"batch_size": 4},
    "shuffled": lambda: {"batch_size": 4, "shuffle": True},
    "last batch dropped": lambda: {"batch_size": 4, "shuffle": True, "drop_last": True},
    "with a generator": lambda: {"batch_size": 4, "shuffle": True, "generator": make_generator()},
    "with replacement": lambda: {"sampler": RandomSampler(range(N_EXAMPLES), True, 40), "batch_size": 4},
    "with replacement and a generator": shared_generator,
    "without batches": lambda: {"batch_size": None, "shuffle": True},
    "batch sampler": lambda: {"batch_sampler": BatchSampler(RandomSampler(range(N_EXAMPLES)), 5, drop_last=False)},
    "weighted": lambda: {"sampler": WeightedRandomSampler(torch.arange(1, N_EXAMPLES + 1), 30), "batch_size": 4},
    "subset": lambda: {"sampler": SubsetRandomSampler(range(3, 19), generator=make_generator()), "batch_size": 4},
    "Python and NumPy": lambda: {"sampler": Shuffled(), "batch_size": 4},
    "distributed": lambda: {"sampler": DistributedSampler(Numbers(), 2, 1, seed=4), "batch_size": 2},
}


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def as_lists(batches: Any) -> list[Any]:
    return [batch.tolist() if isinstance(batch, torch.Tensor) else batch for batch in batches]


def begin_epoch(loader: DataLoader[Any], epoch: int) -> Iterator[Any]:
    if isinstance(loader.sampler, DistributedSampler):
        loader.sampler.set_epoch(epoch)
    return iter(loader)


def is_same(one: Any, other: Any) -> bool:
    """Whether two nested values are equal bit for bit; NaN equals NaN."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(is_same(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def differences(whole: dict[str, Any], resumed: dict[str, Any]) -> list[str]:
    """Return in what a resumed run differs from the uninterrupted one."""
    expected = dict(whole)
    for name in ("examples", "losses"):
        expected[name] = whole[name][len(whole[name]) - len(resumed[name]) :]
    if not resumed["losses"]:
        # The run had ended: nothing was trained, and Lightning calls none of the hooks of training.
        expected["weights"] = resumed["weights"]
    return [name for name in whole if not is_same(expected[name], resumed[name])]


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ckpt"))


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("way", WAYS)
def test_it_gives_the_batches_of_an_ordinary_loader(way: str, n_workers: int) -> None:
    told = []
    for kind in (DataLoader, ResumableDataLoader):
        loader = kind(Numbers(), num_workers=n_workers, **WAYS[way]())
        seed_all(1)
        told.append([as_lists(begin_epoch(loader, epoch)) for epoch in range(3)])
        assert len(loader) == len(iter(loader)) == len(told[0][0])
    assert told[0] == told[1]
    assert way == "in order" or told[0][0] != told[0][1]


@pytest.mark.parametrize(
    ("n_workers", "persistent"),
    [(0, False), pytest.param(2, False, marks=pytest.mark.slow), pytest.param(2, True, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("way", WAYS)
def test_a_resumed_epoch_is_the_rest_of_the_interrupted_one(way: str, n_workers: int, persistent: bool) -> None:
    def make() -> ResumableDataLoader[Any]:
        return ResumableDataLoader(Numbers(), num_workers=n_workers, persistent_workers=persistent, **WAYS[way]())

    for epoch, n_seen in ((0, 0), (0, 2), (1, 1), (1, 3), (1, -1)):
        loader = make()
        seed_all(1)
        for earlier in range(epoch):
            as_lists(begin_epoch(loader, earlier))
        batches = begin_epoch(loader, epoch)
        for _ in range(len(loader) if n_seen == -1 else n_seen):
            next(batches)
        place, generators = through_a_file(loader.state_dict()), through_a_file(capture())
        rest = [as_lists(batches), as_lists(begin_epoch(loader, epoch + 1))]

        seed_all(2)
        again = make()
        again.load_state_dict(place)
        remaining = iter(again)
        restore(generators)
        assert as_lists(remaining) == rest[0]
        assert as_lists(begin_epoch(again, epoch + 1)) == rest[1]
        assert len(rest[0]) == (0 if n_seen == -1 else len(loader) - n_seen)


def test_examples_that_were_seen_are_not_read_again() -> None:
    loader = ResumableDataLoader(Numbers(), batch_size=4, shuffle=True)
    batches = iter(loader)
    seen = [*next(batches).tolist(), *next(batches).tolist()]
    data = Numbers()
    again = ResumableDataLoader(data, batch_size=4, shuffle=True)
    again.load_state_dict(loader.state_dict())
    list(again)
    assert sorted(data.read + seen) == list(range(N_EXAMPLES))


def test_resuming_leaves_the_global_generators_alone() -> None:
    loader = ResumableDataLoader(Numbers(), batch_size=4, shuffle=True)
    next(iter(loader))
    seed_all(5)
    before = capture()
    loader.load_state_dict(loader.state_dict())
    assert not is_same(capture(), loader.state_dict()["start"]["global"])
    next(iter(loader))
    assert is_same(capture(), before)


def test_a_place_that_was_loaded_is_saved_again_before_and_after_it_is_taken_up() -> None:
    loader = ResumableDataLoader(Numbers(), batch_size=4, shuffle=True)
    assert loader.state_dict() == {}
    loader.load_state_dict({})
    batches = iter(loader)
    next(batches)
    place = loader.state_dict()
    again = ResumableDataLoader(Numbers(), batch_size=4, shuffle=True)
    again.load_state_dict(place)
    assert is_same(again.state_dict(), place)
    rest = iter(again)
    assert is_same(again.state_dict(), place)
    next(rest)
    next(batches)
    assert is_same(again.state_dict(), loader.state_dict())


def test_two_iterators_of_one_loader_count_for_themselves() -> None:
    loader = ResumableDataLoader(Numbers(), batch_size=4)
    first, second = iter(loader), iter(loader)
    assert as_lists(first) == as_lists(second)
    assert loader.state_dict()["n_batches"] == 6


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_iterable_dataset_is_read_up_to_its_place(n_workers: int) -> None:
    class Stream(IterableDataset[int]):
        def __len__(self) -> int:
            return N_EXAMPLES

        def __iter__(self) -> Iterator[int]:
            worker = torch.utils.data.get_worker_info()
            return iter(range(N_EXAMPLES)) if worker is None else iter(range(worker.id, N_EXAMPLES, 2))

    loader = ResumableDataLoader(Stream(), batch_size=3, num_workers=n_workers)
    batches = iter(loader)
    next(batches)
    next(batches)
    again = ResumableDataLoader(Stream(), batch_size=3, num_workers=n_workers)
    again.load_state_dict(through_a_file(loader.state_dict()))
    rest = as_lists(again)
    assert rest == as_lists(batches)
    assert len(rest) == 6
    assert again.state_dict()["n_batches"] == 8


def test_a_dataset_or_a_sampler_without_a_length_is_refused() -> None:
    class Endless(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(10))

    class EndlessSampler(Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(10))

    why = (
        "which has no length: Lightning then fetches one batch ahead of training, and ResumableDataLoader cannot know "
        "which batches were trained on. Define __len__, or use torch's DataLoader."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(f'`dataset` is Endless, {why}')}$"):
        iter(ResumableDataLoader(Endless()))
    for batch_size in (2, None):
        name = "EndlessSampler" if batch_size is None else "BatchSampler"
        with pytest.raises(ValueError, match=f"^{re.escape(f'`sampler` is {name}, {why}')}$"):
            iter(ResumableDataLoader(Numbers(), batch_size=batch_size, sampler=EndlessSampler()))


def test_batches_out_of_order_are_refused() -> None:
    message = (
        "`in_order` is False: the workers' speed then decides which batches were seen, and ResumableDataLoader cannot "
        "continue from there. Leave it True, or use torch's DataLoader."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        iter(ResumableDataLoader(Numbers(), num_workers=1, in_order=False))


class Remembers(Sampler[int]):
    """An order by a generator that nobody sees."""

    def __init__(self) -> None:
        self.chance = random.Random(0)

    def __len__(self) -> int:
        return N_EXAMPLES

    def __iter__(self) -> Iterator[int]:
        return iter(self.chance.sample(range(N_EXAMPLES), N_EXAMPLES))


@pytest.mark.parametrize("change", ["batch size", "fewer examples", "drawn as it goes", "hidden generator"])
def test_another_order_is_refused(change: str) -> None:
    def make(batch_size: int = 4, n_examples: int = N_EXAMPLES) -> ResumableDataLoader[Any]:
        sampler: Any = None
        if change == "drawn as it goes":
            sampler = DrawnAsItGoes()
        if change == "hidden generator":
            sampler = Remembers()
        data = torch.utils.data.Subset(Numbers(), range(n_examples))
        return ResumableDataLoader(data, batch_size, sampler=sampler, shuffle=sampler is None)

    loader = make()
    list(loader)
    batches = iter(loader)
    next(batches)
    torch.rand(3)  # a model with dropout
    next(batches)
    again = make(*{"batch size": (5,), "fewer examples": (4, 20)}.get(change, ()))
    again.load_state_dict(loader.state_dict())
    message = (
        "`sampler` gives other examples than the 2 batches of the run that is resumed: the rest of its epoch cannot be "
        "found. Resume with the same data, batch size and number of processes, and let the sampler draw from a global "
        "generator as an epoch begins, or from a `generator`; or resume from a file of an epoch's end."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        iter(again)
    # With nothing left there is nothing to refuse.
    list(batches)
    again.load_state_dict(loader.state_dict())
    iter(again)


def test_the_generators_survive_a_file() -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), *np.random.rand(3), np.random.randn(), *torch.rand(3).tolist()]  # noqa: NPY002

    seed_all(4)
    draw()  # an odd number of normal draws leaves one over
    state = through_a_file(capture())
    expected = draw()
    seed_all(5)
    assert draw() != expected
    restore(state)
    assert draw() == expected


def test_another_kind_of_numpy_generator_survives_too() -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        state = through_a_file(capture())
        expected = np.random.rand(3).tolist()  # noqa: NPY002
        restore(state)
        assert np.random.rand(3).tolist() == expected  # noqa: NPY002
    finally:
        np.random.set_bit_generator(before)


def test_what_is_drawn_undisturbed_leaves_no_trace() -> None:
    @undisturbed()
    def fail() -> None:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(1)
        raise RuntimeError("on purpose")

    before = capture()
    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert is_same(capture(), before)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_run_resumed_from_any_file_is_the_uninterrupted_run(package: Any, accumulation: int, tmp_path: Path) -> None:
    # 8 batches an epoch: the files of steps 8 and 16, or with accumulation 6, are those of an epoch's end.
    options: dict[str, Any] = {
        "accumulation": accumulation,
        "every_n_steps": 4 if accumulation == 1 else 2,
        "trainer_options": {"max_steps": 18 if accumulation == 1 else 6},
    }
    whole = train(package, str(tmp_path / "whole"), **options)
    for path in checkpoints(tmp_path / "whole"):
        resumed = train(package, str(tmp_path / path.stem), ckpt_path=str(path), seed=99, **options)
        assert differences(whole, resumed) == [], path.name
    assert [path.stem for path in checkpoints(tmp_path / "whole")] == (
        ["last", "step=0", "step=12", "step=16", "step=20", "step=4", "step=8"]
        if accumulation == 1
        else ["last", "step=0", "step=2", "step=4", "step=6", "step=8"]
    )


def test_an_ordinary_loader_sees_other_examples(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every_n_steps": 4, "loader": DataLoader}
    whole = train(pytorch_lightning, str(tmp_path / "whole"), **options)
    path = tmp_path / "whole" / "step=12.ckpt"
    resumed = train(pytorch_lightning, str(tmp_path / "resumed"), ckpt_path=str(path), seed=99, **options)
    assert differences(whole, resumed) == [
        "examples",
        "losses",
        "weights",
        "raw",
        "optimizer",
        "curve",
        "norms",
        "generator",
    ]
    seen = [example for batch in whole["examples"][8:12] + resumed["examples"][:4] for example in batch]
    assert len(set(seen)) < len(seen)  # some twice


def test_without_the_generators_the_examples_are_the_same_and_dropout_differs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"every_n_steps": 4, "random_state": "none"}
    whole = train(pytorch_lightning, str(tmp_path / "whole"), **options)
    path = tmp_path / "whole" / "step=20.ckpt"
    resumed = train(pytorch_lightning, str(tmp_path / "resumed"), ckpt_path=str(path), seed=99, **options)
    assert len(resumed["examples"]) == 2
    assert "examples" not in differences(whole, resumed)
    assert {"losses", "weights", "optimizer", "generator"} <= set(differences(whole, resumed))


# Each a way in which Lightning treats the resumed run, or the callbacks, differently.
SITUATIONS: dict[str, dict[str, Any]] = {
    "epochs": {"trainer_options": {"max_epochs": 2}},
    "generators kept by the first callback": {"random_state": "first"},
    "length asked for in configure_optimizers": {"asks_for_the_length": True},
    "noise drawn as examples are read": {"jitter": 0.1},
    "workers": {"loader_options": {"shuffle": True, "num_workers": 2}},
    "limited epochs": {"trainer_options": {"max_epochs": 3, "limit_train_batches": 5}},
    "double precision": {"trainer_options": {"max_steps": 20, "precision": "64-true"}},
    "mixed precision": {"trainer_options": {"max_steps": 20, "precision": "bf16-mixed"}},
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_a_resumed_run_is_the_uninterrupted_one_also_with(situation: str, tmp_path: Path) -> None:
    package = lightning.pytorch
    whole = train(package, str(tmp_path / "whole"), every_n_steps=6, **SITUATIONS[situation])
    for name in ("step=0", "step=12"):
        path = str(tmp_path / "whole" / f"{name}.ckpt")
        resumed = train(
            package, str(tmp_path / name), ckpt_path=path, seed=99, every_n_steps=6, **SITUATIONS[situation]
        )
        assert differences(whole, resumed) == [], name


def fit_small(
    package: Any, model: Any, callbacks: list[Any], seed: int, ckpt_path: Path | None = None, **options: Any
) -> tuple[Any, ...]:
    """Train a small model on shuffled data; return its weights, its optimizers and where the generator stands."""
    trainer = make_trainer(package, callbacks, enable_checkpointing=True, **options)
    torch.manual_seed(seed)
    data = ResumableDataLoader(make_loader().dataset, batch_size=4, shuffle=True)
    trainer.fit(model, data, make_loader(1), ckpt_path=ckpt_path and str(ckpt_path), **SAFE_LOADING)
    return list(model.parameters()), [one.state_dict() for one in trainer.optimizers], torch.get_rng_state()


def evaluate_and_keep(every_n_steps: int, folder: Path) -> list[Any]:
    keeper = BestCheckpoints("val_loss", save_top_k=-1, dirpath=folder)
    return [PeriodicEvaluation(every_n_steps), RandomState(), keeper]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 20}])
@pytest.mark.parametrize("package", PACKAGES)
def test_files_of_the_ends_of_epochs_resume_too(package: Any, limits: dict[str, int], tmp_path: Path) -> None:
    def run(folder: Path, seed: int, ckpt_path: Path | None = None) -> tuple[Any, ...]:
        keeper = package.callbacks.ModelCheckpoint(
            dirpath=folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True
        )
        model = make_model(package, dropout=0.5)
        return model.losses, fit_small(package, model, [RandomState(), keeper], seed, ckpt_path, **limits)

    losses, whole = run(tmp_path / "whole", seed=1)
    for epoch in range(2):
        rest, resumed = run(tmp_path / f"{epoch}", 2, tmp_path / "whole" / f"epoch={epoch}.ckpt")
        assert rest == losses[8 * (epoch + 1) :]
        assert is_same(resumed, whole)


@pytest.mark.parametrize("package", PACKAGES)
def test_two_optimizers_by_hand(package: Any, tmp_path: Path) -> None:
    def run(folder: Path, seed: int, ckpt_path: Path | None = None) -> tuple[Any, ...]:
        return fit_small(package, make_gan(package), evaluate_and_keep(6, folder), seed, ckpt_path, max_steps=24)

    whole = run(tmp_path / "whole", seed=1)
    for step in (6, 18):
        assert is_same(run(tmp_path / f"{step}", 2, tmp_path / "whole" / f"step={step}.ckpt"), whole)


def test_a_compiled_network(tmp_path: Path) -> None:
    def run(folder: Path, seed: int, ckpt_path: Path | None = None) -> tuple[Any, ...]:
        model = make_model(pytorch_lightning, dropout=0.5)
        # The eager backend compiles without a C++ compiler.
        model.net = torch.compile(model.net, backend="eager")
        return fit_small(pytorch_lightning, model, evaluate_and_keep(3, folder), seed, ckpt_path, max_steps=12)

    whole = run(tmp_path / "whole", seed=1)
    assert is_same(run(tmp_path / "resumed", 2, tmp_path / "whole" / "step=3.ckpt"), whole)


def test_the_training_loop_is_let_go_after_an_exception(tmp_path: Path) -> None:
    class Fails(pytorch_lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            loops.append(trainer.fit_loop)
            assert "on_advance_start" in vars(trainer.fit_loop)
            raise RuntimeError("on purpose")

    loops: list[Any] = []
    fit_small(pytorch_lightning, make_model(pytorch_lightning), evaluate_and_keep(3, tmp_path), 1, max_steps=4)
    callbacks = [*evaluate_and_keep(3, tmp_path), Fails()]
    with pytest.raises(RuntimeError, match="on purpose"):
        fit_small(pytorch_lightning, make_model(pytorch_lightning), callbacks, 2, tmp_path / "step=3.ckpt", max_steps=8)
    assert "on_advance_start" not in vars(loops[0])


def test_files_are_loaded_with_weights_only_and_testing_one_draws_nothing(tmp_path: Path) -> None:
    train(pytorch_lightning, str(tmp_path), every_n_steps=10)
    path = str(tmp_path / "step=10.ckpt")
    [mine] = torch.load(path, weights_only=True)["playbook_random_state"]
    assert list(mine) == ["generators"]
    keeper = RandomState()
    trainer = make_trainer(pytorch_lightning, [keeper])
    seed_all(3)
    before = capture()
    keeper.setup(trainer, make_model(pytorch_lightning), "test")
    keeper.on_load_checkpoint(trainer, make_model(pytorch_lightning), torch.load(path, weights_only=True))
    keeper.on_train_start(trainer, make_model(pytorch_lightning))
    seed_all(3)
    assert is_same(capture(), before)


def test_another_number_of_processes_is_told(tmp_path: Path) -> None:
    train(pytorch_lightning, str(tmp_path / "whole"), every_n_steps=10)
    checkpoint = torch.load(tmp_path / "whole" / "step=20.ckpt", weights_only=True)
    checkpoint["playbook_random_state"] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    message = (
        "The checkpoint holds the random number generators of 2 process(es), and this run has 1: they are not "
        "restored, so that dropout differs from the run that is resumed."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        train(pytorch_lightning, str(tmp_path / "resumed"), ckpt_path=str(tmp_path / "two.ckpt"), every_n_steps=10)


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("package", PACKAGES)
def test_a_run_killed_in_mid_epoch_and_resumed_from_any_file(
    package: Any, accumulation: int, n_workers: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "accumulation": accumulation,
        "every_n_steps": 3 if accumulation == 1 else 1,
        "trainer_options": {"max_steps": 20 if accumulation == 1 else 7},
        "loader_options": {"shuffle": True, "num_workers": n_workers},
    }

    def run_script(name: str, **more: Any) -> int:
        told = {"package": package.__name__, "folder": str(tmp_path / name), "told": str(tmp_path / f"{name}.pt")}
        (tmp_path / f"{name}.json").write_text(json.dumps(options | told | more))
        command = [sys.executable, str(Path(__file__).parent / "resume_run.py"), str(tmp_path / f"{name}.json")]
        return subprocess.run(command, timeout=200, check=False).returncode

    whole = train(package, str(tmp_path / "whole"), **options)
    # In the second epoch, two batches after the last file.
    assert run_script("killed", kill_at_batch=14) == -signal.SIGKILL
    files = checkpoints(tmp_path / "killed")
    assert [path.stem for path in files] == (
        ["last", "step=0", "step=12", "step=3", "step=6", "step=9"]
        if accumulation == 1
        else ["last", "step=0", "step=1", "step=2", "step=3", "step=4"]
    )
    for path in files[1:]:
        resumed = train(package, str(tmp_path / path.stem), ckpt_path=str(path), seed=99, **options)
        assert differences(whole, resumed) == [], path.name
    # As it would be in earnest: in a new process, into the same folder.
    assert run_script("killed", ckpt_path=str(files[0]), seed=98) == 0
    resumed = torch.load(tmp_path / "killed.pt", weights_only=True)
    assert 0 < len(resumed["examples"]) < len(whole["examples"])
    assert differences(whole, resumed) == []


SCRIPT = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import torch
from lightning_toys import make_trainer
from playbook_plugins.lightning.random_state import RandomState
from resume_run import train

package, folder = importlib.import_module(sys.argv[3]), sys.argv[2]
told = {}
# With Lightning's sampler one order is shared out; without it each process draws its own.
for shared in (True, False):
    options = {
        "every_n_steps": 3,
        "trainer_options": {"max_steps": 10, "strategy": "ddp", "devices": 2, "use_distributed_sampler": shared},
    }
    told[shared, "whole"] = train(package, f"{folder}/{shared}", **options)
    for step in (3, 6, 9):
        path = f"{folder}/{shared}/step={step}.ckpt"
        told[shared, step] = train(package, f"{folder}/{shared}-{step}", ckpt_path=path, seed=50 + step, **options)
# After an exception one process saves alone: it must not wait for the other.
rank = torch.distributed.get_rank()
if rank == 0:
    keeper = RandomState()
    trainer = make_trainer(package, [keeper], strategy="ddp", devices=2)
    keeper.on_exception(trainer, None, RuntimeError())
    file = {}
    keeper.on_save_checkpoint(trainer, None, file)
    told["alone"] = [trainer.world_size, len(file["playbook_random_state"])]
torch.save(told, f"{folder}/{rank}.pt")
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_two_processes_resume_each_with_its_own(package: Any, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(tmp_path / "script.py")]
    subprocess.run(
        [sys.executable, *command, str(Path(__file__).parent), str(tmp_path), package.__name__],
        check=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0]["alone"] == [2, 1]
    for shared in (True, False):
        for told in ranks:
            for step in (3, 6, 9):
                assert differences(told[shared, "whole"], told[shared, step]) == [], (shared, step)
        one, other = (told[shared, "whole"] for told in ranks)
        assert one["examples"] != other["examples"]
        assert not torch.equal(one["generator"], other["generator"])
        assert is_same(one["weights"], other["weights"])


def test_the_callbacks_of_a_run_stand_in_both_orders() -> None:
    kinds = [[type(one).__name__ for one in make_callbacks("x", 3, place)] for place in ("first", "last")]
    assert kinds[0][0] == kinds[1][-1] == "TrialRecorder"


def test_the_toy_data_has_a_last_batch_of_its_own_size() -> None:
    assert len(Examples()) % 4 == 1
