"""Does every chart of a W&B report read what was logged, and draw it?"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from example_trials import two_optimizers
from hypothesis import given, settings
from hypothesis import strategies as st
from preset_rows import computed, fill, render
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Curve, Parameter, Role, Status, Trials, isolate, review, tuning_curve
from playbook_plugins.charts.table import trial_rows
from playbook_plugins.report.wording import PLAYBOOK
from playbook_plugins.wandb.presets import PRESETS
from playbook_plugins.wandb.report_chapters import (
    BUDGET_KEY,
    CURVES_KEY,
    SHEET_KEY,
    TRIALS_KEY,
    Source,
    list_chapters,
)
from playbook_plugins.wandb.report_panels import (
    Condition,
    LinesPanel,
    Panel,
    PanelGroup,
    ParallelPanel,
    PresetPanel,
    ScatterPanel,
    chart_text,
    panel_keys,
)
from playbook_plugins.wandb.report_study import chart_study, given_names
from playbook_plugins.wandb.report_tables import (
    ReportTable,
    is_plain_key,
    label_choices,
    name_columns,
    tabulate_budget,
    tabulate_curves,
    tabulate_sheet,
    tabulate_trials,
)
from playbook_plugins.wandb.run_layout import enter_trial

_TABLES = {key: key for key in (TRIALS_KEY, CURVES_KEY, BUDGET_KEY)}
_REPORT_RUN = (Condition(section="run", name="name", value="the report's run"),)
AWKWARD_NAMES = (
    'a "quoted" rate',
    "${field:x}",
    "${string:title:x}",
    "back\\slash",
    "<b>bold</b>",
    "name",
    "trial",
    "playbook_rank",
    "dots.and/slashes",
    "größe 学習率",
    "control\x00\x07sign",
    "lone \ud800 surrogate",
    "x" * 300,
    "a [0] b's",
    " ",
)


def _mixed(n_trials: int = 24, *, seed: int = 0, **more: Any) -> Trials:
    """Build a study with each kind of hyperparameter, one without a range among them, and gradient norms."""
    generator = np.random.default_rng(seed)
    parameters = (
        Parameter(name="width", kind="int", low=16, high=1024, log=True),
        Parameter(name="depth", kind="int", low=2, high=5, role=Role.SCIENTIFIC),
        Parameter(name="lr", kind="float", low=1e-4, high=1.0, log=True),
        Parameter(name="dropout", kind="float", low=0.0, high=0.5),
        Parameter(name="fixed", kind="float", low=0.1, high=0.1),
        Parameter(name="batch", kind="categorical", choices=(1024, 256, 64)),
        Parameter(name="norm", kind="categorical", choices=(None, True, "layer", 1)),
    )
    values: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.is_numeric:
            places = [parameter.from_unit(place) for place in generator.random(n_trials)]
            values[parameter.name] = np.round(places) if parameter.kind == "int" else places
        else:
            values[parameter.name] = [parameter.choices[row % len(parameter.choices)] for row in range(n_trials)]
    loss = generator.random(n_trials) + 0.1
    steps = np.arange(0, 101, 10)
    curves = [
        Curve.from_columns(
            steps,
            one + np.exp(-steps / 20),
            gradient_norm=1 + 0 * steps,
            gradient_norm_max=3 + 0 * steps,
            clip_threshold=2 + 0 * steps,
        )
        for one in loss
    ]
    return Trials.from_columns(
        "mixed",
        parameters,
        values,
        loss,
        best_step=np.full(n_trials, 100),
        max_steps=np.full(n_trials, 100),
        curves=curves,
        **more,
    )


def _awkward(n_trials: int = 10) -> Trials:
    generator = np.random.default_rng(1)
    parameters = [
        Parameter(name=name, kind="categorical", choices=(f"{name}'s 1", '"${field:y}"'))
        if place % 3 == 0
        else Parameter(name=name, kind="float", low=1e-3, high=1.0, log=place % 3 == 1)
        for place, name in enumerate(AWKWARD_NAMES)
    ]
    return Trials.from_columns(
        "study ${field:x}",
        parameters,
        {
            one.name: [one.choices[row % 2] for row in range(n_trials)]
            if one.choices
            else generator.uniform(1e-3, 1, n_trials)
            for one in parameters
        },
        generator.random(n_trials),
        objective_name='loss "${string:title}"',
        best_step=np.full(n_trials, 5),
        max_steps=np.full(n_trials, 10),
        curves=[Curve.from_columns([0, 5, 10], [1.0, 0.5, 0.6]) for _ in range(n_trials)],
    )


def _infeasible() -> Trials:
    trials = two_optimizers(12)
    return Trials.from_columns(
        "all infeasible", trials.parameters, trials.values, np.full(12, np.nan), reason=["out of memory"] * 12
    )


def _without_curves() -> Trials:
    trials = two_optimizers(20)
    return Trials.from_columns("no curves", trials.parameters, trials.values, trials.objective)


def _running() -> Trials:
    return Trials.from_columns(
        "running",
        [Parameter(name="lr", kind="float", low=0.1, high=1.0)],
        {"lr": [0.5]},
        [np.nan],
        status=[Status.RUNNING],
    )


STUDIES = {
    "two optimizers": two_optimizers,
    "mixed": _mixed,
    "maximized": lambda: _mixed(direction="maximize"),
    "awkward": _awkward,
    "infeasible": _infeasible,
    "without curves": _without_curves,
    "one trial": lambda: two_optimizers(1),
    "running": _running,
}


@pytest.fixture(params=STUDIES, name="trials")
def _trials(request: pytest.FixtureRequest) -> Trials:
    return STUDIES[request.param]()


def trial_runs(trials: Trials) -> tuple[Condition, ...]:
    return (Condition(section="config", name="playbook_study_name", value=trials.name),)


def groups_of(trials: Trials, *, live: bool = False) -> list[PanelGroup]:
    """Return all groups of panels of a study's report."""
    source = Source(
        conditions=trial_runs(trials) if live else _REPORT_RUN, tables=_TABLES, is_live=live, report_run=_REPORT_RUN
    )
    study = chart_study(trials, review(trials), is_live=live)
    return [group for chapter in list_chapters(study, source) for group in chapter.groups]


