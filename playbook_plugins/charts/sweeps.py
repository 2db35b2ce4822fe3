"""How do several sweeps of one hyperparameter stand in one picture? A colour and a shape a sweep, its best a star.

Shared by the sweeps of the learning rate and of the warmup.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis import Trials
from playbook_plugins.charts.palette import BLUE, CROSS, GREEN, GREY, INFEASIBLE, OFF_SCALE, RED, STAR, TRIAL_COLOURS
from playbook_plugins.charts.scales import STRIP_HEIGHT, objective_scale, objective_title
from playbook_plugins.charts.table import finite
from playbook_plugins.charts.theme import label

TRIAL, BEST = "trial", "best"
# Shapes that no other kind of mark has; the last trial colour is that of infeasible trials.
_SHAPES = (
    "circle",
    "diamond",
    "square",
    "triangle-right",
    "cross",
    "triangle-left",
    "M0,-1L.95,-.2L.6,1L-.6,1L-.95,-.2Z",
)
MAX_SWEEPS = len(_SHAPES)
# In characters; three columns of longer labels are wider than the chart.
_WIDE = 22
_AREAS = {TRIAL: 52, OFF_SCALE: 64, INFEASIBLE: 60, BEST: 210}


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """One series of the picture.

    Attributes
    ----------
    name
        Its label in the legend; "" where it is alone.
    trials
        Its trials.
    value
        What was swept, shape (n_trials,), in the unit of the hyperparameter.
    x
        Where each trial stands on the axis, shape (n_trials,), in the same unit; NaN for those not shown.
    """

    name: str
    trials: Trials
    value: NDArray[np.float64]
    x: NDArray[np.float64]

    @property
    def is_shown(self) -> NDArray[np.bool_]:
        """Which trials are in the picture, shape (n_trials,): those that are judged and have a place."""
        return np.asarray(self.trials.is_judged & np.isfinite(self.x), dtype=np.bool_)

    @property
    def best(self) -> int | None:
        """The row of the best trial that is shown, None without a feasible one."""
        return next((int(row) for row in self.trials.ranking() if self.is_shown[row]), None)


class SweepPicture:
    """The rows, the scale of the objective, the legend and the layers of some sweeps.

    Parameters
    ----------
    sweeps
        At least one, at most `MAX_SWEEPS`, all of one direction.
    x_name
        What the swept hyperparameter is called.
    best_name
        What the legend calls the star.
    number
        The field that holds the number of a trial.
    """

    def __init__(self, sweeps: Sequence[Sweep], *, x_name: str, best_name: str, number: str) -> None:
        """Put the sweeps side by side."""
        self.sweeps = tuple(sweeps)
        self.is_single = len(sweeps) == 1 and not sweeps[0].name
        labels = [label(sweep.name, 40) for sweep in sweeps]
        is_clear = len(set(labels)) == len(labels)
        self.labels = labels if is_clear else [f"{text} ({place})" for place, text in enumerate(labels)]
        self.scale = objective_scale(join(self.sweeps))
        self.x_name, self.best_name, self.number = x_name, best_name, number
        self.title = objective_title(sweeps[0].trials)
        self.rows = [row for place in range(len(sweeps)) for row in self._rows(place)]
        self.kinds = {row["kind"] for row in self.rows}

    def y(self, field: str = "objective") -> dict[str, Any]:
        """Return the encoding of y by a field that holds objectives."""
        return self.scale.y(field, strip=INFEASIBLE in self.kinds, title=self.title)

    def colour(self) -> dict[str, Any]:
        """Return the encoding of colour, by sweep or, of a single one, by the kind of mark."""
        return self._look(0)

    def layers(self, x: dict[str, Any], *, joined: bool) -> list[dict[str, Any]]:
        """Return the layers of all marks.

        Parameters
        ----------
        x
            The encoding of x by the field ``x``.
        joined
            Whether a line joins the best trials of the places of a sweep.
        """
        encoding: dict[str, Any] = {"x": x, "color": self.colour()}
        marks = encoding | {"tooltip": self._tooltip()}
        layers: list[dict[str, Any]] = []
        if INFEASIBLE in self.kinds:
            layers += self.scale.strip_layers(INFEASIBLE)
            layers += [
                {
                    "transform": [_is(INFEASIBLE), {"filter": f"datum.place === {place}"}],
                    "mark": {"type": "point", "shape": CROSS, "size": _AREAS[INFEASIBLE], "opacity": 0.8},
                    "encoding": marks | {"y": self._strip_y(place)},
                }
                for place in range(len(self.sweeps))
            ]
        if joined:
            layers.append(
                {
                    "data": {"values": [point for place in range(len(self.sweeps)) for point in self._line(place)]},
                    "mark": {"type": "line", "strokeWidth": 1.6, "opacity": 0.75, "clip": True, "aria": False},
                    "encoding": encoding | {"y": self.y(), "detail": {"field": "place"}},
                }
            )
        up = "triangle-up" if self.scale.direction == "minimize" else "triangle-down"
        for kind, shape in ((TRIAL, None), (OFF_SCALE, up), (BEST, STAR)):
            # That of plain trials tells the legend all shapes, whether there are such trials or not.
            if kind in self.kinds or kind == TRIAL:
                mark = {"type": "point", "size": _AREAS[kind], "opacity": 1 if kind == BEST else 0.8}
                layers.append(
                    {
                        "transform": [_is(kind)],
                        "mark": mark if shape is None else mark | {"shape": shape},
                        "encoding": marks | {"y": self.y()} | ({"shape": self._look(1)} if shape is None else {}),
                    }
                )
        return layers

    def _rows(self, place: int) -> list[dict[str, Any]]:
        """Return one row a trial of a sweep that is shown, the best last, so that it is drawn on top."""
        sweep, trials = self.sweeps[place], self.sweeps[place].trials
        shown = np.flatnonzero(sweep.is_shown)
        best, sign = sweep.best, 1.0 if trials.direction == "minimize" else -1.0
        rows = []
        for row in shown[np.argsort(-trials.cost[shown], kind="stable")]:
            value = float(trials.objective[row])
            kind = INFEASIBLE if not trials.is_feasible[row] else BEST if row == best else TRIAL
            if kind == TRIAL and sign * value > sign * self.scale.limit:
                kind = OFF_SCALE
            rows.append(
                {
                    self.number: int(trials.number[row]),
                    "sweep": self.labels[place],
                    "place": place,
                    "x": float(sweep.x[row]),
                    "x_text": f"{sweep.value[row]:.4g}",
                    "objective": finite(value),
                    "objective_text": f"{value:.5g}" if math.isfinite(value) else "none",
                    "status": str(trials.status[row]),
                    "reason": label(trials.reason[row], 200),
                    "kind": kind,
                    "look": self._names()[kind] if self.is_single else self.labels[place],
                }
            )
        return rows

    def _line(self, place: int) -> list[dict[str, Any]]:
        """Return the best trial of each place of a sweep on the axis, from left to right."""
        # The best rows come last.
        best = {row["x"]: row for row in self.rows if row["place"] == place and row["objective"] is not None}
        look = self._names()[TRIAL] if self.is_single else self.labels[place]
        return [{"x": x, "objective": best[x]["objective"], "place": place, "look": look} for x in sorted(best)]

    def _names(self) -> dict[str, str]:
        """Return what the legend calls each kind of mark, in its order."""
        return {TRIAL: TRIAL, BEST: self.best_name, OFF_SCALE: OFF_SCALE, INFEASIBLE: INFEASIBLE}

    def _look(self, index: int) -> dict[str, Any]:
        names = self._names()
        up = "triangle-up" if self.scale.direction == "minimize" else "triangle-down"
        # The kinds of a single sweep have colours of their own; of several the sweeps have them.
        kinds = {
            TRIAL: (BLUE, "circle"),
            BEST: (GREEN if self.is_single else GREY, STAR),
            OFF_SCALE: (BLUE if self.is_single else GREY, up),
            INFEASIBLE: (RED if self.is_single else GREY, CROSS),
        }
        looks = {names[kind]: look for kind, look in kinds.items() if kind in self.kinds}
        if not self.is_single:
            looks.pop(names[TRIAL], None)
            looks = dict(zip(self.labels, zip(TRIAL_COLOURS, _SHAPES, strict=False), strict=False)) | looks
        columns = 3 if max(map(len, looks), default=0) <= _WIDE else 2
        return {
            "field": "look",
            "type": "nominal",
            "scale": {"domain": list(looks), "range": [look[index] for look in looks.values()]},
            "legend": {"title": None, "symbolSize": 90, "symbolOpacity": 1, "columns": columns} if looks else None,
        }

    def _strip_y(self, place: int) -> dict[str, Any]:
        """Return the y of a sweep's row in the strip, so that crosses of one place do not hide each other."""
        height = (place + 1) * (STRIP_HEIGHT - 4) / (len(self.sweeps) + 1)
        if self.scale.direction == "minimize":
            return {"value": height}
        return {"value": {"expr": f"height - {height}"}}

    def _tooltip(self) -> list[dict[str, Any]]:
        has_reason = any(row["reason"] for row in self.rows)
        return [
            *([] if self.is_single else [{"field": "sweep", "title": "sweep", "type": "nominal"}]),
            {"field": self.number, "title": "trial", "type": "quantitative", "format": "d"},
            {"field": "x_text", "title": label(self.x_name), "type": "nominal"},
            {"field": "objective_text", "title": label(self.sweeps[0].trials.objective_name), "type": "nominal"},
            {"field": "status", "title": "status", "type": "nominal"},
            *([{"field": "reason", "title": "reason", "type": "nominal"}] if has_reason else []),
        ]


def join(sweeps: Sequence[Sweep]) -> Trials:
    """Return the trials that are shown as one table, without hyperparameters."""
    tables = [sweep.trials.select(sweep.is_shown) for sweep in sweeps]
    return Trials.from_columns(
        tables[0].name,
        [],
        {},
        np.concatenate([table.objective for table in tables]),
        direction=tables[0].direction,
        status=[status for table in tables for status in table.status],
        objective_name=tables[0].objective_name,
    )


def _is(kind: str) -> dict[str, Any]:
    return {"filter": f"datum.kind === '{kind}'"}
