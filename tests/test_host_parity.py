"""Does HostParity find what differs between hosts, or is equal, and should not be, and does it pass what is right?"""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import host_parity_run
import numpy as np
import pytest
import torch
from lightning_toys import PACKAGES, QUIET, make_loader, make_model, make_trainer
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from playbook_plugins.lightning.host_comparison import find_stream_faults, find_weight_faults, find_writer_faults
from playbook_plugins.lightning.host_division import find_data_faults
from playbook_plugins.lightning.host_folders import CLAIM_NAME, FolderClaims
from playbook_plugins.lightning.host_hashes import hash_batch, hash_generators, hash_tensors
from playbook_plugins.lightning.host_loaders import read_loader
from playbook_plugins.lightning.host_parity import HostParity
from playbook_plugins.lightning.host_reports import LoaderReport, TrainingReport, WriterReport
from playbook_plugins.lightning.host_seeds import begin_stream, seed_hosts, shared_seed
from playbook_plugins.lightning.random_state import capture, restore

pytestmark = QUIET


@pytest.fixture(autouse=True)
def _undisturbed() -> Iterator[None]:
    environment, state = dict(os.environ), capture()
    yield
    restore(state)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002


# Seeds


@pytest.mark.parametrize("package", PACKAGES)
def test_ranks_build_with_the_numbers_of_seed_everything(package: Any) -> None:
    assert seed_hosts(3) == 3
    mine = draw()
    package.seed_everything(3, workers=True, verbose=False)
    assert mine == draw()
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("3", "1")


def test_every_seed_rank_and_step_has_streams_of_its_own() -> None:
    seen = set()
    for seed in (0, 1, 2**32 - 1):
        for rank in (0, 1, 2, 511):
            for step in (0, 1, 1000):
                begin_stream(seed, rank, step)
                seen |= set(draw())
    assert len(seen) == 3 * 3 * 4 * 3
    seed_hosts(1, rank=2)
    mine = draw()
    begin_stream(1, 2)
    assert mine == draw()


def test_streams_of_neighbouring_ranks_are_independent() -> None:
    rows = []
    for rank in range(40):
        begin_stream(0, rank)
        rows.append(torch.randn(2000, dtype=torch.float64))
    correlations = np.corrcoef(torch.stack(rows).numpy())[np.triu_indices(40, k=1)]
    # 780 pairs with standard deviation 1 / sqrt(2000) = 0.0224: the largest lies beyond 0.11 in 1 of 1500 cases.
    assert np.abs(correlations).max() < 0.11
    assert np.std(correlations) == pytest.approx(0.0224, rel=0.1)


def test_another_seeding_later_takes_over() -> None:
    for name in ("PLAYBOOK_HOST_SEED", "PL_GLOBAL_SEED"):
        os.environ.pop(name, None)
    assert shared_seed() is None
    seed_hosts(3)
    assert shared_seed() == 3
    host_parity_run.pytorch_lightning.seed_everything(4, verbose=False)
    assert shared_seed() is None


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True])
def test_seeds_out_of_range_are_refused(seed: Any) -> None:
    message = (
        f"`seed` is {seed!r}: it must be a whole number from 0 to 4294967295. Pass the same one on every rank, and "
        "leave the differences between ranks to seed_hosts."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        seed_hosts(seed)


def test_ranks_out_of_range_are_refused() -> None:
    message = (
        "`rank` is -1: it must be a whole number, at least 0. Pass the number of this process among all, or leave it "
        "out and use HostParity."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        seed_hosts(0, rank=-1)


# Hashes


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
def test_a_change_of_any_one_element_changes_the_hash(dtype: Any) -> None:
    tensor = (100 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0))).to(dtype)
    seen = {hash_tensors([tensor])[0]}
    for place in range(tensor.numel()):
        changed = tensor.clone()
        bits = (torch.view_as_real(changed) if dtype.is_complex else changed).view(-1)
        bits = bits.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[bits.element_size()])
        bits[place] ^= 1
        seen |= set(hash_tensors([changed]))
    assert len(seen) == 1 + tensor.numel()


def test_hashes_by_hand() -> None:
    odd = -7046029254386353131
    values = torch.tensor([3, 0, -2])
    # Weights (i * odd) | 1: 1, then odd itself, then 2 * odd + 1.
    expected = (3 * 1 + -2 * (2 * odd + 1) + 2**63) % 2**64 - 2**63
    assert hash_tensors([values, values.reshape(1, 3)]) == [expected, expected]
    assert hash_tensors([torch.zeros(0), torch.tensor(2)]) == [0, 2]
    assert hash_tensors([]) == []


