"""Training by formula, whose best learning rate, instability, steps to fit and gradient norms are planted.

Every run of one configuration is the same, whichever process trains it. Share the file: add, and change nobody's.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from scipy.special import ndtri

from playbook_plugins.analysis import Curve, Status, TrialRecord
from playbook_plugins.optuna.indices import sequence_indices


def config_noise(config: Mapping[str, Any], seed: int = 0) -> np.random.Generator:
    """Return the generator that belongs to a configuration."""
    return np.random.default_rng([seed, zlib.crc32(json.dumps(dict(config), sort_keys=True).encode())])


@dataclass(frozen=True, kw_only=True)
class PlantedRates:
    """``train(config) -> TrialRecord`` with one evaluation a step, and the training loss as the objective.

    The loss falls from 2 to ``0.1 + 1.5 * d / (1 + d)``, where ``d = log10(rate / best_rate) ** 2``, to which noise is
    added. From ``unstable_rate`` on it blows up, unless the warmup has ``warmup_at_unstable * rate / unstable_rate``
    steps or the gradients are clipped at ``stable_threshold`` or below. It ``"diverges"`` or ``"rises"`` at half of
    training, or blows up ``"early"`` and recovers. The gradient norms are lognormal.
    """

    best_rate: float = 0.1
    unstable_rate: float = math.inf
    blow_up: Literal["diverges", "rises", "early"] = "rises"
    warmup_at_unstable: float = math.inf
    stable_threshold: float = 0.0
    norm_median: float = 1.0
    norm_spread: float = 0.5
    n_steps: int = 200
    noise: float = 0.01
    seed: int = 0

    def is_unstable(self, config: Mapping[str, Any]) -> bool:
        rate = config["learning_rate"]
        if rate < self.unstable_rate:
            return False
        threshold = config.get("clip_threshold")
        if threshold is not None and threshold <= self.stable_threshold:
            return False
        return config.get("warmup_steps", 0) < self.warmup_at_unstable * rate / self.unstable_rate

    def __call__(self, config: Mapping[str, Any]) -> TrialRecord:
        rate, n_steps = config["learning_rate"], config.get("max_train_steps", self.n_steps)
        chance = config_noise(config, self.seed)
        step = np.arange(n_steps + 1)
        off = math.log10(rate / self.best_rate) ** 2
        floor = 0.1 + 1.5 * off / (1.0 + off)
        loss = 2.0 + (floor - 2.0) * (1.0 - np.exp(-8.0 * step / n_steps))
        loss += self.noise * chance.standard_normal(n_steps + 1)
        threshold = config.get("clip_threshold")
        norms = self.norm_median * np.exp(self.norm_spread * chance.standard_normal(n_steps + 1))
        status, reason = Status.COMPLETE, ""
        half = n_steps // 2
        if self.is_unstable(config):
            if self.blow_up == "diverges":
                step, loss, norms = step[: half + 1], loss[: half + 1].copy(), norms[: half + 1]
                loss[-1] = math.nan
                status, reason = Status.INFEASIBLE, f"diverged: the loss is nan at step {half}"
            elif self.blow_up == "rises":
                loss[half:] += 3.0
            else:
                loss[3 : 3 + n_steps // 10] += 3.0
                loss[3 + n_steps // 10 :] += 0.3
        return TrialRecord(
            direction="minimize",
            curve=Curve.from_columns(step, loss, loss, learning_rate=np.full(len(step), rate), gradient_norm=norms),
            status=status,
            reason=reason,
            max_steps=n_steps,
            gradient_norm_quantiles=self.norm_quantiles(),
            clipped_share=math.nan if threshold is None else self.share_above(threshold),
            seconds=0.01 * n_steps,
        )

    def norm_quantiles(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        shares = np.clip(np.arange(101) / 100, 0.001, 0.999)
        return np.asarray(self.norm_median * np.exp(self.norm_spread * ndtri(shares)))

    def share_above(self, threshold: float) -> float:
        """Return the share of the norms above a threshold, from their planted quantiles."""
        return float(1.0 - np.interp(threshold, self.norm_quantiles(), np.arange(101) / 100))


@dataclass(frozen=True, kw_only=True)
class PlantedFit:
    """``train(config) -> TrialRecord`` that fits its training set perfectly after ``fit_constant / rate`` steps.

    The training error falls linearly to 0, evaluated every ``every`` steps. From ``unstable_rate`` on it diverges.
    """

    fit_constant: float = 10.0
    unstable_rate: float = math.inf
    every: int = 10

    def steps_to_fit(self, rate: float) -> int:
        """Return the first evaluation at which the error is 0."""
        return self.every * math.ceil(self.fit_constant / rate / self.every)

    def __call__(self, config: Mapping[str, Any]) -> TrialRecord:
        rate, n_steps = config["learning_rate"], config["max_train_steps"]
        is_unstable = rate >= self.unstable_rate
        step = np.arange(0, (min(n_steps, 5 * self.every) if is_unstable else n_steps) + 1, self.every)
        error = np.maximum(0.0, 1.0 - step * rate / self.fit_constant)
        # The sum of many small parts may miss 0 by its last digit.
        error[step >= self.fit_constant / rate] = 0.0
        validation = 0.2 + error
        if is_unstable:
            validation[-1] = math.nan
        return TrialRecord(
            direction="minimize",
            curve=Curve.from_columns(step, validation, error, learning_rate=np.full(len(step), rate)),
            status=Status.INFEASIBLE if is_unstable else Status.COMPLETE,
            reason="diverged" if is_unstable else "",
            max_steps=n_steps,
        )


WORKER = """
import json, os, sys, time
import optuna
from planted_training import *

