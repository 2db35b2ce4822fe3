"""Real studies that tests check the analysis against, read where they lie."""

from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis import Curve, Parameter, Trials

DATA = Path(os.environ.get("PLAYBOOK_DATA", Path(__file__).parents[2] / "shared" / "data"))
CONVNEXT = DATA / "convnext_imagenet"
N_IMAGENET = 1_281_167  # examples in its training set

needs_convnext = pytest.mark.skipif(
    not CONVNEXT.exists(), reason=f"the ConvNeXt trials are not at {CONVNEXT}; set PLAYBOOK_DATA to the folder above"
)


@functools.cache
def convnext() -> Trials:
    """Return 512 random trials of ConvNeXt-tiny on ImageNet (Nicholas Lourie, CC BY-SA 4.0), maximizing accuracy."""
    with gzip.open(CONVNEXT / "convnext-tiny_tuning.jsonl.gz", "rt") as lines:
        runs = [json.loads(line) for line in lines]
    space = json.loads((CONVNEXT / "search_space.json").read_text())["space"]
    for run in runs:
        run["lr_peak_proportion"] = run["lr_peak_epoch"] / run["epochs"]
    curves = [_convnext_curve(run) for run in runs]
    return Trials.from_columns(
        "ConvNeXt-tiny on ImageNet",
        [_parameter(name, described) for name, described in space.items()],
        {name: [run[name] for run in runs] for name in space},
        [np.nan if run["nan_train_loss"] else curve.validation.max() for run, curve in zip(runs, curves, strict=True)],
        direction="maximize",
        best_step=[curve.step[curve.validation.argmax()] if len(curve) else -1 for curve in curves],
        max_steps=[run["epochs"] * (N_IMAGENET // run["batch_size"]) for run in runs],
        curves=curves,
        objective_name="top_1",
    )


def _parameter(name: str, described: dict[str, Any]) -> Parameter:
    if described["type"] == "categorical":
        return Parameter(name=name, kind="categorical", choices=tuple(described["choices"]))
    return Parameter(
        name=name,
        kind=described["type"],
        low=described["low"],
        high=described["high"],
        log=bool(described.get("log")),
    )


def _convnext_curve(run: dict[str, Any]) -> Curve:
    evaluations = run["learning_curve"]
    steps_per_epoch = N_IMAGENET // run["batch_size"]
    epoch = np.array([evaluation["epoch"] + 1 for evaluation in evaluations], dtype=np.int64)
    # The data give the peak, its epoch and the length, not the rates. Between them the rate is taken to be linear, from
    # 0 to the peak and back to 0, as in one-cycle schedules: an assumption, of which only the decay matters here.
    last = epoch - 1 / steps_per_epoch
    rise = last / max(run["lr_peak_epoch"], 1e-9)
    fall = (run["epochs"] - last) / (run["epochs"] - run["lr_peak_epoch"])
    return Curve.from_columns(
        epoch * steps_per_epoch,
        [evaluation["top_1"] for evaluation in evaluations],
        [evaluation["train_loss"] for evaluation in evaluations],
        learning_rate=run["lr"] * np.minimum(rise, fall),
    )
