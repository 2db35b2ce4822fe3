from __future__ import annotations

import html
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import altair
import jsonschema
import numpy as np
import pytest
import vl_convert
from browser_pages import start_browser
from example_trials import two_optimizers
from hypothesis import given, settings
from hypothesis import strategies as st
from preset_rows import FIELDS, STEP_FIELDS, computed, computed_in, fill, render, rows_of, strings_of
from wandb_server import LoopbackServer

from playbook_plugins import charts
from playbook_plugins.analysis import (
    Curve,
    Parameter,
    Status,
    Trials,
    check_best_steps,
    isolate,
    tuning_curve,
)
from playbook_plugins.charts.palette import BEST, OFF_SCALE
from playbook_plugins.charts.scales import objective_scale
from playbook_plugins.charts.table import trial_rows
from playbook_plugins.wandb.presets import PRESETS, Preset, publish_presets
from playbook_plugins.wandb.retrying import WandbUnavailableError

_SCHEMA = Path(altair.__file__).parent / "vegalite" / "v5" / "schema" / "vega-lite-schema.json"
_VALIDATOR = jsonschema.Draft7Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))
# The oldest that vl-convert has, nearest to the front end's, and the one of the project's charts.
_VERSIONS = ("5.8", "5.21")
_AWKWARD = (
    "adam.learning_rate",
    "lr/peak",
    "model's width",
    "a [0] b",
    "größe",
    "`x` $y",
    "x_given",
    "y_given",
    "rank",
    "cost",
    "y",
    "place",
)
_GROUPS = {
    "stars": ["group", "best", "trial_given", "n_trials", "n_infeasible"],
    "fair": ["group", "fair", "m"],
}
_LIVE_BY_X = [stem for stem, preset in PRESETS.items() if "x" in preset.fields]


def _study(
    values: Any,
    objective: Any,
    *,
    log: bool = False,
    low: float = 1.0,
    high: float = 100.0,
    direction: str = "minimize",
    kind: str = "float",
    choices: tuple[Any, ...] = (),
    **more: Any,
) -> Trials:
    """A study of the hyperparameter `x`; `other` sets each trial at a point of its own."""
    n = len(objective)
    x = (
        Parameter(name="x", kind="categorical", choices=choices)
        if choices
        else Parameter(name="x", kind=kind, low=low, high=high, log=log)  # type: ignore[arg-type]
    )
    other = Parameter(name="other", kind="float", low=0.0, high=1.0)
    return Trials.from_columns(
        "study",
        (x, other),
        {"x": values, "other": (np.arange(n) + 0.5) / max(n, 1)},
        objective,
        direction=direction,  # type: ignore[arg-type]
        **more,
    )


@st.composite
def _studies(draw: st.DrawFn, *, categories: bool = False) -> Trials:
    n = draw(st.integers(1, 300))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    direction = draw(st.sampled_from(["minimize", "maximize"]))
    log = draw(st.booleans())
    low, high = draw(st.sampled_from([(1.0, 100.0), (1e-4, 0.3)] + ([] if log else [(-3.0, 2.0), (0.0, 1e6)])))
    # A power gathers the trials at one end, so that buckets stay empty.
    unit = generator.random(n) ** draw(st.sampled_from([1.0, 4.0, 0.2]))
    for end, place in ((draw(st.sampled_from([0.0, 0.1])), 0.0), (draw(st.sampled_from([0.0, 0.1])), 1.0)):
        unit[generator.random(n) < end] = place
    unit = np.where(generator.random(n) < draw(st.sampled_from([0.0, 0.1])), 2.4 * unit - 0.7, unit)
    x = low * (high / low) ** unit if log else low + unit * (high - low)
    objective = generator.standard_normal(n) * 10.0 ** draw(st.integers(-3, 4))
    if draw(st.booleans()):
        objective = np.round(objective, 0)
    if draw(st.booleans()):
        objective = 10.0 ** (objective / np.abs(objective).max(initial=1e-9))
    weights = draw(
        st.sampled_from([(1, 0, 0, 0, 0), (0.7, 0.3, 0, 0, 0), (0.3, 0.6, 0.1, 0, 0), (0, 1, 0, 0, 0), (0.2,) * 5])
    )
    states = [Status.COMPLETE, Status.INFEASIBLE, Status.PRUNED, Status.FAILED, Status.RUNNING]
    status = [states[place] for place in generator.choice(5, n, p=weights)]
    for row, state in enumerate(status):
        if state in (Status.FAILED, Status.RUNNING):
            objective[row] = np.nan
    if categories:
        choices = draw(st.sampled_from([("adam", "sgd", "lion"), (1, 2, 10), (True, False), ("größe's", "a.b")]))
        return _study(
            [choices[place] for place in generator.integers(0, len(choices), n)],
            objective,
            choices=choices,
            direction=direction,
            status=status,
        )
    return _study(x, objective, log=log, low=low, high=high, direction=direction, status=status)


