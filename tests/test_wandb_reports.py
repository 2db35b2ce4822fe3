"""Does a W&B report arrive whole or not at all, and does it say what the study says? Through the real client."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import wandb
from example_trials import two_optimizers
from optuna.distributions import FloatDistribution, IntDistribution
from preset_rows import fill, render
from test_wandb_report_panels import AWKWARD_NAMES, STUDIES, complaints
from wandb_server import LoopbackServer

from playbook_plugins.analysis import Finding, Parameter, Role, Trials, Verdict, review
from playbook_plugins.charts.scales import objective_scale
from playbook_plugins.optuna import Round
from playbook_plugins.wandb import report_run
from playbook_plugins.wandb.clients import import_reports
from playbook_plugins.wandb.log_trial import log_trial
from playbook_plugins.wandb.presets import PRESETS
from playbook_plugins.wandb.report_blocks import build_report, serialize
from playbook_plugins.wandb.report_saving import make_marker
from playbook_plugins.wandb.reports import publish_report, report_template
from playbook_plugins.wandb.retrying import WandbUnavailableError
from playbook_plugins.wandb.run_layout import enter_trial

wr = import_reports()
ENTITY, PROJECT = "playbook-team", "reports"
WHERE = {"entity": ENTITY, "project": PROJECT}
_BY_NAME = {f"{ENTITY}/{preset.name}": preset for preset in PRESETS.values()}


@pytest.fixture(autouse=True)
def _without_patience(wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client give up soon: its own retries are not what is tested."""
    for kind in ("GRAPHQL", "FILE_TRANSFER", "FILE_STREAM"):
        monkeypatch.setenv(f"WANDB_X_{kind}_RETRY_MAX", "1")
        monkeypatch.setenv(f"WANDB_X_{kind}_RETRY_WAIT_MIN_SECONDS", "0.05")
        monkeypatch.setenv(f"WANDB_X_{kind}_RETRY_WAIT_MAX_SECONDS", "0.1")


@dataclass
class SentPanel:
    """A panel as the server got it: its kind and settings, and the filters of the runs that feed it."""

    kind: str
    config: dict[str, Any]
    filters: list[tuple[str, str, Any]]

    @property
    def query(self) -> dict[str, Any]:
        [run_sets] = self.config["userQuery"]["queryFields"]
        return {
            field["name"]: {argument["name"]: argument["value"] for argument in field.get("args", [])}
            for field in run_sets["fields"]
        }


class SentReport:
    """A report as the server got it."""

    def __init__(self, server: LoopbackServer, place: int = 0) -> None:
        self.view = server.reports[place]
        self.spec = json.loads(self.view.spec)
        self.blocks = list(_walk(self.spec["blocks"]))
        self.markdown = "\n\n".join(block["content"] for block in self.blocks if block["type"] == "markdown-block")
        self.headings = [block["children"][0]["text"] for block in self.blocks if block["type"] == "heading"]
        self.panels = [panel for block in self.blocks if block["type"] == "panel-grid" for panel in _panels(block)]
        self.charts = [panel for panel in self.panels if panel.kind == "Vega2"]