def panels_of(trials: Trials, *, live: bool = False) -> list[Panel]:
    return [panel for group in groups_of(trials, live=live) for panel in group.panels]


def tables_of(trials: Trials) -> dict[str, ReportTable]:
    return {
        TRIALS_KEY: tabulate_trials(trials, name_columns(trials)),
        CURVES_KEY: tabulate_curves(trials),
        BUDGET_KEY: tabulate_budget(trials),
    }


def complaints(printed: str) -> list[str]:
    """Return what the renderer complained of, but for the setting of linear axes that logarithmic ones pass over."""
    return [line for line in printed.splitlines() if "WARN" in line and 'scale\'s "zero" is dropped' not in line]


def rows_of_table(table: ReportTable) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def _meets(run: dict[str, Any], conditions: tuple[Condition, ...]) -> bool:
    return all(
        condition.section == "run" or run[condition.section].get(condition.name) == condition.value
        for condition in conditions
    )


def _runs(trials: Trials) -> list[dict[str, Any]]:
    """Return the runs that the trials would be logged to, with the configurations that a Round hands over."""
    given = given_names(trials.parameters)
    runs = []
    for row, number in enumerate(trials.number.tolist()):
        config = {given[name]: value for name, value in trials.config(row).items()}
        entry = enter_trial(trials, config, trials, number)
        history = {key for line in entry.write_history() for key in line}
        runs.append({"config": entry.write_config(), "summary": dict(entry.summary), "history": history})
    return runs