def test_large_tensors_are_hashed_in_pieces() -> None:
    large = torch.arange(2**20 + 5, dtype=torch.float32)
    swapped = large.clone()
    swapped[0], swapped[2**20] = large[2**20], large[0]
    strided = torch.stack([large, large], dim=1)[:, 0]
    first, second, third = hash_tensors([large, swapped, strided])
    assert first == third != second


def test_bits_count_and_not_values() -> None:
    assert len(set(hash_tensors([torch.tensor([0.0]), torch.tensor([-0.0]), torch.tensor([torch.nan])]))) == 3


def test_hash_of_a_batch() -> None:
    batch = {"x": torch.randn(3, 2), "name": ["a", "b", "c"], "y": torch.zeros(3)}
    assert hash_batch(batch) == hash_batch(copy.deepcopy(batch)) is not None
    assert hash_batch(batch) != hash_batch(batch | {"x": torch.randn(3, 2)})
    assert hash_batch([torch.zeros(3, 2), torch.ones(4), "a"]) is None


def test_drawing_changes_the_hash_of_one_generator() -> None:
    steps = {"Python": random.random, "NumPy": np.random.random, "torch's CPU": lambda: torch.rand(())}
    for name, step in steps.items():
        before = hash_generators(torch.device("cpu"))
        step()
        after = hash_generators(torch.device("cpu"))
        assert [one for one in before if before[one] != after[one]] == [name]


# Comparison


def reports(*hashes: Any, **options: Any) -> list[TrainingReport]:
    shards = options.pop("shards", [[0] * len(one) for one in hashes])
    return [
        TrainingReport(rank, len(hashes), 1, np.array(one), np.array(shard), **options)
        for rank, (one, shard) in enumerate(zip(hashes, shards, strict=True))
    ]


def test_weights_by_hand() -> None:
    names = ["a", "b", "c", "d"]
    assert find_weight_faults(reports([1, 2, 3, 4], [1, 2, 3, 4]), names) == []
    remedy = (
        "Build, load and change the model in the same way on every rank: call seed_hosts(seed) before it is built, and "
        "draw no weights after the fit has started."
    )
    assert find_weight_faults(reports([1, 2], [1, 0], [1, 2]), names) == [
        f"weights: b differs between ranks 0 and 2 and rank 1. {remedy}"
    ]
    assert find_weight_faults(reports([1, 2, 3, 4], [1, 0, 0, 0]), names) == [
        f"weights: b differs between rank 0 and rank 1 (and so do 2 more, such as c, d). {remedy}"
    ]
    other = [replace(one, layout=rank) for rank, one in enumerate(reports([1], [1]))]
    assert find_weight_faults(other, names) == [
        "weights: rank 0 and rank 1 have different parameters or buffers, by name, shape or data type. Build the same "
        "model on every rank."
    ]


def test_only_replicas_of_one_shard_are_compared() -> None:
    shards = [[0, 0], [1, 0], [0, 0], [1, 0]]
    assert find_weight_faults(reports([1, 7], [2, 7], [1, 7], [2, 7], shards=shards), ["a", "b"]) == []
    [fault] = find_weight_faults(reports([1, 7], [2, 7], [1, 7], [3, 7], shards=shards), ["a", "b"])
    assert fault.startswith("weights: a differs between rank 1 and rank 3. ")


def test_streams_by_hand() -> None:
    same = reports([], [], generators={"NumPy": 1, "torch's CPU": 2}, drawn=frozenset(["torch's CPU"]))
    assert find_stream_faults(same) == [
        "dropout streams: training draws from torch's CPU generator, whose state is the same on ranks 0 and 1: they "
        "use the same dropout masks, noise or augmentation. Call seed_hosts(seed) instead of seed_everything(seed), "
        "before the model is built."
    ]
    # A model that draws nothing, one rank that draws for itself, and ranks that share a part of the data.
    assert find_stream_faults([replace(one, drawn=frozenset()) for one in same]) == []
    assert find_stream_faults([same[0], replace(same[1], drawn=frozenset())]) == []
    assert find_stream_faults([same[0], replace(same[1], generators={"NumPy": 1, "torch's CPU": 3})]) == []
    assert find_stream_faults([replace(one, part=0) for one in same]) == []