def _filled(trials: Trials, stem: str, parameter: str = "x", **strings: str) -> dict[str, Any]:
    fields = {name: ({"x": parameter} | FIELDS | STEP_FIELDS)[name] for name in PRESETS[stem].fields}
    return fill(PRESETS[stem], fields, strings_of(trials, parameter) | strings, rows=rows_of(trials))


class TestIsolation:
    @given(_studies())
    @settings(max_examples=30, deadline=None)
    def test_buckets_are_those_of_the_analysis(self, trials: Trials) -> None:
        spec = _filled(trials, "isolation")
        groups = isolate(trials, "x").groups
        names = ["group", "n_trials", "n_infeasible", "bucket_low", "bucket_high"]
        rows = computed_in(spec, {"trials counted": names, **_GROUPS})
        counted = sorted(rows["trials counted"], key=lambda row: row["group"])
        if not trials.is_judged.any():
            assert counted == []
            return
        assert [row["group"] for row in counted] == list(range(len(groups)))
        for row, group in zip(counted, groups, strict=True):
            assert (row["n_trials"], row["n_infeasible"]) == (group.n_trials, group.n_infeasible)
            assert row["bucket_low"] == pytest.approx(group.low, rel=1e-12, abs=1e-12)
            assert row["bucket_high"] == pytest.approx(group.high, rel=1e-12, abs=1e-12)
        self._check_stars(rows["stars"], trials, dict(enumerate(groups)))
        self._check_bars(rows["fair"], dict(enumerate(groups)))

    @given(_studies(categories=True))
    @settings(max_examples=30, deadline=None)
    def test_categories_are_those_of_the_analysis(self, trials: Trials) -> None:
        spec = _filled(trials, "isolation_categories")
        # A preset knows the categories that a trial has.
        groups = {_shown(group.value): group for group in isolate(trials, "x").groups if group.n_trials}
        rows = computed_in(spec, {"trials counted": ["group", "n_trials", "n_infeasible"], **_GROUPS})
        counted = rows["trials counted"]
        assert {row["group"]: (row["n_trials"], row["n_infeasible"]) for row in counted} == {
            name: (group.n_trials, group.n_infeasible) for name, group in groups.items()
        }
        self._check_stars(rows["stars"], trials, groups)
        self._check_bars(rows["fair"], groups)

    def _check_stars(self, stars: list[dict[str, Any]], trials: Trials, groups: dict[Any, Any]) -> None:
        assert {
            row["group"]: (row["best"], row["trial_given"], row["n_trials"], row["n_infeasible"]) for row in stars
        } == {
            name: (group.best, trials.number[group.best_row], group.n_trials, group.n_infeasible)
            for name, group in groups.items()
            if group.best_row is not None
        }

    def _check_bars(self, bars: list[dict[str, Any]], groups: dict[Any, Any]) -> None:
        sizes = {group.n_trials for group in groups.values() if group.n_trials}
        expected = {
            name: group.median_best
            for name, group in groups.items()
            if len(sizes) > 1 and math.isfinite(group.median_best)
        }
        assert {row["group"]: row["fair"] for row in bars} == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert {row["m"] for row in bars} <= {min(sizes, default=0)}

    def test_hand_worked(self) -> None:
        # Buckets [0, 5) and [5, 10] of 3 and 1 trials: m = 1, and the median of 1 of 3 is the second.
        trials = _study([0.0, 4.9, 1.0, 10.0], [3.0, 1.0, 2.0, 7.0], low=0.0, high=10.0)
        spec = _filled(trials, "isolation")
        assert computed(spec, "fair", ["group", "fair"]) == [{"group": 0, "fair": 2}, {"group": 1, "fair": 7}]
        stars = computed(spec, "stars", ["x", "best_cost_shown"])
        assert [(row["x"], row["best_cost_shown"]) for row in stars] == [(4.9, 1), (10, 7)]

    def test_as_many_buckets_as_asked(self) -> None:
        trials = two_optimizers(40)
        for given_number, n_buckets in (("4", 4), ("4.9", 4), ("1", 1), ("0", 2), ("many", 2), ("1000", 40)):
            spec = _filled(trials, "isolation", "adam.learning_rate", n_buckets=given_number)
            assert len(computed(spec, "trials counted", ["group"])) == n_buckets

    def test_without_bounds_those_of_the_trials_stand_in(self) -> None:
        trials = _study([2.0, 8.0, 4.0], [3.0, 1.0, 2.0], low=0.0, high=10.0)
        spec = _filled(trials, "isolation", low="", high="")
        counted = computed(spec, "trials counted", ["bucket_low", "bucket_high", "n_trials"])
        assert sorted(counted, key=lambda row: row["bucket_low"]) == [
            {"bucket_low": 2, "bucket_high": 5, "n_trials": 2},
            {"bucket_low": 5, "bucket_high": 8, "n_trials": 1},
        ]
        assert computed(spec, "bounds", ["at"]) == []

    def test_equally_many_trials_need_no_bars(self) -> None:
        trials = _study([1.0, 2.0, 8.0, 9.0], [3.0, 1.0, 2.0, 4.0], low=0.0, high=10.0)
        assert computed(_filled(trials, "isolation"), "fair", ["fair"]) == []