class TestTablePanels:
    def test_every_key_is_a_column_with_rows(self, trials: Trials) -> None:
        tables = tables_of(trials)
        panels = panels_of(trials)
        assert all(isinstance(panel, PresetPanel) for panel in panels)
        for panel in panels:
            keys = panel_keys(panel)
            assert keys.columns <= set(tables[keys.table].columns)
            # A panel of a table that has no row would stay empty for good.
            assert tables[keys.table].rows or trials.name == "running"

    def test_every_preset_gets_all_its_fields_and_no_unknown_text(self, trials: Trials) -> None:
        for panel in panels_of(trials):
            assert isinstance(panel, PresetPanel)
            assert sorted(panel.fields) == list(PRESETS[panel.stem].fields)
            allowed = {*PRESETS[panel.stem].strings, "n_buckets"} | {"low", "high", "scale"}
            assert set(panel.strings) <= allowed

    def test_every_panel_is_drawn_without_a_complaint(self, trials: Trials, capfd: pytest.CaptureFixture[str]) -> None:
        tables = tables_of(trials)
        for panel in panels_of(trials):
            assert isinstance(panel, PresetPanel)
            rows = rows_of_table(tables[panel.table])
            svg = render(fill(PRESETS[panel.stem], panel.fields, panel.strings, rows=rows))
            assert svg.startswith("<svg")
        assert complaints(capfd.readouterr().err) == []

    def test_every_searched_hyperparameter_has_an_axis_and_an_isolation_plot(self, trials: Trials) -> None:
        columns = [name_columns(trials)[parameter.name] for parameter in trials.parameters]
        for stem in ("axis", "isolation"):
            drawn = [
                panel.fields["x"]
                for panel in panels_of(trials)
                if isinstance(panel, PresetPanel) and panel.stem.startswith(stem)
            ]
            assert sorted(drawn) == sorted(columns)

    def test_a_panel_of_one_hyperparameter_shows_its_trials(self) -> None:
        trials = _awkward()
        rows = rows_of_table(tables_of(trials)[TRIALS_KEY])
        for panel in panels_of(trials):
            if isinstance(panel, PresetPanel) and panel.stem.startswith("axis"):
                spec = fill(PRESETS[panel.stem], panel.fields, panel.strings, rows=rows)
                drawn = computed(spec, "trials", ["trial_given", "y"])
                assert sorted(row["trial_given"] for row in drawn) == list(range(10))

    def test_buckets_are_those_of_the_analysis(self) -> None:
        trials = _mixed(100)
        found = {
            panel.fields["x"]: panel.strings["n_buckets"]
            for panel in panels_of(trials)
            if isinstance(panel, PresetPanel) and panel.stem == "isolation"
        }
        assert found == {name: str(len(isolate(trials, name).groups)) for name in ("width", "lr", "dropout")}
        assert found["lr"] == "10"

    def test_a_number_of_few_values_is_taken_value_by_value(self) -> None:
        stems = {
            panel.fields["x"]: panel.stem
            for panel in panels_of(_mixed())
            if isinstance(panel, PresetPanel) and panel.stem.startswith("isolation")
        }
        assert stems["depth"] == stems["batch"] == stems["norm"] == "isolation_categories"
        assert stems["width"] == stems["lr"] == "isolation"

    def test_scientific_isolation_plots_come_first_and_the_others_are_folded(self) -> None:
        trials = two_optimizers()
        source = Source(conditions=_REPORT_RUN, tables=_TABLES, is_live=False)
        chapter = list_chapters(chart_study(trials, [], is_live=False), source)[-1]
        first, *others = chapter.groups
        assert [panel.fields["x"] for panel in first.panels] == ["optimizer"]  # type: ignore[union-attr]
        assert [group.is_folded for group in (first, *others)] == [False, True]

    def test_chapters_come_in_the_playbooks_order_with_its_sections(self) -> None:
        source = Source(conditions=_REPORT_RUN, tables=_TABLES, is_live=False)
        chapters = list_chapters(chart_study(two_optimizers(), [], is_live=False), source)
        assert [(chapter.title, chapter.section) for chapter in chapters] == [
            ("Is the search space right?", "Identifying bad search space boundaries"),
            ("Were enough points sampled?", "Not sampling enough points in the search space"),
            ("How did the best trials train?", "Examining the training curves"),
            (
                "What does the scientific hyperparameter change?",
                "Detecting whether a change is useful with isolation plots",
            ),
        ]

    def test_the_infeasible_share_is_shown_where_the_finding_explains_it(self) -> None:
        trials = two_optimizers()
        shares = [panel.fields["x"] for panel in panels_of(trials) if "infeasible_share" in getattr(panel, "stem", "")]
        [feasibility] = [finding for finding in review(trials) if finding.check == "feasibility"]
        assert shares == [feasibility.numbers["explained_by"]] == ["nesterov.learning_rate"]

    def test_what_is_missing_is_said(self) -> None:
        source = Source(conditions=_REPORT_RUN, tables=_TABLES, is_live=False)
        notes = {
            name: [chapter.note for chapter in list_chapters(chart_study(STUDIES[name](), [], is_live=False), source)]
            for name in ("without curves", "running", "infeasible", "mixed")
        }
        missing = "No feasible trial has a training curve. Record the evaluations of each trial to see them here."
        assert notes["without curves"][2] == notes["running"][2] == missing
        assert (
            notes["running"][1]
            == notes["infeasible"][1]
            == "No trial is feasible, so that there is no best of m trials."
        )
        assert notes["mixed"] == ["", "", "", ""]

    @needs_convnext
    def test_a_real_study(self, capfd: pytest.CaptureFixture[str]) -> None:
        trials = convnext()
        tables = tables_of(trials)
        panels = panels_of(trials)
        assert len(panels) == 3 + 2 * len(trials.parameters) + 1
        for panel in panels:
            assert isinstance(panel, PresetPanel)
            rows = rows_of_table(tables[panel.table])
            render(fill(PRESETS[panel.stem], panel.fields, panel.strings, rows=rows))
        assert complaints(capfd.readouterr().err) == []