def _walk(blocks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for block in blocks:
        yield block
        yield from _walk(block.get("collapsedChildren", []))


def _panels(grid: dict[str, Any]) -> Iterator[SentPanel]:
    [run_set] = grid["metadata"]["runSets"]
    # The project is the report's own.
    assert "project" not in run_set
    assert run_set["filters"]["filterFormat"] == "filterV2"
    filters = run_set["filters"]["filters"]
    assert all(one["op"] == "=" and one["disabled"] is False for one in filters)
    assert [one.get("connector") for one in filters] == [None, *["AND"] * (len(filters) - 1)]
    for panel in grid["metadata"]["panelBankSectionConfig"]["panels"]:
        found = [(one["key"]["section"], one["key"]["name"], one["value"]) for one in filters]
        yield SentPanel(panel["viewType"], panel["config"], found)


def table_of_run(server: LoopbackServer, run_id: str, key: str) -> dict[str, Any]:
    """Return a table as the server has it."""
    run = server.find_run(run_id)
    content = run.files[run.summary[key]["path"]].content
    assert content is not None
    table: dict[str, Any] = json.loads(content)
    return table


def rows_of_run(server: LoopbackServer, run_id: str, key: str) -> list[dict[str, Any]]:
    table = table_of_run(server, run_id, key)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def check_table_charts(server: LoopbackServer, report: SentReport, printed: pytest.CaptureFixture[str]) -> None:
    """Check that each chart finds its preset, its run, its table and its columns there, and is drawn."""
    [run] = [one for one in server.runs if one.job_type == "playbook-report"]
    assert report.charts
    assert len(report.charts) == len(report.panels)
    for panel in report.charts:
        preset = _BY_NAME[panel.config["panelDefId"]]
        assert server.charts[ENTITY, preset.name].spec == json.loads(preset.text)
        assert panel.filters == [("run", "name", run.name)]
        assert panel.config["transform"] == {"name": "tableWithLeafColNames"}
        key = panel.query["summaryTable"]["tableKey"]
        rows = rows_of_run(server, run.name, key)
        fields = panel.config["fieldSettings"]
        assert sorted(fields) == list(preset.fields)
        assert set(fields.values()) <= set(table_of_run(server, run.name, key)["columns"])
        assert set(panel.config["stringSettings"]) <= set(preset.strings)
        render(fill(preset, fields, panel.config["stringSettings"], rows=rows))
    assert complaints(printed.readouterr().err) == []


def plant_trials(server: LoopbackServer, trials: Trials) -> None:
    """Put the runs of a study on the server, as they are logged."""
    for row, number in enumerate(trials.number.tolist()):
        config = {name.partition(".")[2] or name: value for name, value in trials.config(row).items()}
        entry = enter_trial(trials, config, trials, number)
        server.plant_run(
            ENTITY,
            PROJECT,
            name=f"trial{number}",
            config=entry.write_config(),
            summary=entry.summary,
            history=entry.write_history(),
            group=trials.name,
            job_type="trial",
        )


def check_live_charts(server: LoopbackServer, report: SentReport, printed: pytest.CaptureFixture[str]) -> int:
    """Check that each chart's keys are in all runs that it selects, draw it, and return how many there are."""
    n_live = 0
    for panel in report.panels:
        if panel.filters[0][:2] == ("run", "name"):
            continue
        n_live += 1
        chosen = [run for run in server.runs if _selects(panel.filters, run)]
        assert chosen
        if panel.kind == "Vega2":
            preset = _BY_NAME[panel.config["panelDefId"]]
            rows = []
            for run in chosen:
                config = {key: run.config[key]["value"] for key in panel.query.get("config", {"keys": []})["keys"]}
                summary = {key: run.summary[key] for key in panel.query["summary"]["keys"]}
                rows.append({"id": run.name, "name": run.display_name, **config, **summary})
            assert set(panel.config["fieldSettings"].values()) <= set(rows[0])
            render(fill(preset, panel.config["fieldSettings"], panel.config["stringSettings"], rows=rows))
        elif panel.kind == "Run History Line Plot":
            assert panel.config["xAxis"] == "playbook/step"
            [metric, *_] = panel.config["metrics"]
            assert any(metric in json.loads(line) for run in chosen for line in run.history_lines)
    assert complaints(printed.readouterr().err) == []
    return n_live


def _selects(filters: list[tuple[str, str, Any]], run: Any) -> bool:
    attributes = {"group": run.group, "jobType": run.job_type, "name": run.name}
    found = {
        "run": attributes,
        "config": {key: entry.get("value") for key, entry in run.config.items()},
        "summary": run.summary,
    }
    return all(found[section].get(name) == value for section, name, value in filters)


def _flag(headline: str) -> Finding:
    return Finding(check=headline, subject="study", verdict=Verdict.FLAG, numbers={}, section="")


class Proposal:
    """What is proposed, without a change."""

    changes = ()
    n_more = 32
    chance_of_improvement = 0.4


class TestPublishReport:
    @pytest.mark.parametrize("name", STUDIES)
    def test_every_chart_finds_what_it_reads(
        self, wandb_server: LoopbackServer, name: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        trials = STUDIES[name]()
        url = publish_report(trials, **WHERE, page=False)
        report = SentReport(wandb_server)
        assert url == f"{wandb_server.url}/{ENTITY}/{PROJECT}/reports/{url.rpartition('/')[2]}"
        assert url.endswith(f"--{report.view.id}")
        check_table_charts(wandb_server, report, capfd)
        axes = [panel for panel in report.charts if "playbook-axis" in panel.config["panelDefId"]]
        assert len(axes) == len(trials.parameters)
        assert wandb_server.invalid == []
        assert wandb_server.unknown == []

    def test_it_is_in_the_order_of_the_page(self, wandb_server: LoopbackServer) -> None:
        trials = two_optimizers()
        sheet = [{"study": trials.name, "n_trials": 48, "command": "python train.py"}]
        publish_report(trials, **WHERE, sheet=sheet)
        report = SentReport(wandb_server)
        assert report.view.display_name == trials.name
        assert report.headings == [
            "What to do first",
            "What raised no flag",
            "The best trials",
            "Run the best trials again",
            "Is the search space right?",
            "Were enough points sampled?",
            "How did the best trials train?",
            "What does the scientific hyperparameter change?",
            "The other hyperparameters",
            "What limits these conclusions",
            "The studies",
            "How this report was made",
        ]
        assert "48 trials; 8 (17%) infeasible; **best validation error, minimized: 0.02079 (trial 36)**." in (
            report.markdown
        )
        assert "Fixed: batch\\_size = 64, weight\\_decay = 1e-4, max\\_train\\_steps = 600." in report.markdown
        assert "8 infeasible: diverged at step 60: the loss was NaN (for instance trial 5)" in report.markdown
        assert [row["command"] for row in rows_of_run(wandb_server, self._run(wandb_server), "playbook/sheet")] == [
            "python train.py"
        ]

    def _run(self, server: LoopbackServer) -> str:
        [run] = [run for run in server.runs if run.job_type == "playbook-report"]
        return run.name

    def test_the_next_round_follows_what_limits_the_conclusions(self, wandb_server: LoopbackServer) -> None:
        trials = two_optimizers()
        publish_report(trials, **WHERE, page=False, next_round=Proposal())
        report = SentReport(wandb_server)
        assert report.headings[-3:] == ["What limits these conclusions", "The next round", "How this report was made"]
        assert (
            "Run 32 trials: were they drawn like those so far, the best of them would beat the best so far with the "
            "chance 40%" in report.markdown
        )

    def test_the_run_carries_the_page(self, wandb_server: LoopbackServer) -> None:
        publish_report(two_optimizers(), **WHERE)
        [run] = wandb_server.runs
        assert run.job_type == "playbook-report"
        assert run.group == "digits: adam or nesterov"
        assert run.state == "finished"
        [page] = [one for one in wandb_server.artifacts if one.artifact_sequence.type_name == "playbook-report"]
        assert page.artifact_sequence.name == "playbook-report-digits-adam-or-nesterov"
        assert page.files["report.html"].startswith(b"<!DOCTYPE html>")
        assert b"digits: adam or nesterov" in page.files["report.html"]

    def test_the_callers_own_run_goes_on(self, wandb_server: LoopbackServer) -> None:
        with wandb.init(entity=ENTITY, project="mine", id="mine") as run:
            publish_report(two_optimizers(8), **WHERE, page=False)
            assert wandb.run is run
            run.log({"loss": 1.0})
        assert wandb_server.find_run("mine").summary["loss"] == 1.0

    def test_seeds_are_neither_used_nor_disturbed(self, wandb_server: LoopbackServer) -> None:
        names = []
        for name in ("one", "two"):
            random.seed(0)
            publish_report(two_optimizers(8, name=name), **WHERE, page=False)
            names.append(wandb_server.reports[-1].name)
            drawn = random.random()
            random.seed(0)
            assert random.random() == drawn
        assert names[0] != names[1]

    def test_several_studies_have_a_part_and_tables_each(
        self, wandb_server: LoopbackServer, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tables = [two_optimizers(name="first"), two_optimizers(20, seed=1, name="second")]
        publish_report(tables, **WHERE)
        report = SentReport(wandb_server)
        check_table_charts(wandb_server, report, capfd)
        assert [heading for heading in report.headings if heading in ("first", "second")] == ["first", "second"]
        run = self._run(wandb_server)
        assert len(rows_of_run(wandb_server, run, "playbook/trials")) == 48
        assert len(rows_of_run(wandb_server, run, "playbook/2/trials")) == 20
        keys = [panel.query["summaryTable"]["tableKey"] for panel in report.charts]
        half = len(keys) // 2
        assert "/2/" not in "".join(keys[:half])
        assert all("/2/" in key for key in keys[half + 1 :])

    def test_large_studies_say_what_is_drawn(self, wandb_server: LoopbackServer) -> None:
        generator = np.random.default_rng(0)
        trials = Trials.from_columns(
            "large",
            [Parameter(name="lr", kind="float", low=1e-4, high=1.0, log=True)],
            {"lr": 10 ** generator.uniform(-4, 0, 20_000)},
            generator.random(20_000),
        )
        publish_report(trials, **WHERE, page=False)
        assert len(rows_of_run(wandb_server, self._run(wandb_server), "playbook/trials")) == 10_000
        said = SentReport(wandb_server).markdown
        assert "Single marks stand for 10,000 of 20,000 trials" in said
        publish_report(trials, **WHERE, page=False, live=True)
        assert "W&B reads 500 of its 20,000 runs" in SentReport(wandb_server).markdown.replace("\\", "")

    def test_what_a_study_says_stays_text(self, wandb_server: LoopbackServer) -> None:
        script = "<script>alert(1)</script> **bold** [link](http://x) ${field:x} $math$"
        trials = two_optimizers(
            12,
            name=f"study {script}\x00\x07 größe \ud800",
            goal=f"# {script}",
            objective_name=script,
            fixed={script: script, "l" * 3000: 1},
            caveats=(f"1. {script}",),
        )
        publish_report(trials, **WHERE, page=False, sheet=[{"study": trials.name, "command": script}])
        report = SentReport(wandb_server)
        assert not re.search(r"(?<!\\)<script|(?<!\\)\*\*bold|(?<!\\)\[link\]|(?<!\\)\$math", report.markdown)
        assert "\\<script\\>alert(1)\\</script\\>" in report.markdown
        assert not set(report.view.spec + report.view.description) & {"\x00", "\ud800"}
        assert len(report.view.display_name) <= 128
        for panel in report.charts:
            assert "${" not in json.dumps(panel.config["stringSettings"])

    def test_awkward_names_do_not_break_a_chart(self, wandb_server: LoopbackServer) -> None:
        publish_report(STUDIES["awkward"](), **WHERE)
        fields = {panel.config["fieldSettings"].get("x") for panel in SentReport(wandb_server).charts} - {None}
        assert len(fields) == len(AWKWARD_NAMES)
        assert not any(mark in field for field in fields for mark in ('"', "\\", "${"))

    def test_the_api_key_stays_in_its_header(self, wandb_server: LoopbackServer) -> None:
        publish_report(two_optimizers(8), **WHERE)
        assert wandb_server.received
        assert not any(wandb_server.api_key.encode() in received for received in wandb_server.received)

    def test_titles_do_not_break_the_address(self, wandb_server: LoopbackServer) -> None:
        url = publish_report(two_optimizers(8), **WHERE, page=False, title="50% off? #1 / über")
        assert url.endswith(f"/reports/50-off-1-ber--{wandb_server.reports[0].id}")
        assert wandb_server.reports[0].display_name == "50% off? #1 / über"


class TestLiveReport:
    def test_every_key_is_in_the_runs_that_are_selected(
        self, wandb_server: LoopbackServer, capfd: pytest.CaptureFixture[str]
    ) -> None:
        trials = two_optimizers(name='it\'s a=b < "c"')
        plant_trials(wandb_server, trials)
        publish_report(trials, **WHERE, live=True)
        report = SentReport(wandb_server)
        assert check_live_charts(wandb_server, report, capfd) == 14
        names = {value for panel in report.panels for _, name, value in panel.filters if name == "playbook_study_name"}
        assert names == {trials.name}

    def test_runs_that_training_began_are_shown_too(self, wandb_server: LoopbackServer) -> None:
        trials = two_optimizers()
        with wandb.init(project=PROJECT, group="mine", job_type="train", reinit="create_new") as run:
            config = {name.partition(".")[2] or name: value for name, value in trials.config(0).items()}
            log_trial(trials, config, study=trials, number=int(trials.number[0]), run=run)
        publish_report(trials, **WHERE, live=True)
        [logged] = [one for one in wandb_server.runs if one.group == "mine"]
        live = [panel for panel in SentReport(wandb_server).panels if panel.filters[0][:2] != ("run", "name")]
        assert any(_selects(panel.filters, logged) for panel in live)

    def test_the_budget_is_read_from_the_reports_run(self, wandb_server: LoopbackServer) -> None:
        publish_report(two_optimizers(), **WHERE, live=True)
        [run] = wandb_server.runs
        [budget] = [one for one in SentReport(wandb_server).charts if "summaryTable" in one.query]
        assert budget.filters == [("run", "name", run.name)]
        assert sorted(key for key in run.summary if key.startswith("playbook/")) == ["playbook/budget"]

    def test_lines_are_those_of_the_best_trials(self, wandb_server: LoopbackServer) -> None:
        publish_report(two_optimizers(), **WHERE, live=True)
        grids = [block for block in SentReport(wandb_server).blocks if block["type"] == "panel-grid"]
        [grid] = [grid for grid in grids if any(panel.kind == "Run History Line Plot" for panel in _panels(grid))]
        [run_set] = grid["metadata"]["runSets"]
        assert run_set["sort"]["keys"] == [
            {"key": {"section": "summary", "name": "playbook_objective"}, "ascending": True}
        ]


class TestPublishAgain:
    def test_it_updates_the_same_report(self, wandb_server: LoopbackServer, capfd: pytest.CaptureFixture[str]) -> None:
        trials = two_optimizers()
        first = publish_report(trials, **WHERE, findings=[_flag("the first finding")])
        before = wandb_server.runs[0].name
        second = publish_report(trials, **WHERE, findings=[_flag("the second finding")])
        assert first == second
        assert len(wandb_server.reports) == 1
        report = SentReport(wandb_server)
        assert "the second finding" in report.markdown
        assert "the first finding" not in report.markdown
        # The tables of the former version went with it; the charts read the new run.
        assert [run.name for run in wandb_server.backend.deleted_runs] == [before]
        [deletion] = [request for request in wandb_server.requests if request.operation == "DeleteRun"]
        assert deletion.variables is not None
        assert deletion.variables["deleteArtifacts"] is True
        check_table_charts(wandb_server, report, capfd)

    def test_a_draft_and_a_published_report_are_two(self, wandb_server: LoopbackServer) -> None:
        trials = two_optimizers(8)
        addresses = {publish_report(trials, **WHERE, page=False, draft=draft) for draft in (True, False, True, False)}
        assert len(addresses) == 2
        assert [view.type for view in wandb_server.reports] == ["runs/draft", "runs"]
        assert len(wandb_server.runs) == 2

    def test_another_study_gets_a_report_of_its_own(self, wandb_server: LoopbackServer) -> None:
        for name in ("one", "two", "one"):
            publish_report(two_optimizers(8, name=name), **WHERE, page=False)
        assert [view.display_name for view in wandb_server.reports] == ["one", "two"]

    def test_the_order_of_studies_does_not_make_another(self, wandb_server: LoopbackServer) -> None:
        tables = [two_optimizers(8, name="one"), two_optimizers(8, name="two")]
        publish_report(tables, **WHERE, page=False)
        publish_report(tables[::-1], **WHERE, page=False)
        assert len(wandb_server.reports) == 1

    def test_reports_of_others_are_not_touched(self, wandb_server: LoopbackServer) -> None:
        trials = two_optimizers(8)
        wandb.Api().create_project(PROJECT, ENTITY)
        marker = make_marker("report", [trials.name], draft=True)
        for description in ("", f"About {marker}0", marker[:-1], f"x{marker}"):
            wr.Report(entity=ENTITY, project=PROJECT, title=trials.name, description=description).save(draft=True)
        wandb_server.plant_run(ENTITY, PROJECT, name="foreign", job_type="playbook-report")
        before = [(view.id, view.spec, view.description, view.updated_at) for view in wandb_server.reports]
        publish_report(trials, **WHERE, page=False)
        publish_report(trials, **WHERE, page=False)
        after = [(view.id, view.spec, view.description, view.updated_at) for view in wandb_server.reports]
        assert after[:-1] == before
        assert wandb_server.find_run("foreign")

    def test_a_copy_is_left_alone(self, wandb_server: LoopbackServer) -> None:
        publish_report(two_optimizers(8), **WHERE, page=False)
        original = wandb_server.reports[0]
        copy = wr.Report(entity=ENTITY, project=PROJECT, title="a copy", description=original.description)
        copy.save(draft=True)
        publish_report(two_optimizers(8), **WHERE, page=False)
        assert wandb_server.reports[1].display_name == "a copy"

    def test_a_run_of_another_report_is_never_deleted(self, wandb_server: LoopbackServer) -> None:
        publish_report(two_optimizers(8), **WHERE, page=False)
        wandb_server.runs[0].config["playbook_report"]["value"] = "another"
        publish_report(two_optimizers(8), **WHERE, page=False)
        assert wandb_server.backend.deleted_runs == []

    def test_a_former_run_that_cannot_be_deleted_is_told(self, wandb_server: LoopbackServer) -> None:
        publish_report(two_optimizers(8), **WHERE, page=False)
        wandb_server.fail(403, operation="DeleteRun")
        former = wandb_server.runs[0].name
        with pytest.warns(UserWarning, match=rf"^The report is published, but its former run {former} is still there"):
            publish_report(two_optimizers(8), **WHERE, page=False)
        assert len(wandb_server.runs) == 2


# The step that fails, and whether the run of the report was there by then.
_STEPS = {
    "looking for an earlier report": ({"operation": "ProjectViews"}, False),
    "a preset": ({"operation": "CreateCustomChart"}, False),
    "the run": ({"operation": "UpsertBucket"}, False),
    "the files": ({"path": "/storage/"}, True),
    "the summary": ({"path": "file_stream"}, True),
    "an artifact": ({"operation": "CreateArtifact"}, True),
    "the end of an artifact": ({"operation": "CommitArtifact"}, True),
    "the list of files": ({"operation": "CreateRunFiles"}, True),
    "the report": ({"operation": "upsertView"}, True),
}


class TestFailures:
    def test_an_upload_that_never_ends_is_given_up(
        self, wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(report_run, "_FINISH_SECONDS", 2.0)
        wandb_server.fail("hang", times=None, path="file_stream")
        with pytest.raises(
            WandbUnavailableError, match="could not upload the report's run: W&B did not take it"
        ) as found:
            publish_report(two_optimizers(), **WHERE, page=False)
        assert "was deleted again" in str(found.value)
        assert wandb_server.reports == []
        assert wandb_server.runs == []

    @pytest.mark.parametrize("step", _STEPS)
    def test_nothing_is_half_published(self, wandb_server: LoopbackServer, step: str) -> None:
        request, had_run = _STEPS[step]
        publish_report(two_optimizers(8), **WHERE, findings=[_flag("the first finding")])
        # What is published once is not asked for again.
        wandb_server.backend.charts.clear()
        before = wandb_server.reports[0].spec, [run.name for run in wandb_server.runs]
        wandb_server.fail(403, times=None, **request)
        with pytest.raises(Exception, match=r"W&B|asked for") as caught:
            publish_report(two_optimizers(8), **WHERE, findings=[_flag("the second finding")])
        wandb_server.heal()
        assert (wandb_server.reports[0].spec, [run.name for run in wandb_server.runs]) == before
        assert len(wandb_server.reports) == 1
        said = " ".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
        if had_run:
            assert "was not published; an earlier version of it is as it was. The run " in said
            assert ", which held its tables, was deleted again." in said
        # Healed, it goes on.
        publish_report(two_optimizers(8), **WHERE, findings=[_flag("the second finding")])
        assert "the second finding" in SentReport(wandb_server).markdown
        assert len(wandb_server.runs) == 1

    def test_a_run_that_stays_is_told(self, wandb_server: LoopbackServer) -> None:
        wandb_server.fail(403, times=None, path="file_stream")
        wandb_server.fail(403, times=None, operation="DeleteRun")
        with pytest.raises(WandbUnavailableError) as caught:
            publish_report(two_optimizers(8), **WHERE, page=False)
        [run] = wandb_server.runs
        assert f"The run {run.name}, which holds its tables, could not be deleted: delete it by hand" in str(
            caught.value
        )

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", [500, "drop"])
    def test_a_failure_that_passes_is_not_noticed(self, wandb_server: LoopbackServer, kind: int | str) -> None:
        for operation in ("ProjectViews", "CreateCustomChart", "UpsertBucket", "CommitArtifact", "upsertView"):
            wandb_server.fail(kind, operation=operation)
        publish_report(two_optimizers(8), **WHERE)
        assert len(wandb_server.reports) == len(wandb_server.runs) == 1

    @pytest.mark.slow
    def test_a_server_that_is_down_in_the_end(
        self, wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "2")
        wandb_server.fail(500, times=None, operation="upsertView")
        with pytest.raises(WandbUnavailableError) as caught:
            publish_report(two_optimizers(8), **WHERE)
        assert re.fullmatch(
            r"The report 'digits: adam or nesterov' was not published; an earlier version of it is as it was\. The run "
            r"[0-9a-f]{16}, which held its tables, was deleted again\. The cause: could not save the report in "
            r"playbook-team/reports: W&B did not answer\. .*",
            str(caught.value),
        )
        assert wandb_server.runs == wandb_server.reports == []


class TestInputs:
    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {"trials": []},
                "`trials` is empty: a report needs at least one study. Pass one table of trials, or several.",
            ),
            (
                {"trials": two_optimizers(8).select([])},
                "`trials` of the study 'digits: adam or nesterov' has no trial: a report needs at least one. Run the "
                "study first, or make its live report with report_template.",
            ),
            (
                {"entity": ""},
                "`entity` is '': a report belongs to a user or a team of W&B. Pass its name, as it stands in the "
                "addresses of its projects.",
            ),
            (
                {"project": "a/b"},
                "`project` is 'a/b': the name of a project of W&B has 1 to 128 characters, none of them one of "
                "/ \\ # ? % :. Pass such a name.",
            ),
            (
                {"findings": [[]]},
                "`findings` does not fit the 1 tables of `trials`: it must be a list of findings for one table, and a "
                "list of such lists, one a table, for several. Leave it out to review the trials here.",
            ),
            (
                {"next_round": [None, None]},
                "`next_round` does not fit the 1 tables of `trials`: it must be one proposal for one table, and a list "
                "with one proposal or None a table for several. Leave it out to propose nothing.",
            ),
            (
                {"trials": two_optimizers(8, name=""), "live": True},
                "`trials` are of studies called ['']: live charts find the runs of a study by its name. Name the "
                "study, or publish with live=False.",
            ),
        ],
    )
    def test_what_cannot_be_published_is_told_before_any_request(
        self, wandb_server: LoopbackServer, given: dict[str, Any], message: str
    ) -> None:
        arguments = {"trials": two_optimizers(8), **WHERE, **given}
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            publish_report(arguments.pop("trials"), **arguments)
        assert wandb_server.requests == []

    def test_offline(self, wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "offline")
        wandb.teardown()
        message = (
            "`WANDB_MODE` is 'offline': a report is kept by W&B's server. Set WANDB_MODE=online, or write the page "
            "with playbook_plugins.report.write_report, which needs no server."
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            publish_report(two_optimizers(8), **WHERE)
        assert wandb_server.requests == []

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            (
                {},
                "`study_name` is None, and the round has no name of its own: live charts find the runs of a study by "
                "its name. Pass the name of the study that will run the round.",
            ),
            (
                {"study_name": "digits", "direction": "up"},
                "`direction` is 'up': it must be 'minimize' or 'maximize'. Pass one of them.",
            ),
        ],
    )
    def test_of_a_template(self, wandb_server: LoopbackServer, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            report_template(PLAN, **WHERE, **given)
        assert wandb_server.requests == []


@dataclass(frozen=True)
class Plan:
    """A planned round."""

    goal: str
    parameters: tuple[Parameter, ...]
    fixed: dict[str, Any]
    caveats: tuple[str, ...]
    n_trials: int


PLAN = Plan(
    goal="Does Adam or Nesterov momentum reach the lower validation error?",
    parameters=two_optimizers(2).parameters,
    fixed={"batch_size": 64},
    caveats=("batch_size was 64 in every trial: the conclusions hold for this value, and may not for others.",),
    n_trials=48,
)


class TestReportTemplate:
    def test_it_follows_the_runs_that_come_later(
        self, wandb_server: LoopbackServer, capfd: pytest.CaptureFixture[str]
    ) -> None:
        trials = two_optimizers()
        url = report_template(PLAN, **WHERE, study_name=trials.name, objective_name="validation error")
        assert url.endswith(f"--{wandb_server.reports[0].id}")
        # It needs no run of its own, but its project.
        assert wandb_server.runs == []
        plant_trials(wandb_server, trials)
        report = SentReport(wandb_server)
        n_norms = 1
        report.panels = [
            panel for panel in report.panels if "playbook/gradient_norm" not in panel.config.get("metrics", [])
        ]
        assert check_live_charts(wandb_server, report, capfd) == 2 * len(PLAN.parameters) + 2 + 1
        assert len(SentReport(wandb_server).panels) == len(report.panels) + n_norms

    def test_it_says_what_is_planned_and_what_to_look_at(self, wandb_server: LoopbackServer) -> None:
        report_template(PLAN, **WHERE, study_name="digits")
        report = SentReport(wandb_server)
        assert report.headings[:3] == ["The search space", "Before the first trial", "Is the search space right?"]
        assert report.headings[-3:] == [
            "Before a conclusion",
            "What will limit the conclusions",
            "How this report was made",
        ]
        assert "The study digits, 48 trials planned; objective is minimized." in report.markdown
        assert "| adam.learning\\_rate | nuisance | 1e-4 to 1, logarithmic | optimizer = adam |" in report.markdown
        lists = [block for block in report.blocks if block["type"] == "list"]
        assert [item["checked"] for block in lists for item in block["children"]] == [False] * 10
        assert "`" not in report.markdown

    def test_again_it_updates_the_same_and_leaves_the_report_of_the_trials(self, wandb_server: LoopbackServer) -> None:
        trials = two_optimizers(8)
        first = report_template(trials.select([]), **WHERE)
        publish_report(trials, **WHERE, page=False)
        assert report_template(trials, **WHERE) == first
        assert len(wandb_server.reports) == 2
        assert len(wandb_server.runs) == 1

    def test_of_a_round_of_optuna_studies(self, wandb_server: LoopbackServer) -> None:
        own_round = Round(
            "Which rate?",
            scientific={"optimizer": ["adam", "sgd"]},
            nuisance={"width": IntDistribution(16, 256, log=True)},
            conditional={"optimizer": {"adam": {"lr": FloatDistribution(1e-4, 1.0, log=True)}}},
            fixed={"batch_size": 64},
            n_trials=16,
        )
        report_template(own_round, **WHERE, study_name="digits")
        report = SentReport(wandb_server)
        assert "Which rate?" in report.markdown
        assert "| adam.lr | nuisance | 1e-4 to 1, logarithmic | optimizer = adam |" in report.markdown
        assert "batch\\_size was 64 in every trial" in report.markdown
        [panel] = [one for one in report.charts if one.config["stringSettings"]["title"] == "adam.lr"][:1]
        assert panel.config["fieldSettings"]["x"] == "lr"
        assert panel.filters[-1] == ("config", "optimizer", "adam")

    def test_a_long_name_is_whole_in_its_filters(self, wandb_server: LoopbackServer) -> None:
        report_template(PLAN, **WHERE, study_name="n" * 300)
        assert {panel.filters[0] for panel in SentReport(wandb_server).panels} == {
            ("config", "playbook_study_name", "n" * 300)
        }

    def test_a_round_without_a_hyperparameter(self, wandb_server: LoopbackServer) -> None:
        plan = Plan(goal="", parameters=(), fixed={}, caveats=(), n_trials=1)
        report_template(plan, **WHERE, study_name="empty", direction="maximize")
        said = SentReport(wandb_server).markdown
        assert "The study empty, 1 trial planned; objective is maximized." in said
        assert "The round searches no hyperparameter." in said
        assert "No fixed hyperparameters are named, so what they limit is not known here." in said


class TestSpecification:
    """What this package rests on in wandb-workspaces beyond its public names."""

    def test_a_filter_is_what_the_public_name_would_make_of_a_harmless_value(
        self, wandb_server: LoopbackServer
    ) -> None:
        report_template(PLAN, **WHERE, study_name="digits")
        grids = [block for block in SentReport(wandb_server).blocks if block["type"] == "panel-grid"]
        from wandb_workspaces import expr

        [branch, *_] = [grid for grid in grids if len(grid["metadata"]["runSets"][0]["filters"]["filters"]) == 2]
        public = wr.Runset(
            filters=expr.And(expr.Config("playbook_study_name") == "digits", expr.Config("optimizer") == "adam")
        )
        report = wr.Report(entity=ENTITY, project=PROJECT, blocks=[wr.PanelGrid(runsets=[public])])
        [grid] = [block for block in serialize(report)["blocks"] if block["type"] == "panel-grid"]
        assert branch["metadata"]["runSets"][0]["filters"] == grid["metadata"]["runSets"][0]["filters"]

    def test_blocks_keep_their_shape(self) -> None:
        blocks = [
            wr.H2("title", collapsed_blocks=[wr.MarkdownBlock("text")]),
            wr.PanelGrid(
                runsets=[wr.Runset()],
                panels=[
                    wr.CustomChart(
                        query={"summaryTable": {"tableKey": "t"}},
                        chart_name="e/c",
                        chart_fields={"x": "a"},
                        chart_strings={"title": "b"},
                    )
                ],
            ),
        ]
        spec = serialize(build_report(ENTITY, PROJECT, "t" * 200, "words", blocks))
        empty, heading, grid, last = spec["blocks"]
        assert empty == last == {"type": "paragraph", "children": [{"text": ""}]}
        assert heading == {
            "type": "heading",
            "level": 2,
            "children": [{"text": "title"}],
            "collapsedChildren": [{"type": "markdown-block", "children": [{"text": ""}], "content": "text"}],
        }
        [panel] = grid["metadata"]["panelBankSectionConfig"]["panels"]
        assert panel["viewType"] == "Vega2"
        assert panel["config"]["panelDefId"] == "e/c"
        assert panel["config"]["fieldSettings"] == {"x": "a"}
        assert panel["config"]["stringSettings"] == {"title": "b"}
        assert spec["width"] == "fixed"

    def test_objectives_over_decades_get_a_logarithmic_axis(self, wandb_server: LoopbackServer) -> None:
        trials = two_optimizers()
        assert objective_scale(trials).log
        publish_report(trials, **WHERE, page=False)
        for panel in SentReport(wandb_server).charts:
            if "playbook-axis" in panel.config["panelDefId"]:
                assert panel.config["stringSettings"]["y_scale"] == "log"


def test_findings_and_roles_are_those_of_the_review(wandb_server: LoopbackServer) -> None:
    trials = two_optimizers()
    publish_report(trials, **WHERE, page=False)
    said = SentReport(wandb_server).markdown
    flags = [finding for finding in review(trials) if finding.verdict is Verdict.FLAG]
    assert flags
    assert said.count("[Playbook: ") >= len({(one.check, one.subject) for one in flags})
    assert trials.parameters[0].role is Role.SCIENTIFIC