class TestAxis:
    @given(_studies(), st.booleans())
    @settings(max_examples=30, deadline=None)
    def test_marks_are_those_of_the_chart(self, trials: Trials, as_categories: bool) -> None:
        spec = _filled(trials, "axis_categories" if as_categories else "axis")
        scale = objective_scale(trials)
        names = ["trial_given", "mark", "rank", "y", "y_shown", "beyond"]
        rows = computed_in(spec, {"trials": names, "without objective": names})
        drawn = {row["trial_given"]: row for row in rows["trials"] + rows["without objective"]}
        assert len(drawn) == len(rows["trials"]) + len(rows["without objective"])
        expected = {row["trial"]: row for row in trial_rows(trials)}
        assert drawn.keys() == expected.keys()
        for number, row in drawn.items():
            rank, objective = expected[number]["rank"], expected[number]["objective"]
            is_beyond = rank is not None and _is_worse(trials, objective, scale.limit)
            assert row["mark"] == (OFF_SCALE if is_beyond else expected[number]["kind"])
            assert (row["rank"], row["y"]) == (rank, objective)
            if objective is None or trials.status[int(number)] == Status.INFEASIBLE:
                assert row["y_shown"] is None
            else:
                # A pruned trial has no place in the ranking, but one on the axis.
                is_cut = not scale.is_empty and _is_worse(trials, objective, scale.limit)
                if scale.log and objective <= 0:
                    objective = min(value for value in trials.objective if value > 0)
                assert row["y_shown"] == pytest.approx(scale.limit if is_cut else objective, rel=1e-9, abs=1e-12)

    def test_a_status_that_nobody_knows_is_read_from_the_objective(self) -> None:
        rows = [
            {"trial": 1, "y": 1.0, "x": 1.0},
            {"trial": 2, "y": float("inf"), "x": 1.0, "status": ""},
            {"trial": 3, "y": float("nan"), "x": 1.0},
            {"trial": 4, "x": 1.0, "status": None},
            {"trial": 5, "y": float("nan"), "x": 1.0, "status": "complete"},
            {"trial": 6, "y": 2.0, "x": "nowhere", "status": "complete"},
            {"trial": 7, "y": 2.0, "x": 3.0, "status": "running"},
        ]
        fields = {name: name for name in PRESETS["axis"].fields}
        spec = fill(PRESETS["axis"], fields, rows=rows)
        assert computed(spec, "trials", ["trial_given", "mark"]) == [{"trial_given": 1, "mark": BEST}]
        strip = {
            row["trial_given"]: row["mark"] for row in computed(spec, "without objective", ["trial_given", "mark"])
        }
        assert strip == {2: "infeasible", 3: "infeasible", 4: "infeasible", 5: "failed"}

    def test_numbers_on_a_logarithmic_axis_that_have_no_place_there(self, capfd: pytest.CaptureFixture[str]) -> None:
        trials = _study([0.0, 1.0, 10.0, 100.0], [1.0, 0.0, -3.0, 1e-3], log=True)
        spec = _filled(trials, "axis", y_scale="log")
        shown = {row["trial_given"]: row["y_shown"] for row in computed(spec, "trials", ["trial_given", "y_shown"])}
        assert shown == pytest.approx({1: 1e-3, 2: 1e-3, 3: 1e-3})
        _draw(spec, capfd)

    @pytest.mark.parametrize(("worst", "limit"), [(2.4, 2.4), (2.6, 2.0), (50.0, 2.0)])
    def test_the_axis_ends_twice_as_far_as_the_third_quartile(self, worst: float, limit: float) -> None:
        trials = _study([1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, worst, 0.5, 1.0], low=0.0, high=10.0)
        assert objective_scale(trials).limit == limit
        shown = computed(_filled(trials, "axis"), "trials", ["trial_given", "y_shown"])
        assert {row["trial_given"]: row["y_shown"] for row in shown} == {0: 0, 1: 1, 2: limit, 3: 0.5, 4: 1}

    def test_rules_are_the_bounds(self) -> None:
        trials = two_optimizers(30)
        spec = _filled(trials, "axis", "adam.learning_rate")
        assert [row["at"] for row in computed(spec, "bounds", ["at"])] == [1e-4, 1.0]

    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_the_strip_lies_beyond_the_worst_edge(self, direction: str) -> None:
        trials = _study([1.0, 2.0, 3.0], [1.0, 2.0, np.nan], low=0.0, high=10.0, direction=direction)
        svg = render(_filled(trials, "axis"))
        cross, *_ = _places(svg, "infeasible")
        others = [y for _, y in _places(svg, "complete")]
        assert len(others) == 2
        assert all(cross[1] < y if direction == "minimize" else cross[1] > y for y in others)