SETTINGS = {"seed": 1, "shuffle": True, "drop_last": False, "epoch": 0, "num_replicas": 2, "rank": 0}
APART = [LoaderReport("S", settings=SETTINGS | {"rank": rank}, n_examples=9) for rank in range(2)]


def data_faults(*rows: LoaderReport, batches: Any = (1, 2), parts: Any = (0, 1)) -> list[str]:
    plain = reports(*[[]] * len(rows))
    return find_data_faults(
        [
            replace(one, loaders=(row,), batch=batch, part=part, n_parts=len(set(parts)))
            for one, row, batch, part in zip(plain, rows, batches, parts, strict=True)
        ]
    )


def test_samplers_by_hand() -> None:
    assert data_faults(*APART) == []
    assert data_faults(*APART, batches=(1, 1)) == []  # known to be divided
    for name, value in {"seed": 2, "shuffle": False, "drop_last": True, "epoch": 3}.items():
        other = replace(APART[1], settings=SETTINGS | {"rank": 1, name: value})
        assert data_faults(APART[0], other) == [
            f"sampler: `{name}` is {[SETTINGS[name], value]} by rank, and must be the same on all: they divide "
            "different orders, and so overlap. Call seed_hosts(seed) with one seed on every rank, and build the "
            "sampler in the same way."
        ]
    assert data_faults(APART[0], APART[0]) == [
        "sampler: (`num_replicas`, `rank`) are [(2, 0), (2, 0)] by rank, and the run has [(2, 0), (2, 1)]. Leave them "
        "to Lightning, or pass trainer.world_size and trainer.global_rank."
    ]
    assert data_faults(APART[0], LoaderReport("R", n_examples=9)) == [
        "examples: a distributed sampler is on rank 0 only. Give every rank the same loader, and leave "
        "`use_distributed_sampler` True."
    ]
    assert data_faults(APART[0], replace(APART[1], n_examples=8)) == [
        "examples: the data sets have [9, 8] examples by rank, and a distributed sampler divides each of them. Give "
        "every rank the whole data set, or set `use_distributed_sampler=False`."
    ]
    assert data_faults(APART[0], replace(APART[1], subset=5)) == [
        "examples: each rank was given a part of the data set, and a distributed sampler divides that once more: most "
        "examples are never seen. Give every rank the whole data set, or set `use_distributed_sampler=False`."
    ]


def plain(*draws: Any, **options: Any) -> list[LoaderReport]:
    return [LoaderReport("R", n_examples=9, draws=np.array(one), **options) for one in draws]


def test_examples_by_hand() -> None:
    assert data_faults(*plain([1, 2, 3], [4, 5, 6])) == []
    assert data_faults(*plain([1, 2, 3], [4, 5, 1])) == []  # padding
    remedy = "R does not divide them: leave `use_distributed_sampler` True, or use a DistributedSampler."
    assert data_faults(*plain([1, 2, 3], [4, 3, 2])) == [
        f"examples: 2 examples are drawn by more than one rank (2, 3, ...; 2 by ranks 0 and 1). {remedy}"
    ]
    # Ranks of one part must draw the same.
    four = plain([1, 2], [1, 2], [3, 4], [3, 4])
    assert data_faults(*four, batches=(1, 1, 2, 2), parts=(0, 0, 1, 1)) == []
    assert len(data_faults(*four, batches=(1, 1, 2, 2), parts=(0, 1, 2, 3))) == 1
    # Other data under the same numbers.
    first, second = plain([1, 2, 3], [1, 2, 3])
    assert data_faults(first, replace(second, data=1)) == []
    # With replacement some overlap is chance, the same order is not.
    assert data_faults(*plain([1, 2, 3], [3, 2, 1], is_repeating=True)) == []
    assert data_faults(*plain([1, 2, 3], [1, 2, 3], is_repeating=True)) == [
        f"examples: ranks 0 and 1 draw the same examples in the same order. {remedy}"
    ]


def test_files_by_hand() -> None:
    def named(*files: Any, **options: Any) -> list[LoaderReport]:
        return [LoaderReport("S", files=one, **options) for one in files]

    assert data_faults(*named(("a", "b"), ("c",))) == []
    assert data_faults(*named(("a", "b"), ("a", "b"))) == []
    remedy = "Give each rank files of its own, files[rank::world_size]."
    for rows in (named(("a", "b"), ("c", "b")), named(("b",), ("b",), is_declared=True)):
        assert data_faults(*rows) == [
            f"files: 1 file(s) are read by more than one rank, such as 'b' by ranks 0 and 1. {remedy}"
        ]
    assert data_faults(*(replace(one, files=(str(rank),)) for rank, one in enumerate(APART))) == [
        "files: each rank reads files of its own, and a distributed sampler divides their examples once more: most are "
        "never seen. Set `use_distributed_sampler=False`, or give every rank all files."
    ]