class TestLivePanels:
    @pytest.mark.parametrize("name", ["two optimizers", "mixed", "maximized", "awkward", "one trial"])
    def test_every_key_is_in_every_run_that_is_selected(self, name: str) -> None:
        trials = STUDIES[name]()
        runs = _runs(trials)
        for group in groups_of(trials, live=True):
            if group.conditions == _REPORT_RUN:
                continue
            chosen = [run for run in runs if _meets(run, group.conditions)]
            assert chosen or name == "one trial"
            for keys in map(panel_keys, group.panels):
                for run in chosen:
                    assert keys.config <= set(run["config"])
                    assert keys.summary <= set(run["summary"])
                    # A line is drawn for those that have its key; its steps all have.
                    assert not keys.history or "playbook/step" in run["history"]

    def test_a_conditional_hyperparameter_is_read_under_the_name_that_training_got(self) -> None:
        groups = groups_of(two_optimizers(), live=True)
        found = {
            (group.conditions[-1].value, panel.config)
            for group in groups
            for panel in group.panels
            if isinstance(panel, PresetPanel) and panel.stem == "axis"
        }
        assert found == {
            ("adam", ("learning_rate",)),
            ("adam", ("one_minus_beta1",)),
            ("nesterov", ("learning_rate",)),
            ("nesterov", ("one_minus_momentum",)),
        }
        branches = [group.conditions for group in groups if group.title == "optimizer = adam"]
        assert branches == [
            (*trial_runs(two_optimizers()), Condition(section="config", name="optimizer", value="adam"))
        ]

    def test_a_branch_of_a_branch_has_the_conditions_of_both(self) -> None:
        outer = Parameter(name="kind", kind="categorical", choices=("a", "b"))
        middle = Parameter(name="a.depth", kind="int", low=1, high=2, condition=("kind", "a"))
        inner = Parameter(name="1.rate", kind="float", low=0, high=1, condition=("a.depth", 1))
        trials = Trials.from_columns(
            "nested",
            [outer, middle, inner],
            {"kind": ["a", "a", "b"], "a.depth": [1, 2, np.nan], "1.rate": [0.5, np.nan, np.nan]},
            [1.0, 2.0, 3.0],
        )
        deepest = [group for group in groups_of(trials, live=True) if len(group.conditions) == 3]
        assert {group.conditions for group in deepest} == {
            (
                *trial_runs(trials),
                Condition(section="config", name="kind", value="a"),
                Condition(section="config", name="depth", value=1),
            )
        }
        assert {panel.config for group in deepest for panel in group.panels} == {("rate",)}  # type: ignore[union-attr]

    def test_live_panels_are_drawn_from_what_runs_hold(self, capfd: pytest.CaptureFixture[str]) -> None:
        trials = two_optimizers()
        runs = _runs(trials)
        n_drawn = 0
        for group in groups_of(trials, live=True):
            chosen = [run for run in runs if _meets(run, group.conditions)]
            for panel in group.panels:
                if isinstance(panel, PresetPanel) and not panel.table:
                    assert PRESETS[panel.stem].is_live
                    rows = [
                        {"id": str(place), "name": f"run-{place}"}
                        | {key: run["config"][key] for key in panel.config}
                        | {key: run["summary"][key] for key in panel.summary}
                        for place, run in enumerate(chosen)
                    ]
                    render(fill(PRESETS[panel.stem], panel.fields, panel.strings, rows=rows))
                    n_drawn += 1
        # Five axes and isolations, an infeasible share, the best steps.
        assert n_drawn == 12
        assert complaints(capfd.readouterr().err) == []

    def test_a_name_that_no_preset_can_draw_gets_a_panel_of_wandb(self) -> None:
        panels = panels_of(_awkward(), live=True)
        keys = {panel.key for panel in panels if isinstance(panel, ScatterPanel)}
        assert keys == {name for name in AWKWARD_NAMES if not is_plain_key(name)}
        drawn = {panel.config[0] for panel in panels if isinstance(panel, PresetPanel) and panel.config}
        assert drawn == set(AWKWARD_NAMES) - keys

    def test_lines_show_complete_trials_the_best_first(self) -> None:
        [group] = [
            group
            for group in groups_of(_mixed(direction="maximize"), live=True)
            if any(isinstance(panel, LinesPanel) for panel in group.panels)
        ]
        assert group.best_first == "maximize"
        assert group.conditions[-1] == Condition(section="summary", name="playbook_status", value="complete")
        assert [panel.y for panel in group.panels if isinstance(panel, LinesPanel)] == [
            ("playbook/validation",),
            ("playbook/train",),
            ("playbook/gradient_norm", "playbook/gradient_norm_max", "playbook/clip_threshold"),
        ]

    def test_hyperparameters_of_all_runs_meet_in_parallel_coordinates(self) -> None:
        [panel] = [panel for panel in panels_of(_mixed(), live=True) if isinstance(panel, ParallelPanel)]
        assert panel.keys[:3] == (("width", True), ("depth", False), ("lr", True))

    def test_the_budget_stays_with_the_reports_run(self) -> None:
        [group] = [
            group
            for group in groups_of(_mixed(), live=True)
            if any(getattr(panel, "stem", "") == "budget" for panel in group.panels)
        ]
        assert group.conditions == _REPORT_RUN