optuna.logging.set_verbosity(optuna.logging.ERROR)
url, log, call = sys.argv[1:4]

def logged(planted):
    def train(config):
        with open(log, "a") as file:
            file.write(json.dumps([os.getpid(), config]) + "\\n")
        time.sleep(0.1)
        return planted(config)
    return train

scope = {**globals(), "options": {"study_name": "s", "storage": url}}
exec(call, scope)
print(json.dumps(dict(scope["result"].recommendation)))
"""


def start_protocol(url: str, log: Path, call: str) -> subprocess.Popen[str]:
    """Start a process that runs statements: they set ``result``, by ``logged`` training and with ``options``."""
    log.touch()
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, url, str(log), call],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )


def finished_configs(url: str) -> list[str]:
    """Return the configurations of all finished runs of a storage, as JSON."""
    configs = []
    for name in optuna.get_all_study_names(url):
        study = optuna.load_study(study_name=name, storage=url)
        plan = json.loads(study.user_attrs.get("playbook:plan", "{}"))
        design = json.loads(study.user_attrs.get("playbook:round", "{}"))
        trials = study.get_trials(deepcopy=False)
        indices = sequence_indices(trials)
        for trial in trials:
            place = indices[trial.number]
            if trial.state is optuna.trial.TrialState.COMPLETE and place is not None:
                if design:
                    config = {**design["fixed"], **trial.params}
                else:
                    passed = plan["passed"][place] if plan["passed"] else {}
                    config = {**plan["fixed"], **plan["points"][place], **passed}
                configs.append(json.dumps(config, sort_keys=True))
    return configs


def trained_configs(log: Path) -> list[tuple[int, str]]:
    """Return which process began to train which configuration, in order."""
    lines = log.read_text().splitlines()
    return [(pid, json.dumps(config, sort_keys=True)) for pid, config in map(json.loads, lines)]


def survive_kills(folder: Path, call: str, *, n_kills: int, seed: int) -> dict[str, Any]:
    """Kill a procedure at random moments, let it finish: no finished run is repeated. Return what it recommends."""
    url, log, chance = f"sqlite:///{folder}/study.db", folder / "log", random.Random(seed)
    finished_before: dict[int, list[str]] = {}
    for _ in range(n_kills):
        worker = start_protocol(url, log, call)
        finished_before[worker.pid] = finished_configs(url) if finished_before else []
        n_before, n_more = len(trained_configs(log)), chance.randrange(1, 4)
        deadline = time.monotonic() + 60
        while worker.poll() is None and len(trained_configs(log)) < n_before + n_more and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.15))
        worker.kill()
        worker.communicate()
    worker = start_protocol(url, log, call)
    finished_before[worker.pid] = finished_configs(url)
    output, _ = worker.communicate(timeout=120)
    assert worker.returncode == 0
    for pid, config in trained_configs(log):
        assert config not in finished_before[pid]
    finished = finished_configs(url)
    assert len(finished) == len(set(finished))
    return dict(json.loads(output))


def run_two_workers(folder: Path, call: str) -> dict[str, Any]:
    """Run a procedure in two processes at once: they share the runs and agree. Return what they recommend."""
    url, log = f"sqlite:///{folder}/study.db", folder / "log"
    # Makes the tables without a race.
    optuna.create_study(study_name="other", storage=url)
    workers = [start_protocol(url, log, call) for _ in range(2)]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs[0] == outputs[1]
    finished = finished_configs(url)
    assert len(finished) == len(set(finished))
    assert sorted(config for _, config in trained_configs(log)) == sorted(finished)
    return dict(json.loads(outputs[0]))


@dataclass(frozen=True, kw_only=True)
class PlantedQuality:
    """``train(config) -> TrialRecord`` whose objective is ``config["quality"]`` plus normal noise of the seed.

    ``sd`` is its standard deviation; from ``diverging_seed`` on a quality of ``unstable_quality`` or less diverges.
    """

    sd: float = 0.01
    unstable_quality: float = -math.inf
    diverging_seed: int = 0
    noise_seed: int = 0

    def __call__(self, config: Mapping[str, Any]) -> TrialRecord:
        noise = float(config_noise(config, self.noise_seed).standard_normal())
        is_unstable = config["quality"] <= self.unstable_quality and config["seed"] >= self.diverging_seed
        value = math.nan if is_unstable else config["quality"] + self.sd * noise
        return TrialRecord(
            direction="minimize",
            curve=Curve.from_columns([0, 10], [5.0, value]),
            status=Status.INFEASIBLE if is_unstable else Status.COMPLETE,
            reason="diverged" if is_unstable else "",
            max_steps=10,
        )


@dataclass(frozen=True, kw_only=True)
class PlantedBatches:
    """``train(config) -> TrialRecord`` that reaches 0.1 after ``least_steps * (1 + critical_size / batch_size)`` steps.

    That is at the best learning rate, ``rate_at_64 * sqrt(batch_size / 64)``; each halving or doubling of it costs
    ``slowdown`` of the steps more, squared. A device does ``peak_throughput / (1 + saturation / batch_size)`` examples
    a second; None leaves the throughput unknown.
    """

    critical_size: float = 256.0
    least_steps: float = 500.0
    rate_at_64: float = 0.1
    slowdown: float = 0.3
    peak_throughput: float | None = None
    saturation: float = 256.0
    n_steps: int = 20_000

    def steps_to_goal(self, batch_size: int, rate: float) -> float:
        octaves = math.log2(rate / (self.rate_at_64 * math.sqrt(batch_size / 64)))
        return self.least_steps * (1 + self.critical_size / batch_size) * (1 + self.slowdown * octaves**2)

    def throughput(self, batch_size: int) -> float:
        return math.nan if self.peak_throughput is None else self.peak_throughput / (1 + self.saturation / batch_size)

    def __call__(self, config: Mapping[str, Any]) -> TrialRecord:
        steps = self.steps_to_goal(config["batch_size"], config["learning_rate"])
        step = np.arange(0, self.n_steps + 1, self.n_steps // 400)
        return TrialRecord(
            direction="minimize",
            curve=Curve.from_columns(step, 1.0 - 0.9 * step / steps),
            max_steps=self.n_steps,
            examples_per_second=self.throughput(config["batch_size"]),
        )


@dataclass(frozen=True, kw_only=True)
class PlantedLength:
    """``train(config) -> TrialRecord`` that gets better with each step at a high rate, and once more as the rate falls.

    The schedule is linear, with the decay of ``config["decay_steps"]``, by default all of training. The loss is
    ``1 / (1 + high_steps / 1000)``, with the steps so far at the base rate or below it by less than half, plus
    ``(log10(rate / best_rate)) ** 2``, plus 0.05 times the rate's share of its peak. ``harm`` is added a step beyond
    ``harm_from``.
    """

    best_rate: float = 0.1
    harm: float = 0.0
    harm_from: int = 1000
    knows_decay_steps: bool = True

    def __call__(self, config: Mapping[str, Any]) -> TrialRecord:
        rate, n_steps = config["learning_rate"], config["max_train_steps"]
        decay = config.get("decay_steps", n_steps) if self.knows_decay_steps else n_steps
        step = np.arange(0, n_steps + 1, n_steps // 50)
        share = np.clip((n_steps - step) / decay, 0.0, 1.0)
        high = np.minimum(step, n_steps - decay / 2)
        loss = 1 / (1 + high / 1000) + math.log10(rate / self.best_rate) ** 2 + 0.05 * share
        loss += self.harm * np.maximum(n_steps - self.harm_from, 0)
        return TrialRecord(
            direction="minimize",
            curve=Curve.from_columns(step, loss, loss, learning_rate=rate * share),
            max_steps=n_steps,
        )
