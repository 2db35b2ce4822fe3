"""Does the unstable transformer's example hold its claims, and survive being killed at any moment?"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import optuna
import pytest
import torch
from example_scripts import ENVIRONMENT, EXAMPLES, load_example, run
from lightning_toys import QUIET
from optuna.trial import TrialState

from playbook_plugins.analysis import InfeasibleError, Status
from playbook_plugins.optuna.indices import sequence_indices

pytestmark = pytest.mark.slow

FIGURES = ("4-sweep", "5-evaluations", "7a-axis", "7b-losses", "8-warmup", "9-clipping", "9-norms", "9-histogram")
DRAWN = {f"figure-{figure}.{kind}" for figure in FIGURES for kind in ("svg", "png")}
# What a record says of the clock; all else is the same whenever one thread trains the same configuration.
CLOCK = ("seconds", "examples_per_second", "data_wait_share")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of the example left: ``results`` by study and place in its plan, ``pictures`` as digests."""

    table: str
    results: dict[tuple[str, int], list[str]]
    pictures: dict[str, str]


@dataclass(frozen=True)
class Moment:
    """When to kill: ``seconds`` after the database, the ``n``-th run of all or the ``n``-th figure was there.

    All processes at once, or ``only_first``, the one that was started: the others have to notice.
    """

    after: str
    n: int
    seconds: float
    only_first: bool = False


def storage_of(folder: Path) -> str:
    return f"sqlite:///{folder}/runs/instability/instability.db"


def finished_records(storage: str) -> dict[tuple[str, int], str]:
    """Return what is kept of each run, by its study and number."""
    return {
        (name, trial.number): json.dumps(trial.user_attrs, sort_keys=True)
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).trials
        if trial.state is TrialState.COMPLETE
    }


def trained_results(storage: str) -> dict[tuple[str, int], list[str]]:
    """Return what training gave, less the clock, for each place of each plan: a list of one where all is well."""
    results: dict[tuple[str, int], list[str]] = {}
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        for place in range(len(json.loads(study.user_attrs["playbook:plan"])["points"])):
            results[name, place] = []
        places = sequence_indices(study.trials)
        for trial in study.trials:
            place_of_trial = places[trial.number]
            assert trial.state.is_finished()
            assert place_of_trial is not None
            if trial.state is TrialState.COMPLETE:
                record = json.loads(trial.user_attrs["playbook:record"])
                untimed = {key: value for key, value in record.items() if key not in CLOCK}
                results[name, place_of_trial].append(json.dumps([trial.params, untimed], sort_keys=True))
    return results


def assert_whole(folder: Path) -> set[str]:
    """Hold that each figure and page that is there is complete, and return their names."""
    for path in folder.glob("*.svg"):
        assert ElementTree.fromstring(path.read_text()).tag.endswith("svg")
    for path in folder.glob("*.png"):
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content.endswith(b"IEND\xae\x42\x60\x82")
    for path in folder.glob("*.html"):
        assert path.read_text().rstrip().endswith("</html>")
    return {path.name for kind in ("svg", "png", "html") for path in folder.glob(f"*.{kind}")}


def half_written(folder: Path) -> list[Path]:
    """Return the hidden files of writers that were killed between writing a file and giving it its name."""
    return list((folder / "runs/instability").glob(".playbook-*.part"))