def test_first_batches_by_hand() -> None:
    rows = [LoaderReport("Stream")] * 2
    assert data_faults(*rows) == []
    assert data_faults(*rows, batches=(None, None)) == []
    assert data_faults(*rows, batches=(1, 1)) == [
        "examples: ranks 0 and 1 train on the same first batch. Divide the data by rank: an iterable data set in its "
        "__iter__, by the rank and by the worker; any other by a DistributedSampler."
    ]


def test_several_loaders() -> None:
    pairs = zip(plain([1, 2], [3, 4]), plain([1, 2], [1, 2]), strict=True)
    both = [replace(one, loaders=pair) for one, pair in zip(reports([], []), pairs, strict=True)]
    [fault] = find_data_faults(both)
    assert fault.startswith("examples: training loader 1: 2 examples are drawn by more than one rank (1, 2, ...; ")
    assert find_data_faults([both[0], replace(both[1], loaders=plain([1]))]) == [
        "examples: the ranks have [2, 1] training loaders. Give every rank the same number."
    ]
    assert find_data_faults(reports([], [])) == []


def test_writers_by_hand() -> None:
    healthy = [WriterReport(0, True, ("C in /a",), ("L",)), WriterReport(1, False, ("C in /a",))]
    assert find_writer_faults(healthy) == []
    other = replace(healthy[1], rank=0, is_writer=True, checkpoints=("C in /b",), loggers=("L",))
    assert find_writer_faults([replace(healthy[0], owners=(("/a", "process 7 on h"),)), other]) == [
        "writers: the processes call themselves ranks [0, 0], and they are [0, 1]. Let the cluster's environment, or "
        "Lightning's, give each process its own number.",
        "writers: ranks 0 and 1 would write the checkpoints, and it must be one. Make `trainer.is_global_zero` true on "
        "rank 0 only.",
        "writers: the ranks save to different places (rank 0: C in /a; rank 1: C in /b). Give every rank the same "
        "checkpoint callbacks with the same dirpath; Lightning lets rank 0 write.",
        "loggers: ranks 0 and 1 write to L, and only rank 0 should. Decorate the logger's `experiment` with "
        "@rank_zero_experiment and its `log_metrics` with @rank_zero_only.",
        "writers: process 7 on h writes to /a too. Give each run a folder of its own; if both processes were meant to "
        "be one run, start them as one, with `devices` and `num_nodes` or through torchrun.",
    ]
    many = [WriterReport(rank, True) for rank in range(12)]
    assert "ranks 0, 1, 2, 3, 4, 5, 6 and 5 more would" in find_writer_faults(many)[0]
    assert "no rank would" in find_writer_faults([WriterReport(0, False)])[0]


# Loaders


class Watched(Dataset[Any]):
    """Numbers that must not be read."""

    def __init__(self, n: int, **attributes: Any) -> None:
        vars(self).update(attributes)
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        raise AssertionError


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n", [1, 7, 64])
def test_draws_are_those_of_the_loader(n: int, shuffle: bool) -> None:
    data = TensorDataset(torch.arange(n))
    loader = DataLoader(data, batch_size=3, shuffle=shuffle)
    state = torch.get_rng_state()
    report = read_loader(loader, float("inf"), 1000)
    assert torch.equal(torch.get_rng_state(), state)
    # torch draws a seed for workers before the sampler draws, so that only a sampler alone gives the same order.
    expected = list(loader.batch_sampler)
    assert report.draws is not None
    assert report.draws.tolist() == [number for batch in expected for number in batch]
    assert (report.n_examples, report.settings, report.is_repeating) == (n, None, False)
    torch.set_rng_state(state)
    assert len(read_loader(loader, 2, 1000).draws) == min(n, 6)
    assert len(read_loader(loader, float("inf"), 4).draws) == min(n, 4)


def test_distributed_samplers_are_read() -> None:
    data = Watched(10)
    for rank in range(2):
        sampler = DistributedSampler(data, 2, rank, seed=4, drop_last=True)
        report = read_loader(DataLoader(data, sampler=sampler), float("inf"), 1000)
        assert report.settings == SETTINGS | {"seed": 4, "drop_last": True, "rank": rank}
        assert report.draws is not None
        assert report.draws.tolist() == list(sampler)
        # Divided by definition, and too long to draw.
        assert read_loader(DataLoader(data, sampler=sampler), float("inf"), 9).draws is None