class TestInfeasibleShare:
    @given(_studies())
    @settings(max_examples=30, deadline=None)
    def test_shares_and_intervals_are_those_of_the_chart(self, trials: Trials) -> None:
        spec = _filled(trials, "infeasible_share")
        names = ["bucket_low", "bucket_high", "n_trials", "n_infeasible", "share", "lower", "upper"]
        shown = sorted(computed(spec, "shares", names), key=lambda row: row["bucket_low"])
        expected = charts.infeasible_share_chart(trials, "x").spec["data"]["values"]
        expected = [row for row in expected if row["n_trials"]]
        assert len(shown) == len(expected)
        for row, own in zip(shown, expected, strict=True):
            own |= {"bucket_low": own["low"], "bucket_high": own["high"]}
            assert row == pytest.approx({name: own[name] for name in names}, rel=1e-9, abs=1e-12)

    @given(_studies(categories=True))
    @settings(max_examples=30, deadline=None)
    def test_categories_too(self, trials: Trials) -> None:
        spec = _filled(trials, "infeasible_share_categories")
        judged = trials.is_judged
        names = ["group", "n_trials", "n_infeasible", "share"]
        shown = {row.pop("group"): row for row in computed(spec, "shares", names)}
        expected = {}
        for rank, choice in enumerate(trials.parameter("x").choices):
            there = judged & (trials.ranks("x") == rank)
            n, bad = int(there.sum()), int((there & trials.is_infeasible).sum())
            if n:
                expected[_shown(choice)] = {"n_trials": n, "n_infeasible": bad, "share": bad / n}
        assert shown == expected
        overall = computed(spec, "overall", ["n_trials", "n_infeasible"])
        assert overall == (
            [{"n_trials": judged.sum(), "n_infeasible": trials.is_infeasible.sum()}] if judged.any() else []
        )


class TestBestStep:
    @given(_studies(), st.integers(1, 400))
    @settings(max_examples=30, deadline=None)
    def test_zones_hold_the_shares_of_the_check(self, trials: Trials, max_steps: int) -> None:
        generator = np.random.default_rng(max_steps)
        best = generator.integers(-1, max_steps + 1, len(trials))
        trials = replace(trials, best_step=best, max_steps=np.full(len(trials), max_steps))
        spec = _filled(trials, "best_step")
        counts = ["n_better", "n_early", "n_late"]
        rows = computed_in(
            spec, {"early share": counts, "late share": counts, "bars": ["bin_from", "bin_to", "n_trials"]}
        )
        counted, bars = rows["early share"], rows["bars"]
        assert counted == rows["late share"]
        numbers = check_best_steps(trials)[0].numbers
        if not numbers["n_points"]:
            assert counted == bars == []
            return
        assert sum(row["n_trials"] for row in bars) == counted[0]["n_better"]
        assert sum(row["n_trials"] for row in bars if row["bin_to"] <= 0.1) == counted[0]["n_early"]
        assert sum(row["n_trials"] for row in bars if row["bin_from"] >= 0.75) == counted[0]["n_late"]
        if "share_late" in numbers:
            assert counted[0]["n_better"] == numbers["n_better_half"]
            assert counted[0]["n_early"] / counted[0]["n_better"] == numbers["share_early"]
            assert counted[0]["n_late"] / counted[0]["n_better"] == numbers["share_late"]

    def test_both_zones_say_their_own_share(self) -> None:
        trials = _study([1.0] * 8, np.arange(8.0), best_step=[10, 100, 100, 100] * 2, max_steps=[100] * 8)
        spec = _filled(trials, "best_step")
        assert computed(spec, "early share", ["words"]) == [{"words": "first 10%: 25%"}]
        assert computed(spec, "late share", ["words"]) == [{"words": "last 25%: 75%"}]