def outcome(folder: Path, output: str) -> Outcome:
    results = folder / "runs/instability"
    assert assert_whole(results) == {*DRAWN, "report.html"}
    names = {path.name for path in results.iterdir() if path not in half_written(folder)}
    assert names == {*DRAWN, "report.html", "instability.db", "instability.log"}
    # Not the SVG files and the page: their tooltips have the trial's number, and another attempt has another one.
    pictures = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in results.glob("*.png")}
    table = output[output.index("The largest stable") : output.index(" files of figures")]
    return Outcome(table=table, results=trained_results(storage_of(folder)), pictures=pictures)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Outcome]:
    """Run the example in its short form once, and return its folder, what it printed and what it left."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    output = run(folder, "instability.py", "--short", strict=False)
    assert not half_written(folder)
    return folder, output, outcome(folder, output)


def test_the_short_run_does_all_that_the_full_one_does(uninterrupted: tuple[Path, str, Outcome]) -> None:
    folder, output, before = uninterrupted
    assert "its ratios say nothing" in output
    for remedy in ("warmup, 30 steps", "clipping, 90th pct", "clipping, 75th pct"):
        assert re.search(rf"│ {remedy} +│ +0 │ +\S+ [ox]{{2}} │ +\S+ [ox]{{2}} │", output), output
    assert output.count("least") == 3
    assert "Warmup, clipping and the learning rate" in (folder / "runs/instability/report.html").read_text()
    records = finished_records(storage_of(folder))
    # Two rates, with and without warmup; four lengths of it at one or two rates; two rates without and two thresholds.
    assert len(records) in (2 * 2 + 4 + 3 * 2, 2 * 2 + 2 * 4 + 3 * 2)

    # Started again, it trains nothing and says the same.
    again = run(folder, "instability.py", "--short", strict=False)
    assert finished_records(storage_of(folder)) == records
    assert before.table in again


def n_logged(folder: Path) -> int:
    """Return how many runs the log tells of: the test must not be the one that opens the database first."""
    log = folder / "runs/instability/instability.log"
    return log.read_text().count("finished with value") if log.exists() else 0


def kill_at(folder: Path, moment: Moment, n_before: int, *arguments: str) -> dict[tuple[str, int], str]:
    """Start the example, kill it at a moment, and return the records that it leaves."""
    results, n_logged_before, started = folder / "runs/instability", n_logged(folder), time.time()

    def is_reached() -> bool:
        if moment.after == "database":
            return (results / "instability.db").exists()
        if moment.after == "runs":
            # Where the kill before came late, at least one run more.
            return n_before + n_logged(folder) - n_logged_before >= max(moment.n, n_before + 1)
        drawn = [path for path in results.glob("figure-*") if path.stat().st_mtime > started]
        return len(drawn) >= moment.n

    process = subprocess.Popen(
        [sys.executable, str(EXAMPLES / "instability.py"), "--short", *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not is_reached():
            assert process.poll() is None, f"it ended by itself, before {moment}"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(moment.seconds)
        if moment.only_first:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        # Until the last of its processes has let go of the output.
        process.communicate(timeout=20)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert_whole(results)
    return finished_records(storage_of(folder)) if n_logged(folder) else {}


def hold_that_it_survives(
    folder: Path, moments: list[Moment], uninterrupted: Outcome, *arguments: str, n_processes: int
) -> None:
    """Kill the example at each of the moments, let it end, and hold that its outcome does not tell."""
    kept: list[dict[tuple[str, int], str]] = [{}]
    for moment in moments:
        kept.append(kill_at(folder, moment, len(kept[-1]), *arguments))
    output = run(folder, "instability.py", "--short", *arguments, strict=False)
    storage = storage_of(folder)
    records = finished_records(storage)
    for before in kept:
        assert [key for key, record in before.items() if records.get(key) != record] == []
    after = outcome(folder, output)
    assert after.results.keys() == uninterrupted.results.keys()
    assert [key for key, results in after.results.items() if len(results) != 1] == []
    assert [key for key, results in after.results.items() if results != uninterrupted.results[key]] == []
    assert after.table == uninterrupted.table
    assert after.pictures == uninterrupted.pictures
    # A kill costs what the processes had in hand, and no more; of a file that was being written, the hidden half.
    assert len(half_written(folder)) <= len(moments)
    names = optuna.get_all_study_names(storage)
    n_attempts = sum(len(optuna.load_study(study_name=name, storage=storage).trials) for name in names)
    assert len(records) <= n_attempts <= len(records) + n_processes * len(moments)


def draw_moments(seed: int, n_runs: int) -> list[Moment]:
    """Return moments over the whole run: as it begins, in each third of training, in probing, drawing and writing."""
    chance = random.Random(seed)
    # Each so short of its end that a fast machine is not done when the kill comes.
    thirds = [range(1, n_runs // 3), range(n_runs // 3, 2 * n_runs // 3), range(2 * n_runs // 3, n_runs - 3)]
    return [
        Moment("database", 1, chance.uniform(0.0, 0.3)),
        *(Moment("runs", chance.choice(third), chance.uniform(0.0, 0.7)) for third in thirds),
        Moment("runs", n_runs, chance.uniform(0.0, 1.0)),
        Moment("figures", chance.randrange(1, len(DRAWN)), chance.uniform(0.0, 0.1)),
        Moment("figures", len(DRAWN), chance.uniform(0.0, 0.3)),
    ]


@pytest.mark.parametrize("seed", [0])
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(
    seed: int, tmp_path: Path, uninterrupted: tuple[Path, str, Outcome]
) -> None:
    _, _, expected = uninterrupted
    moments = draw_moments(seed, len(expected.results))
    hold_that_it_survives(tmp_path, moments, expected, n_processes=1)


@pytest.mark.parametrize("seed", [1])
def test_two_processes_killed_at_any_moment_end_as_one_that_was_not(
    seed: int, tmp_path: Path, uninterrupted: tuple[Path, str, Outcome]
) -> None:
    _, _, expected = uninterrupted
    # In training only: the rest is done by one process, as above.
    first, second, third, *_ = [
        moment for moment in draw_moments(seed, len(expected.results)) if moment.after == "runs"
    ]
    moments = [first, replace(second, only_first=True), third]
    hold_that_it_survives(tmp_path, moments, expected, "--processes", "2", n_processes=2)


@pytest.mark.filterwarnings("ignore:LearningRateWarmup takes 33%")
class TestInstability:
    """The claims of the full run over its three seeds, by the runs that they rest on."""

    pytestmark = QUIET

    @pytest.fixture(autouse=True)
    def use_one_thread(self) -> Iterator[None]:
        # As the example does: sums in another order are another run.
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(n_threads)

    def attempt(self, example: ModuleType, workload: Any, rate: float, seed: int, **remedy: Any) -> tuple[bool, Any]:
        config = {
            **workload.fixed,
            "warmup_steps": 0,
            "clip_threshold": None,
            "seed": seed,
            "learning_rate": rate,
            **remedy,
        }
        try:
            record = example.train(config, example.load_text())
        except InfeasibleError as error:
            return False, error.record
        assert record.status is Status.COMPLETE
        return True, record

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_warmup_allows_a_rate_five_times_as_large(self, seed: int) -> None:
        example = load_example("instability")
        warmup, _ = example.choose_workloads(False)
        [remedy] = warmup.remedies.values()
        assert warmup.seeds == (0, 1, 2)
        # From the largest rate down: what trains first without warmup is the largest that does, whatever those below
        # it do.
        without = next(rate for rate in warmup.rates[::-1] if self.attempt(example, warmup, rate, seed)[0])
        # With warmup one rate at five times that or more has to train: then the largest that does is no smaller.
        larger = next(rate for rate in warmup.rates if rate >= 5 * without)
        assert self.attempt(example, warmup, larger, seed, **remedy)[0]

    def test_clipping_allows_a_rate_three_times_as_large(self) -> None:
        example = load_example("instability")
        _, clipping = example.choose_workloads(False)
        ratios: dict[int, list[float]] = {90: [], 75: []}
        for seed in clipping.seeds:
            # All rates: the thresholds are quantiles of the norms of the best run.
            attempts = {rate: self.attempt(example, clipping, rate, seed) for rate in clipping.rates}
            bare = {rate: record for rate, (is_stable, record) in attempts.items() if is_stable}
            best = min(bare.values(), key=lambda record: record.objective)
            for percentile, least in ((90, 3), (75, 5)):
                larger = min((rate for rate in clipping.rates if rate >= least * max(bare)), default=clipping.rates[-1])
                threshold = best.clip_threshold(percentile)
                is_stable, record = self.attempt(example, clipping, larger, seed, clip_threshold=threshold)
                # The largest rate that clipping allows is no smaller than one that trains.
                ratios[percentile].append(larger / max(bare) if is_stable else 1.0)
                # More than half would be extremely aggressive.
                assert not is_stable or 0.05 < record.clipped_share < 0.5
        # The median: runs near the limit end close to the loss that counts as unstable, and another processor's sums
        # may take one of them across it.
        assert statistics.median(ratios[90]) >= 3
        assert statistics.median(ratios[75]) >= 5