class TestTables:
    def test_columns_are_those_of_the_runs(self) -> None:
        trials = two_optimizers(4)
        table = tabulate_trials(trials, name_columns(trials))
        assert table.columns == (
            "trial",
            "playbook_objective",
            "playbook_status",
            "playbook_reason",
            "playbook_rank",
            "playbook_best_step",
            "playbook_max_steps",
            "optimizer",
            "adam.learning_rate",
            "adam.one_minus_beta1",
            "nesterov.learning_rate",
            "nesterov.one_minus_momentum",
        )

    def test_rows_say_what_the_charts_of_the_page_say(self) -> None:
        trials = two_optimizers()
        rows = {row["trial"]: row for row in rows_of_table(tabulate_trials(trials, name_columns(trials)))}
        for shown in trial_rows(trials):
            row = rows[shown["trial"]]
            assert row["playbook_objective"] == shown["objective"]
            assert row["playbook_rank"] == shown["rank"]
            assert row["playbook_status"] == shown["status"]
            assert row["adam.learning_rate"] == shown["p1"]
        assert rows[5]["playbook_objective"] is None
        assert rows[5]["playbook_reason"] == "diverged at step 60: the loss was NaN"

    def test_hand_worked(self) -> None:
        trials = Trials.from_columns(
            "s",
            [Parameter(name="n", kind="int", low=1, high=9), Parameter(name="c", kind="categorical", choices=("a", 1))],
            {"n": [3, 4, 5], "c": ["a", 1, None]},
            [0.5, np.nan, 0.25],
            status=[Status.COMPLETE, Status.RUNNING, Status.COMPLETE],
        )
        assert tabulate_trials(trials, name_columns(trials)).rows == (
            (0, 0.5, "complete", "", 2, -1, -1, 3, "a"),
            (2, 0.25, "complete", "", 1, -1, -1, 5, None),
        )

    def test_at_most_10_000_rows(self) -> None:
        trials = Trials.from_columns(
            "large", [Parameter(name="x", kind="float", low=0, high=1)], {"x": np.zeros(20_000)}, np.arange(20_000.0)
        )
        table = tabulate_trials(trials, name_columns(trials))
        assert len(table.rows) == 10_000
        assert {row[4] for row in table.rows} >= set(range(1, 1001))

    def test_numbers_among_categories_stay_numbers(self) -> None:
        assert label_choices(Parameter(name="b", kind="categorical", choices=(1024, 256))) == [1024, 256]
        assert label_choices(Parameter(name="b", kind="categorical", choices=(1, True))) == ["1", "True"]
        assert label_choices(Parameter(name="b", kind="categorical", choices=(1, 1.0, "1"))) == ["1", "1.0", "'1'"]

    @settings(deadline=None)
    @given(st.lists(st.one_of(st.text(), st.sampled_from(AWKWARD_NAMES)), unique=True, max_size=6))
    def test_every_hyperparameter_gets_a_column_of_its_own(self, names: list[str]) -> None:
        trials = Trials.from_columns(
            "s",
            [Parameter(name=name, kind="float", low=0, high=1) for name in names],
            {name: [0.5] for name in names},
            [1.0],
        )
        columns = name_columns(trials)
        table = tabulate_trials(trials, columns)
        assert len(set(table.columns)) == len(table.columns)
        assert all(is_plain_key(column) for column in columns.values())
        assert all(columns[name] == name for name in names if is_plain_key(name))
        json.dumps(table.columns).encode()
        "".join(table.columns).encode()

    def test_curves_are_those_of_the_best_with_their_training_objective(self) -> None:
        trials = two_optimizers()
        rows = rows_of_table(tabulate_curves(trials))
        best = trials.ranking()[:3]
        assert [row["label"] for row in rows if row["step"] == 0] == [
            f"trial {trials.number[best[0]]} (best)",
            f"trial {trials.number[best[1]]}",
            f"trial {trials.number[best[2]]}",
        ]
        curve = trials.curves[best[1]]
        assert curve is not None
        second = [row for row in rows if row["rank"] == 2]
        assert [row["validation"] for row in second] == [float(f"{value:.6g}") for value in curve.validation]
        assert second[0]["train"] is None
        assert second[1]["train"] == float(f"{curve.train[1]:.6g}")
        assert second[1]["gradient_norm"] is None

    def test_a_loss_does_not_share_the_axis_of_an_accuracy(self) -> None:
        curve = Curve.from_columns([0, 1, 2, 3], [0.1, 0.5, 0.8, 0.9], train=[2.3, 1.2, 0.6, 0.3])
        trials = Trials.from_columns(
            "s",
            [Parameter(name="x", kind="float", low=0, high=1)],
            {"x": [0.5]},
            [0.9],
            direction="maximize",
            curves=[curve],
        )
        assert {row["train"] for row in rows_of_table(tabulate_curves(trials))} == {None}

    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_budget_is_the_tuning_curve_with_lower_below_upper(self, direction: str) -> None:
        trials = _mixed(direction=direction)
        curve = tuning_curve(trials)
        rows = rows_of_table(tabulate_budget(trials))
        assert [row["n_trials"] for row in rows] == curve.m.tolist()
        assert [row["median"] for row in rows] == curve.median.tolist()
        assert all(row["lower"] <= row["median"] <= row["upper"] for row in rows)

    def test_the_sheet_is_that_of_the_page(self) -> None:
        table = tabulate_sheet([{"study": "a", "n_trials": 3, "commit": "0123456789abcdef", "command": "train"}])
        assert rows_of_table(table) == [
            {
                "study": "a",
                "configuration": "",
                "notes": "",
                "trials": "3",
                "best": "",
                "commit": "0123456789",
                "command": "train",
            }
        ]
        assert tabulate_sheet([]) == ReportTable(columns=(), rows=())
        assert SHEET_KEY == "playbook/sheet"


def test_a_text_does_not_bring_placeholders_into_a_chart() -> None:
    assert chart_text("${field:x} costs $5") == "$ {field:x} costs $5"
    assert chart_text("a\x00b") == "a\ufffdb"
    assert PLAYBOOK.startswith("https://github.com/google-research/")