class TestTables:
    @given(_studies())
    @settings(max_examples=30, deadline=None)
    def test_budget_is_the_tuning_curve(self, trials: Trials) -> None:
        curve = tuning_curve(trials)
        rows = [
            {"n_trials": int(m), "median": _json(middle), "lower": _json(lower), "upper": _json(upper)}
            for m, middle, lower, upper in zip(
                curve.m, curve.median, curve.better_quartile, curve.worse_quartile, strict=True
            )
        ]
        fields = {name: name for name in PRESETS["budget"].fields}
        spec = fill(PRESETS["budget"], fields, {"direction": trials.direction}, rows=rows)
        shown = computed(spec, "medians", ["n_trials", "median", "limit"])
        sign = 1 if trials.direction == "minimize" else -1
        limit = shown[0]["limit"] if shown else 0
        assert {row["n_trials"]: row["median"] for row in shown} == {
            row["n_trials"]: row["median"]
            for row in rows
            if row["median"] is not None and sign * row["median"] <= limit
        }
        assert {row["n_trials"] for row in shown} >= {
            row["n_trials"] for row in rows if row["n_trials"] >= 2 and row["median"] is not None
        }
        star = [] if not rows or rows[-1]["lower"] is None else [{"n_trials": len(rows), "better": rows[-1]["lower"]}]
        if curve.n_points <= 200:
            assert computed(spec, "best", ["n_trials", "better"]) == star

    def test_budget_reads_quartiles_in_either_order(self) -> None:
        rows = [{"n_trials": n, "median": 5 - n, "lower": 6 - n, "upper": 4 - n} for n in (1, 2, 4)]
        fields = {name: name for name in PRESETS["budget"].fields}
        for direction, better in (("minimize", 0), ("maximize", 2)):
            spec = fill(PRESETS["budget"], fields, {"direction": direction}, rows=rows)
            assert computed(spec, "best", ["better"]) == [{"better": better}]

    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_curves_star_the_best_step(self, direction: str) -> None:
        sign = 1 if direction == "minimize" else -1
        curves = [Curve.from_columns([0, 5, 10], [sign * 9, sign * 1, sign * 2], [sign * 8, math.nan, sign * 1])] * 2
        rows = [
            {
                "label": f"trial {rank}",
                "rank": rank,
                "step": int(step),
                "validation": _json(valid),
                "train": _json(train),
            }
            for rank, curve in enumerate(curves, 1)
            for step, valid, train in zip(curve.step, curve.validation, curve.train, strict=True)
        ]
        fields = {name: name for name in PRESETS["curves"].fields}
        spec = fill(PRESETS["curves"], fields, {"direction": direction}, rows=rows)
        stars = computed(spec, "best", ["label_given", "step", "value"])
        assert stars == [{"label_given": f"trial {rank}", "step": 5, "value": sign} for rank in (1, 2)]
        lines = computed(spec, "lines", ["label_given", "split", "step", "value", "width"])
        # The first step's values lie beyond those after the first fifth.
        best = [row for row in lines if row["label_given"] == "trial 1"]
        assert [(row["split"], row["step"], row["value"]) for row in best] == [
            ("validation", 5, sign),
            ("validation", 10, sign * 2),
            ("training", 10, sign),
        ]
        assert {row["width"] for row in best} == {2.6}
        assert {row["width"] for row in lines if row["label_given"] == "trial 2"} == {1.5}

    def test_gradient_norms_of_the_first_trial(self) -> None:
        rows = [
            {"label": "trial 3 (best)", "step": 1, "norm": 1.0, "norm_max": 9.0, "threshold": 2.0},
            {"label": "trial 3 (best)", "step": 2, "norm": 3.0, "norm_max": None, "threshold": 2.0},
            {"label": "trial 3 (best)", "step": 3, "norm": float("nan"), "norm_max": 0.0, "threshold": None},
            {"label": "trial 4", "step": 1, "norm": 5.0, "norm_max": 6.0, "threshold": 7.0},
        ]
        fields = {name: name for name in PRESETS["gradient_norms"].fields}
        spec = fill(PRESETS["gradient_norms"], fields, rows=rows)
        norms = {(row["step"], row["mark"], row["value"]) for row in computed(spec, "norms", ["step", "mark", "value"])}
        assert norms == {(1, "median", 1), (1, "largest", 9), (2, "above threshold", 3)}
        assert computed(spec, "threshold", ["step", "value"]) == [{"step": 1, "value": 2}, {"step": 2, "value": 2}]