def test_nothing_is_moved_on() -> None:
    order = host_parity_run.OwnOrder(seed=1)
    loader = DataLoader(Watched(35), sampler=order, batch_size=2)
    first, second = (read_loader(loader, float("inf"), 1000).draws for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.tolist() == second.tolist() == list(order)
    assert order.n_epochs == 1


def test_what_cannot_be_copied_is_not_drawn() -> None:
    class Held(host_parity_run.OwnOrder):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError("cannot be copied")

    assert read_loader(DataLoader(Watched(35), sampler=Held()), float("inf"), 1000).draws is None
    keyed = DataLoader(Watched(2), sampler=[("a", 1), ("b", 2)])  # type: ignore[arg-type]
    assert read_loader(keyed, float("inf"), 1000).draws is None
    assert read_loader([1, 2], 2, 1000) == LoaderReport("list")


def test_batch_samplers_and_parts_are_looked_through() -> None:
    data = Subset(Subset(Watched(9), [8, 6, 4, 2, 0]), [1, 3])
    report = read_loader(DataLoader(data, batch_sampler=BatchSampler([1, 0], 2, False)), float("inf"), 1000)
    assert report.draws is not None
    assert report.draws.tolist() == [2, 6]
    assert report.subset != read_loader(DataLoader(Subset(Watched(9), [6, 2])), float("inf"), 1000).subset != 0
    assert report.data == read_loader(DataLoader(Watched(9)), float("inf"), 1000).data


def test_data_are_told_apart_by_what_they_hold() -> None:
    def look(**attributes: Any) -> int:
        return read_loader(DataLoader(Watched(3, **attributes)), 1, 1000).data

    lists = [{"rows": [f"{place}.png" for place in range(start, start + 50)]} for start in (0, 1)]
    arrays = [{"rows": np.arange(5.0) + start} for start in (0, 1)]
    tensors = [{"rows": (torch.arange(5.0) + start,)} for start in (0, 1)]
    scalars = [{"rank": 0}, {"rank": 1}]
    dicts = [{"rows": {"a": Path("x")}}, {"rows": {"a": Path("y")}}]
    for first, second in (lists, arrays, tensors, scalars, dicts):
        assert look(**first) == look(**copy.deepcopy(first)) != look(**second)
    assert look(handle=object()) == look(handle=object())


def test_files_are_named_by_an_attribute_or_a_function() -> None:
    assert read_loader(DataLoader(Watched(3, urls=["a", Path("b")])), 1, 1000).files == ("a", "b")
    assert read_loader(DataLoader(Watched(3, files=[1, 2])), 1, 1000).files is None
    declared = read_loader(DataLoader(Watched(3, files=["a"])), 1, 1000, lambda data: [data.n])
    assert (declared.files, declared.is_declared) == (("3",), True)


# Folders


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    folder, first, second = tmp_path / "new" / "folder", FolderClaims(), FolderClaims()
    assert first.take(folder) is None
    owner = json.loads((folder / CLAIM_NAME).read_text())
    assert second.take(folder) == f"process {os.getpid()} on {owner['host']}"
    assert pickle.loads(pickle.dumps(first))._claims == copy.deepcopy(first)._claims == []
    second.release()
    assert second.take(folder) is not None
    first.release()
    assert not folder.exists()
    assert second.take(folder) is None
    (folder / "kept.ckpt").touch()
    second.release()
    assert os.listdir(folder) == ["kept.ckpt"]


def test_files_of_others_stay(tmp_path: Path) -> None:
    path, claims = tmp_path / CLAIM_NAME, FolderClaims()
    path.write_text("mine")
    assert claims.take(tmp_path) is None
    assert FolderClaims().take(tmp_path) == "another process"
    claims.release()
    assert path.read_text() == "mine"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_killed_process_gives_its_folders_back(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()

    def hold() -> None:
        FolderClaims().take(tmp_path)
        ready.set()
        signal.pause()

    process = context.Process(target=hold)
    process.start()
    assert ready.wait(20)
    claims = FolderClaims()
    assert str(claims.take(tmp_path)).startswith(f"process {process.pid} on ")
    process.kill()
    process.join()
    assert claims.take(tmp_path) is None
    assert json.loads((tmp_path / CLAIM_NAME).read_text())["pid"] == os.getpid()
    claims.release()


def test_folders_that_cannot_be_written_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    claims = FolderClaims()
    assert claims.take(tmp_path / "file" / "folder") is None
    assert claims._claims == []


# The callback in one process


OTHER = (
    "HostParity compared 1 rank(s) at step 0:\n- writers: process {pid} on {host} writes to {folder} too. Give each "
    "run a folder of its own; if both processes were meant to be one run, start them as one, with `devices` and "
    "`num_nodes` or through torchrun."
)


@pytest.mark.parametrize("package", PACKAGES)
def test_one_process_claims_its_folder(package: Any, tmp_path: Path) -> None:
    saver = package.callbacks.ModelCheckpoint(tmp_path)
    inside = []

    class Look(package.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            inside.append(CLAIM_NAME in os.listdir(tmp_path))

    trainer = make_trainer(
        package, [HostParity(every_n_steps=1), Look(), saver], max_steps=2, enable_checkpointing=True
    )
    trainer.fit(make_model(package), make_loader())
    assert inside == [True, True]
    assert CLAIM_NAME not in os.listdir(tmp_path)
    claims = FolderClaims()
    assert claims.take(tmp_path) is None
    host = json.loads((tmp_path / CLAIM_NAME).read_text())["host"]
    again = make_trainer(
        package, [HostParity(), package.callbacks.ModelCheckpoint(tmp_path)], max_steps=2, enable_checkpointing=True
    )
    message = OTHER.format(pid=os.getpid(), host=host, folder=os.path.realpath(tmp_path))
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        again.fit(make_model(package), make_loader())
    warned = make_trainer(
        package, [HostParity(action="warn"), package.callbacks.ModelCheckpoint(tmp_path)], max_steps=2,
        enable_checkpointing=True,
    )  # fmt: skip
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        warned.fit(make_model(package), make_loader())
    claims.release()


@pytest.mark.parametrize("package", PACKAGES)
def test_one_process_trains_as_without(package: Any) -> None:
    losses = []
    for callbacks in ([], [HostParity(every_n_steps=1)]):
        seed_hosts(2)
        model = make_model(package, dropout=0.5)
        make_trainer(package, callbacks, max_steps=6).fit(model, make_loader(shuffle=True))
        losses.append(model.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("package", PACKAGES)
def test_copies_made_in_a_fit_hold_nothing(package: Any, tmp_path: Path) -> None:
    parity, copies = HostParity(), []

    class CopyInside(package.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            copies.append(copy.deepcopy(parity))

    saver = package.callbacks.ModelCheckpoint(tmp_path)
    make_trainer(package, [parity, CopyInside(), saver], max_steps=1, enable_checkpointing=True).fit(
        make_model(package), make_loader()
    )
    trainer = make_trainer(package, copies, max_steps=1)
    trainer.fit(make_model(package), make_loader())


def refusal(package: Any, strategy: Any, parity: HostParity | None = None, **options: Any) -> str:
    trainer = make_trainer(package, [parity or HostParity()], strategy=strategy, max_steps=1, **options)
    try:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            trainer.fit(make_model(package), make_loader())
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return str(caught.value)


@pytest.mark.parametrize("package", PACKAGES)
def test_strategies_that_cannot_be_compared_are_refused(package: Any) -> None:
    single = package.strategies.SingleDeviceStrategy
    deepspeed = type("DeepSpeedStrategy", (single,), {})
    assert refusal(package, deepspeed("cpu")) == (
        "`strategy` is DeepSpeedStrategy, and HostParity does not support it: its partitioned parameters cannot be "
        "compared. Use ddp, or ModelParallelStrategy."
    )
    # By its name, as Lightning runs the real one on a GPU only.
    sharded = type("FSDPStrategy", (single,), {})
    assert refusal(package, sharded("cpu")) == (
        "`strategy` is FSDPStrategy, and HostParity does not support it: whole parameters are on no rank, and "
        "flattened ones cannot be compared. Use ModelParallelStrategy (FSDP2), or ddp."
    )

    class Apart(package.strategies.DDPStrategy):
        """Processes that know nothing of each other."""

        world_size = 2

        def _configure_launcher(self) -> None:
            pass

        def setup_distributed(self) -> None:
            pass

        def configure_ddp(self) -> None:
            pass

        def barrier(self, *_: Any, **__: Any) -> None:
            pass

        def broadcast(self, obj: Any, src: int = 0) -> Any:
            return obj

    assert refusal(package, Apart(), devices=2) == (
        "`strategy` is Apart, which runs 2 processes without torch.distributed, through which HostParity compares "
        "them. Train with ddp or ModelParallelStrategy."
    )


def test_arguments_out_of_range_are_refused() -> None:
    messages: dict[str, dict[str, Any]] = {
        "`every_n_steps` is 0: it must be at least 1. Pass how many optimizer steps lie between two checks, or None to "
        "check as the fit starts only.": {"every_n_steps": 0},
        "`files` is ['a']: it must be a function that takes the data set and returns the names of the files which this "
        "rank reads. Pass, for instance, lambda data: data.paths.": {"files": ["a"]},
        "`action` is 'stop': it must be 'raise' or 'warn'. Pass what a fault should lead to.": {"action": "stop"},
    }
    for message, arguments in messages.items():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            HostParity(**arguments)


# The callback in two processes


def launch(strategy: str, package: str, folder: Path) -> None:
    script = Path(host_parity_run.__file__)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PL_", "PLAYBOOK_"))}
    run = subprocess.run(
        [sys.executable, script, strategy, package, folder],
        capture_output=True, text=True, timeout=280, check=False, env=environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


def told(folder: Path, case: str) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{case}-rank{rank}.pt") for rank in range(2)]


def check_healthy(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first["message"] is second["message"] is None
    assert first["step"] == second["step"] == 8
    # The same model before any strategy could make it so.
    assert first["built"] == second["built"]
    for one, other in zip(first["masks"], second["masks"], strict=True):
        assert one != other
    seen = [{number for batch in one["examples"][:5] for number in batch} for one in (first, second)]
    assert len(seen[0] & seen[1]) <= 1  # the padding
    assert len(seen[0] | seen[1]) == host_parity_run.N_EXAMPLES
    assert [one["sampler"] for one in (first, second)] == [[host_parity_run.SEED, 2, 0], [host_parity_run.SEED, 2, 1]]
    noise = [np.array([value for batch in one["noise"] for value in batch]) for one in (first, second)]
    assert np.intersect1d(*noise).size == 0


FOUND = {
    "streams": ["dropout streams: training draws from torch's CPU generator"],
    "weights": ["weights: head.bias differs between rank 0 and rank 1. "],
    "buffer": ["weights: scale differs between rank 0 and rank 1. "],
    "drift": ["weights: net.0.weight differs between rank 0 and rank 1. "],
    "accumulation": ["weights: net.0.weight differs between rank 0 and rank 1. "],
    "manual": ["weights: net.0.weight differs between rank 0 and rank 1. "],
    "compile": ["weights: head.bias differs between rank 0 and rank 1. "],
    "global order": [r"examples: \d+ examples are .* DistributedSamplerWrapper draws a different order on each rank"],
    "other seeds": [r"sampler: `seed` is \[0, 1\] by rank"],
    "one for all": [r"sampler: \(`num_replicas`, `rank`\) are \[\(2, 0\), \(2, 0\)\] by rank"],
    "stream": ["examples: ranks 0 and 1 train on the same first batch. "],
    "files": [r"files: 1 file\(s\) are read by more than one rank, such as 'b' by ranks 0 and 1. "],
    "random": [r"examples: 35 examples are drawn by more than one rank .* RandomSampler does not divide them"],
    "in order": [r"examples: 35 examples .* \(0, 1, 2, ...; 0 by ranks 0 and 1\). SequentialSampler does not divide"],
    "seeds apart": [r"sampler: `seed` is \[25, 26\] by rank"],
    "weighted alike": ["examples: ranks 0 and 1 draw the same examples in the same order. ", "dropout streams: "],
    "subset divided": ["examples: each rank was given a part of the data set, and a distributed sampler divides that"],
    "files divided": ["files: each rank reads files of its own, and a distributed sampler divides their examples"],
    "two writers": ["writers: ranks 0 and 1 would write the checkpoints, and it must be one. "],
    "loggers": [r"loggers: ranks 0 and 1 write to \w+Everywhere, and only rank 0 should. "],
    "other run": [r"writers: process \d+ on \S+ writes to \S+taken too. "],
}
PASSED = [
    *("healthy", "unseen", "own order", "divided stream", "own data", "weighted", "weighted apart", "subset", "saved"),
    *("warned", "whole", "plain", "resumed", "restored", "restored first", "compiled"),
    *("64-true", "bf16-true", "bf16-mixed", "16-mixed"),
]
FOUND_AT = {"drift": 6, "accumulation": 6, "manual": 6}


def check_found(message: str, faults: list[str]) -> None:
    lines = message.split("\n- ")
    assert re.match(r"(RuntimeError: )?HostParity compared 2 rank\(s\) at step \d+:$", lines[0])
    assert len(lines) == 1 + len(faults), message
    for line, fault in zip(lines[1:], faults, strict=True):
        assert re.match(fault, line), message


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning"])
def test_two_processes_of_ddp(package: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    claims = FolderClaims()
    assert claims.take(tmp_path / "taken") is None
    try:
        launch("ddp", package, tmp_path)
    finally:
        claims.release()
    for case, faults in FOUND.items():
        ranks = told(tmp_path, case)
        assert ranks[0]["message"] == ranks[1]["message"], case
        check_found(str(ranks[0]["message"]), faults)
        assert ranks[0]["step"] == ranks[1]["step"] == FOUND_AT.get(case, 0), case
    for case in PASSED:
        for one in told(tmp_path, case):
            assert (one["message"], one["step"]) == (None, 8), case
    check_healthy(*told(tmp_path, "healthy"))

    # What is wrong without: the masks are the same.
    first, second = told(tmp_path, "unseen")
    assert first["masks"] == second["masks"]
    assert first["noise"] == second["noise"]
    for one in told(tmp_path, "error"):
        assert one["message"] == "RuntimeError: HostParity could not look at every rank. rank 1: OSError: no such disk"
    warned = told(tmp_path, "warned")
    texts = [[text for text in one["warnings"] if text.startswith("HostParity")] for one in warned]
    check_found(texts[0][0], FOUND["weights"] + FOUND["streams"])
    assert [len(one) for one in texts] == [1, 0]
    # Read from a copy: the sampler itself has only begun the epochs of training, one batch ahead.
    assert {one["n_epochs"] for one in told(tmp_path, "own order")} <= {2, 3}
    assert sorted(path.name for path in (tmp_path / "free").iterdir())[0].startswith("epoch=")
    assert not list(tmp_path.glob(f"**/{CLAIM_NAME}"))

    # Without the generators a resumed run draws new numbers: neither the first ones again, nor those to come.
    for plain, resumed in zip(told(tmp_path, "plain"), told(tmp_path, "resumed"), strict=True):
        assert len(resumed["masks"]) == 4
        assert all(mask not in plain["masks"] for mask in resumed["masks"])
    # With them it goes on, wherever RandomState stands.
    for case in ("restored", "restored first"):
        for whole, restored in zip(told(tmp_path, "whole"), told(tmp_path, case), strict=True):
            assert restored["masks"] == whole["masks"][4:]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning"])
def test_two_processes_of_ddp_spawn(package: str, tmp_path: Path) -> None:
    launch("ddp_spawn", package, tmp_path)
    check_healthy(*told(tmp_path, "healthy"))
    # The first rank to end makes Lightning end the other.
    assert (
        "RuntimeError: HostParity compared 2 rank(s) at step 0:\n- weights: head.bias differs between"
        in (tmp_path / "weights.txt").read_text()
    )
    for one in told(tmp_path, "all"):
        writers, training = (text for text in one["warnings"] if text.startswith("HostParity"))
        check_found(writers, FOUND["two writers"])
        check_found(training, FOUND["weights"] + FOUND["in order"] + FOUND["streams"])


@pytest.mark.slow
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning"])
def test_two_processes_that_share_a_model(package: str, tmp_path: Path) -> None:
    launch("fsdp2", package, tmp_path)
    first, second = told(tmp_path, "healthy")
    assert first["built"] == second["built"]
    assert first["masks"] != second["masks"]
    # One part of the data for both, so that they must draw the same.
    shared = told(tmp_path, "tensor")
    assert shared[0]["masks"] == shared[1]["masks"]
    assert shared[0]["examples"] == shared[1]["examples"]
    for one in (first, second, *shared):
        assert (one["message"], one["step"]) == (None, 8)
    resumed = told(tmp_path, "resumed")
    for one, whole in zip(resumed, (first, second), strict=True):
        assert (one["message"], one["step"], len(one["masks"])) == (None, 8, 4)
        assert all(mask not in whole["masks"] for mask in one["masks"])
    assert resumed[0]["masks"] != resumed[1]["masks"]
    for case in ("buffer", "streams"):
        for one in told(tmp_path, case):
            check_found(str(one["message"]), FOUND[case])
