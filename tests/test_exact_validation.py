"""Is every example evaluated once, and is what all ranks report the mean over the data set?"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from averaging_toys import restore
from exact_validation_run import (
    CASES,
    FITS,
    PRECISIONS,
    SEVERAL,
    SIZES,
    SMALL,
    WORKERS,
    examples,
    expectation,
    loaders,
    parts,
)
from lightning_toys import PACKAGES, QUIET
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from playbook_plugins.lightning.exact_validation import ExactLoader, Shard, ShardBatches, exact_validation_loader

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Tensors this small gain nothing from more.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 16])
def test_every_example_is_of_one_rank_and_ranks_run_as_many_batches(n_ranks, batch_size):
    for n in SIZES:
        ranks = [
            ShardBatches(Shard(examples(n), lambda rank=rank: (n_ranks, rank)), batch_size) for rank in range(n_ranks)
        ]
        counted = [rank.batches() for rank in ranks]
        assert sorted(index for batches in counted for batch in batches for index in batch) == list(range(n))
        assert all(1 <= len(batch) <= batch_size for batches in counted for batch in batches)
        assert len({len(rank) for rank in ranks}) == 1
        for rank, batches in zip(ranks, counted, strict=True):
            assert list(rank) == batches
            assert rank.n_fillers == len(rank) - len(batches)
            rank.fills = True
            run = list(rank)
            assert run[: len(batches)] == batches
            assert len(run) == len(rank)
            # No batch is run for company where a rank's own examples can fill one.
            assert rank.n_fillers == 0 or len(rank.sampler) < len(rank)
            assert n < n_ranks or batch_size == 1 or rank.n_fillers == 0


def test_batches_by_hand():
    batches = [ShardBatches(Shard(examples(9), lambda rank=rank: (2, rank)), 4).batches() for rank in range(2)]
    assert batches == [[[0, 2, 4, 6], [8]], [[1, 3], [5, 7]]]


def test_a_module_can_ask_which_batches_do_not_count():
    loaders_of_ranks = [
        ExactLoader(examples(3), batch_sampler=ShardBatches(Shard(examples(3), lambda rank=rank: (2, rank)), 1))
        for rank in range(2)
    ]
    assert [[loader.is_filler(i) for i in range(2)] for loader in loaders_of_ranks] == [[False, False], [False, True]]


def test_the_loader_is_an_ordinary_one():
    loader = exact_validation_loader(examples(10), 4, num_workers=0)
    assert isinstance(loader, DataLoader)
    assert isinstance(loader.sampler, DistributedSampler)
    assert (loader.batch_size, len(loader), loader.dataset[3][1]) == (4, 3, 0)
    plain = DataLoader(examples(10), batch_size=4)
    for (x, y), (a, b) in zip(loader, plain, strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)


@pytest.mark.parametrize("package", PACKAGES)
def test_one_process(tmp_path, package):
    trainer, module, keep = parts(package, tmp_path, devices=1)
    before = list(trainer.callbacks)
    for case in CASES:
        trainer.validate(module, *loaders([case]), verbose=False)
    for case, found in zip(CASES, keep.found, strict=True):
        check(found, case[0])
    assert trainer.callbacks == before


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("source", ["module", "datamodule"])
def test_made_where_lightning_asks_for_it(tmp_path, package, source):
    trainer, module, keep = parts(package, tmp_path, devices=1, max_epochs=1)
    train, several = DataLoader(examples(16), batch_size=4), lambda: loaders(SEVERAL)
    if source == "module":
        module.train_dataloader, module.val_dataloader = lambda: train, several
        trainer.fit(module)
    else:
        data = package.LightningDataModule()
        data.train_dataloader, data.val_dataloader = lambda: train, several
        trainer.fit(module, datamodule=data)
    check_several(keep.found[0])


@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled val dataloader shuffling")
@pytest.mark.parametrize("package", PACKAGES)
def test_overfitting_evaluates_the_first_batches(tmp_path, package):
    trainer, module, keep = parts(package, tmp_path, devices=1, max_epochs=1, overfit_batches=2)
    trainer.fit(module, DataLoader(examples(16), batch_size=4), exact_validation_loader(examples(33), 7))
    expected = float(examples(33).tensors[0][:14].mean())
    assert keep.found[0]["metrics"]["mean"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("package", PACKAGES)
def test_predictions_come_once_and_in_order(tmp_path, package):
    trainer, module, _ = parts(package, tmp_path, devices=1)
    module.predict_step = lambda batch, batch_idx: batch[0]
    found = trainer.predict(module, exact_validation_loader(examples(33), 16))
    assert torch.equal(torch.cat(found), examples(33).tensors[0])


def check(found: Any, n: int, tolerance: float = 1e-6) -> None:
    for name, value in expectation(n).items():
        assert found["metrics"][name] == pytest.approx(value, rel=tolerance), (n, name)
    values, counts = found["table"][0]
    assert values == pytest.approx(sorted(examples(n).tensors[0].flatten().tolist()), rel=tolerance)
    assert counts == [len(range(start, n, 3)) for start in range(3)]


def check_several(found: Any) -> None:
    for place, (n, _) in enumerate(SEVERAL):
        for name, value in expectation(n).items():
            if name != "epoch" and (name != "total" or place == 0):
                assert found["metrics"][f"{name}/dataloader_idx_{place}"] == pytest.approx(value, rel=1e-6)
    everything = [value for n, _ in SEVERAL for value in examples(n).tensors[0].flatten().tolist()]
    assert found["metrics"]["epoch"] == pytest.approx(sum(everything) / len(everything), rel=1e-6)
    assert found["table"][0][0] == pytest.approx(sorted(everything), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_two_processes_are_exact_for_every_size(tmp_path, package):
    script = Path(__file__).with_name("exact_validation_run.py")
    run = subprocess.run(
        [sys.executable, script, package.__name__, tmp_path],
        check=False, timeout=250, capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2)]
    for found in ranks:
        for case in CASES:
            assert len(found[case]) == 1
            check(found[case][0], case[0])
            # What Lightning reduces itself loses no digits, not even of a double.
            mean = expectation(case[0])["mean"]
            assert found[case][0]["metrics"]["mean"] == pytest.approx(mean, rel=1e-14)
        for n_workers, lives_on in WORKERS:
            assert len(found["workers", n_workers, lives_on]) == 2
            for evaluation in found["workers", n_workers, lives_on]:
                check(evaluation, 1)
        for precision in PRECISIONS:
            check(found[precision][0], SMALL[0], 0.01 if precision == "bf16-true" else 1e-6)
        for name in FITS:
            check_several(found[name][0])
        assert not any("Correction" in name for name in found["callbacks"])
        assert found["failed"][0] == "on purpose"
        assert not any("Correction" in name for name in found["failed"][1])
        assert found["mixed"][0] == (
            "`mode` of the CombinedLoader is 'max_size': it mixes the batches of several loaders, which then cannot be "
            "counted apart. Pass mode='sequential', or a list of loaders."
        )
    for case in CASES:
        assert len({len(found[case][0]["seen"]) for found in ranks}) == 1
    # Lightning's own loader evaluates 34 of 33 examples: this test can fail.
    assert [sum(found["plain"][0]["seen"]) for found in ranks] == [17, 17]
    assert ranks[0]["plain"][0]["metrics"]["mean"] != pytest.approx(expectation(33)["mean"], rel=1e-3)
    assert [found["alone"] for found in ranks] == [[1, 1, 1], [1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_spawned_processes_are_exact(tmp_path, package):
    trainer, module, _ = parts(package, tmp_path, strategy="ddp_spawn", devices=2, max_epochs=1)
    environment = dict(os.environ)
    try:
        results = trainer.validate(module, loaders(SEVERAL), verbose=False)
        tested = trainer.test(module, loaders([SMALL])[0], verbose=False)[0]
        trainer.fit(module, DataLoader(examples(16), batch_size=4), loaders([SMALL])[0])
    finally:
        restore(environment)
    for logged in (tested, trainer.callback_metrics):
        for name in ("mean", "sum", "min", "max", "metric", "total", "epoch"):
            assert float(logged[name]) == pytest.approx(expectation(SMALL[0])[name], rel=1e-6)
    for place, ((n, _), result) in enumerate(zip(SEVERAL, results, strict=True)):
        for name in ("mean", "sum", "min", "max", "metric"):
            assert result[f"{name}/dataloader_idx_{place}"] == pytest.approx(expectation(n)[name], rel=1e-6)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter([1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dataset": Stream()},
            "`dataset` is Stream, which has no examples by number: they cannot be given to the ranks once each. Pass a "
            "map-style data set, with __len__ and __getitem__.",
        ),
        ({"dataset": []}, "`dataset` has no examples: there is no mean of nothing. Pass at least one."),
        (
            {"dataset": [1], "batch_size": 0},
            "`batch_size` is 0: it must be at least 1, in examples on each rank. Raise it.",
        ),
        (
            {"dataset": [1], "shuffle": True},
            "`shuffle` is True: exact_validation_loader gives every example to one rank, in order. Leave it out.",
        ),
        (
            {"dataset": [1], "drop_last": True},
            "`drop_last` is True: exact_validation_loader gives every example to one rank, in order. Leave it out.",
        ),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        exact_validation_loader(**arguments)
    assert str(caught.value) == message


def test_what_says_nothing_is_accepted():
    assert len(exact_validation_loader([1, 2, 3], 2, shuffle=False, drop_last=False, sampler=None)) == 2