class TestEverySpec:
    @pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
    def test_is_what_the_front_end_takes(self, preset: Preset) -> None:
        assert preset.spec["data"] == {"name": "wandb"}
        assert preset.spec["$schema"] == "https://vega.github.io/schema/vega-lite/v5.json"
        assert "layer" in preset.spec
        assert not {"hconcat", "vconcat", "concat", "facet", "repeat", "width", "height"} & preset.spec.keys()
        assert _null_keys(preset.spec) <= {"scale"}
        names = [layer["name"] for layer in preset.spec["layer"] if "name" in layer]
        assert len(set(names)) == len(names)
        for reference in re.findall(r"\$\{.*?\}", preset.text):
            assert re.fullmatch(r"\$\{field:[a-z_]+\}|\$\{string:[a-z_]+:[^:${}]+\}", reference)
        assert preset.help.endswith(".")
        assert preset.display_name.startswith("Playbook: ")

    @pytest.mark.parametrize("stem", PRESETS)
    @pytest.mark.parametrize("n", [0, 1, 5, 500])
    @pytest.mark.parametrize("version", _VERSIONS)
    def test_is_drawn_without_a_complaint(
        self, stem: str, n: int, version: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        spec = _with_example_rows(stem, n)
        assert [error.message for error in _VALIDATOR.iter_errors(spec)] == []
        _draw(spec, capfd, version=version)

    def test_a_complaint_would_be_noticed(self, capfd: pytest.CaptureFixture[str]) -> None:
        spec = _with_example_rows("axis", 5)
        spec["transform"].append({"window": [{"op": "first_value", "as": "y"}], "frame": {}})
        with pytest.raises((AssertionError, ValueError)):
            _draw(spec, capfd)

    @pytest.mark.parametrize("name", _AWKWARD)
    @pytest.mark.parametrize("stem", _LIVE_BY_X)
    def test_draws_any_name_of_a_hyperparameter(self, stem: str, name: str, capfd: pytest.CaptureFixture[str]) -> None:
        plain, awkward = (
            [{column: value} | {"playbook_objective": value, "playbook_status": status, "trial": number}
             for number, (value, status) in enumerate([(1.5, "complete"), (2.5, "complete"), (3.5, "infeasible")])]
            for column in ("plain", name)
        )  # fmt: skip
        fields = {"x": name, **FIELDS}
        svg = _draw(fill(PRESETS[stem], fields, rows=awkward), capfd)
        assert svg == render(fill(PRESETS[stem], fields | {"x": "plain"}, rows=plain))

    @pytest.mark.parametrize("stem", PRESETS)
    def test_draws_any_text_of_a_panel(self, stem: str, capfd: pytest.CaptureFixture[str]) -> None:
        text = """model's "size" \\ <b> }{ $ ü"""
        plain, awkward = (
            _draw(_with_example_rows(stem, 9, **{name: words for name in ("title", "x_title", "y_title")}), capfd)
            for words in ("unique-words", text)
        )
        assert text in html.unescape(awkward)
        assert plain.count("<") == awkward.count("<")

    def test_only_the_marks_that_occur_are_in_the_legend(self) -> None:
        trials = _study([1.0, 2.0, 3.0], [1.0, 2.0, np.nan])
        assert _legend(render(_filled(trials, "axis"))) == ["best 3", "feasible", "infeasible"]
        pruned = replace(trials, status=np.array([Status.COMPLETE, Status.PRUNED, Status.PRUNED], dtype=object))
        assert _legend(render(_filled(pruned, "axis"))) == ["best 3", "feasible", "pruned"]


class TestPreset:
    def test_its_name_is_a_hash_of_its_content(self) -> None:
        preset = PRESETS["axis"]
        again = replace(preset, spec=json.loads(json.dumps(preset.spec)))
        other = replace(preset, spec={**preset.spec, "title": "another"})
        assert re.fullmatch(r"playbook-axis-[0-9a-f]{10}", preset.name)
        assert again.name == preset.name != other.name
        shuffled = replace(preset, spec=MappingProxyType(dict(reversed(preset.spec.items()))))
        assert json.loads(preset.text) == dict(preset.spec)
        assert replace(preset, spec=dict(shuffled.spec)).name == preset.name

    def test_what_a_panel_has_to_name(self) -> None:
        assert {stem: preset.fields for stem, preset in PRESETS.items()} == {
            "axis": ("status", "trial", "x", "y"),
            "axis_categories": ("status", "trial", "x", "y"),
            "isolation": ("status", "trial", "x", "y"),
            "isolation_categories": ("status", "trial", "x", "y"),
            "best_step": ("best_step", "max_steps", "status", "y"),
            "infeasible_share": ("status", "x", "y"),
            "infeasible_share_categories": ("status", "x", "y"),
            "curves": ("label", "rank", "step", "train", "validation"),
            "gradient_norms": ("label", "norm", "norm_max", "step", "threshold"),
            "budget": ("lower", "median", "n_trials", "upper"),
        }
        assert PRESETS["isolation"].strings == {
            "direction": "minimize",
            "high": "auto",
            "low": "auto",
            "n_buckets": "auto",
            "scale": "linear",
            "title": "Isolation plot",
            "x_title": "hyperparameter",
            "y_scale": "linear",
            "y_title": "objective",
        }
        assert [stem for stem, preset in PRESETS.items() if not preset.is_live] == [
            "curves",
            "gradient_norms",
            "budget",
        ]


class TestPublishPresets:
    @pytest.mark.parametrize("is_updatable", [False, True])
    def test_all_arrive_and_twice_makes_no_duplicates(self, wandb_server: LoopbackServer, is_updatable: bool) -> None:
        # Whether W&B refuses a name that is taken, or takes the same chart again.
        wandb_server.backend.charts_are_updatable = is_updatable
        published = publish_presets("some-team")
        assert published == {stem: f"some-team/{preset.name}" for stem, preset in PRESETS.items()}
        assert publish_presets("some-team") == published
        assert {f"{entity}/{name}" for entity, name in wandb_server.charts} == set(published.values())
        for preset in PRESETS.values():
            chart = wandb_server.charts["some-team", preset.name]
            assert json.dumps(chart.spec) == json.dumps(json.loads(preset.text))
            assert (chart.display_name, chart.access) == (preset.display_name, "PRIVATE")
        sent = [request for request in wandb_server.requests if request.operation == "CreateCustomChart"]
        assert len(sent) == 2 * len(PRESETS)
        assert {request.variables["spec"] for request in sent} == {preset.text for preset in PRESETS.values()}  # type: ignore[index]

    def test_some_of_them_for_everybody(self, wandb_server: LoopbackServer) -> None:
        preset = PRESETS["axis"]
        assert publish_presets("me", access="public", presets=[preset]) == {"axis": f"me/{preset.name}"}
        assert [chart.access for chart in wandb_server.charts.values()] == ["PUBLIC"]

    def test_another_error_is_not_swallowed(self, wandb_server: LoopbackServer) -> None:
        wandb_server.fail(403, times=None, operation="CreateCustomChart")
        with pytest.raises(Exception, match="a failure that the test asked for") as caught:
            publish_presets("me", presets=[PRESETS["axis"]])
        assert not isinstance(caught.value, WandbUnavailableError)
        assert wandb_server.charts == {}

    @pytest.mark.slow
    @pytest.mark.parametrize("operation", ["Viewer", "CreateCustomChart"])
    def test_a_server_that_is_down_is_one_clear_error(
        self, wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch, operation: str
    ) -> None:
        for name, value in (("MAX", "1"), ("WAIT_MIN_SECONDS", "1"), ("WAIT_MAX_SECONDS", "1")):
            monkeypatch.setenv(f"WANDB_X_GRAPHQL_RETRY_{name}", value)
        wandb_server.fail(500, times=None, operation=operation)
        what = "log in to W&B" if operation == "Viewer" else f"publish the chart me/{PRESETS['axis'].name}"
        with pytest.raises(WandbUnavailableError, match=f"^could not {re.escape(what)}: W&B did not answer. It was"):
            publish_presets("me", presets=[PRESETS["axis"]])
        assert wandb_server.charts == {}

    def test_an_empty_entity(self) -> None:
        message = (
            "`entity` is ' ': presets belong to a user or a team of W&B. Pass its name, the first part of the address "
            "of a project."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            publish_presets(" ")

    def test_another_access(self) -> None:
        message = (
            "`access` is 'PRIVATE': it must be one of ['private', 'public']. Pass 'private' unless everybody shall see "
            "the charts."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            publish_presets("me", access="PRIVATE")  # type: ignore[arg-type]


_PAGE = """<!DOCTYPE html><meta charset="utf-8"><div id="early"></div><div id="late"></div><script>%s</script><script>
window.draw = async (spec, rows) => {
  const show = async (place, first) => {
    const options = {mode: "vega-lite", actions: false, renderer: "svg"};
    return (await embed(place, {...spec, datasets: {wandb: first}}, options)).view;
  };
  const [early, late] = [await show("#early", rows), await show("#late", [])];
  for (const part of [rows.slice(0, 3), rows]) await late.data("wandb", part).resize().runAsync();
  // Each round of the layout takes room from the last.
  for (let round = 0; round < 5; round++) await Promise.all([early, late].map((one) => one.resize().runAsync()));
  return Promise.all([early.toSVG(), late.toSVG()]);
};</script>"""


@pytest.mark.slow
@pytest.mark.browser
def test_rows_that_come_later_are_drawn_as_if_they_had_been_there(tmp_path: Path) -> None:
    bundle = vl_convert.javascript_bundle("window.embed = vegaEmbed;", vl_version="5.21")
    page_file = tmp_path / "page.html"
    page_file.write_text(_PAGE % bundle.replace("</script", "<\\/script"), encoding="utf-8")
    for browser in start_browser():
        page = browser.new_page()
        page.goto(page_file.as_uri())
        for stem in PRESETS:
            spec = _with_example_rows(stem, 60)
            rows = spec.pop("datasets")["wandb"]
            early, late = page.evaluate("([spec, rows]) => draw(spec, rows)", [spec, rows])
            # A tick that is new stands last in the file, wherever it is drawn.
            assert sorted(_elements(late)) == sorted(_elements(early))
            assert len(_elements(early)) > 50


def _draw(spec: dict[str, Any], capfd: pytest.CaptureFixture[str], *, version: str = "5.21") -> str:
    """Return the SVG, after Vega-Lite said nothing but that a logarithmic scale has no zero."""
    capfd.readouterr()
    svg = render(spec, version=version)
    said = capfd.readouterr()
    lines = (said.out + said.err).replace("WARN ", "\n").splitlines()
    left = {re.sub("^[xy]-", "", line.strip()) for line in lines} - {""}
    assert left <= {'scale\'s "zero" is dropped as it does not work with log scale.'}
    if not spec["datasets"]["wandb"]:
        # Without rows an axis has no ends.
        svg = re.sub(r"with values from \S+ to \S+", "", svg)
    assert "NaN" not in svg
    assert "Infinity" not in svg
    return svg


def _with_example_rows(stem: str, n: int, **strings: str) -> dict[str, Any]:
    trials = two_optimizers(max(n, 1), n_evaluations=10).select(np.arange(max(n, 1)) < n)
    if stem == "budget":
        curve = tuning_curve(trials)
        rows = [
            {"n_trials": int(m), "median": middle, "lower": lower, "upper": upper}
            for m, middle, lower, upper in zip(
                curve.m, curve.median, curve.better_quartile, curve.worse_quartile, strict=True
            )
        ]
    elif stem in ("curves", "gradient_norms"):
        rows = [
            {
                "label": f"trial {trials.number[row]}",
                "rank": rank,
                "step": int(step),
                "validation": value,
                "train": value / 2,
                "norm": 1 / (1 + step),
                "norm_max": 3 / (1 + step),
                "threshold": 0.5,
            }
            for rank, row in enumerate(trials.ranking()[:3], 1)
            if (curve_of := trials.curves[row]) is not None
            for step, value in zip(curve_of.step, curve_of.validation, strict=True)
        ]
    else:
        return _filled(trials, stem, "optimizer" if stem.endswith("categories") else "adam.learning_rate", **strings)
    fields = {name: name for name in PRESETS[stem].fields}
    return fill(PRESETS[stem], fields, {"y_scale": "log", **strings}, rows=rows)


def _is_worse(trials: Trials, objective: float, limit: float) -> bool:
    sign = 1 if trials.direction == "minimize" else -1
    # What stands at the limit may miss it by the last bits.
    return sign * objective > sign * limit + 1e-9 * abs(limit)


def _shown(choice: Any) -> Any:
    """What JavaScript prints of a category, read back."""
    return choice if isinstance(choice, bool | str) else float(choice)


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _null_keys(value: Any, key: str = "") -> set[str]:
    if value is None:
        return {key}
    items = (
        value.items() if isinstance(value, dict) else [(key, one) for one in value] if isinstance(value, list) else []
    )
    return set().union(*(_null_keys(one, str(name)) for name, one in items))


def _places(svg: str, status: str) -> list[tuple[float, float]]:
    found = re.findall(rf'aria-label="[^"]*status: {status}[^"]*"[^>]*translate\(([-\d.]+),([-\d.]+)\)', svg)
    return [(float(x), float(y)) for x, y in found]


def _legend(svg: str) -> list[str]:
    return [re.findall(r"<text[^>]*>([^<]+)</text>", part)[0] for part in svg.split("role-legend-label")[1:]]


def _elements(svg: str) -> list[str]:
    """The parts of a drawing, without the numbers of its definitions and the last digits of places."""
    text = re.sub(r"(clip|gradient_)\d+", r"\1", svg)
    return re.sub(r"-?\d+\.\d+(?:e-\d+)?", lambda found: f"{float(found[0]):.3f}", text).split("<")
