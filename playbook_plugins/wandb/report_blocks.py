"""How does a W&B report say what the page says? Words and panels as the blocks of a report.

Playbook: "Extracting insight from experimental results". The words come from `playbook_plugins.report`; whatever comes
from a study is text, also where Markdown, HTML or a chart would read it as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from playbook_plugins.charts.theme import label
from playbook_plugins.report.wording import section_link
from playbook_plugins.wandb.clients import import_reports
from playbook_plugins.wandb.presets import PRESETS
from playbook_plugins.wandb.report_panels import (
    Chapter,
    Condition,
    LinesPanel,
    Panel,
    PanelGroup,
    ParallelPanel,
    PresetPanel,
    ScatterPanel,
)
from playbook_plugins.wandb.report_text import (
    advice_lines,
    best_lines,
    flags_lines,
    limits_lines,
    overview_lines,
    proposal_lines,
    quiet_lines,
    table_lines,
)
from playbook_plugins.wandb.run_layout import OBJECTIVE_KEY, STEP_KEY, to_plain

# W&B refuses longer titles.
MAX_TITLE = 128
# Of the 24 columns of a report's grid.
_WIDTH, _HEIGHT = 12, 8
_MAX_HEADING = 100
_MAX_ROWS = 50
_N_AGAIN = 3
# The lines of more trials cannot be told apart.
_MAX_LINES = 10


@dataclass(frozen=True, kw_only=True)
class StudyPart:
    """What a report says of one study.

    Attributes
    ----------
    words
        Of `playbook_plugins.report.study.describe_study`.
    chapters
        Its plots.
    limits
        What its plots leave out, one sentence each.
    """

    words: Mapping[str, Any]
    chapters: Sequence[Chapter]
    limits: Sequence[str] = ()


def build_report(entity: str, project: str, title: str, description: str, blocks: Sequence[Any]) -> Any:
    """Return a report of W&B; nothing is sent.

    Parameters
    ----------
    entity, project
        Where it will be.
    title
        Cut after 128 characters.
    description
        The lines below the title.
    blocks
        Of the functions of this module.
    """
    wr = import_reports()
    return wr.Report(
        entity=entity,
        project=project,
        title=label(title, MAX_TITLE),
        description=description,
        blocks=list(blocks),
        width="fixed",
    )


def serialize(report: Any) -> dict[str, Any]:
    """Return the specification that W&B will be sent, without a login."""
    # The one private name of wandb-workspaces on which this package rests here; a test pins the shape.
    spec: dict[str, Any] = report._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return spec


def study_blocks(part: StudyPart, charts: Mapping[str, str], *, is_one: bool) -> list[Any]:
    """Return the blocks of one study, in the order of the page.

    Parameters
    ----------
    part
        The study.
    charts
        The published presets, ``entity/name`` by stem.
    is_one
        Whether it is the report's only study; otherwise its name stands above it.
    """
    wr = import_reports()
    words = part.words
    findings = words["findings"]
    blocks = [] if is_one else [wr.H1(label(words["name"], _MAX_HEADING))]
    blocks.append(_markdown(overview_lines(words, part.limits)))
    if is_one:
        blocks.append(wr.TableOfContents())
    blocks += [wr.H2("What to do first"), _markdown(flags_lines(findings))]
    if findings["advice"]:
        blocks += [wr.H2("For the next round"), _markdown(advice_lines(findings))]
    if findings["quiet"]:
        blocks.append(wr.H2("What raised no flag", collapsed_blocks=[_markdown(quiet_lines(findings))]))
    blocks += [wr.H2("The best trials"), _markdown(best_lines(words)), *_again(words)]
    blocks += chapter_blocks(part.chapters, charts)
    blocks += [wr.H2("What limits these conclusions"), _markdown(limits_lines(words))]
    if words["proposal"]:
        blocks += [wr.H2("The next round"), _markdown(proposal_lines(words))]
    return blocks


def chapter_blocks(chapters: Sequence[Chapter], charts: Mapping[str, str]) -> list[Any]:
    """Return the blocks of the plots.

    Parameters
    ----------
    chapters
        Of `playbook_plugins.wandb.report_chapters.list_chapters`.
    charts
        As `study_blocks`.
    """
    wr = import_reports()
    blocks: list[Any] = []
    for chapter in chapters:
        text = f"{chapter.help} [Playbook: {chapter.section}]({section_link(chapter.section)})"
        blocks += [wr.H2(chapter.title), _markdown([text, "", chapter.note] if chapter.note else [text])]
        for group in chapter.groups:
            grid = _grid(group, charts)
            if group.is_folded:
                blocks.append(wr.H3(label(group.title, _MAX_HEADING), collapsed_blocks=[grid]))
            else:
                blocks += [*([wr.H3(label(group.title, _MAX_HEADING))] if group.title else []), grid]
    return blocks


def sheet_blocks(sheet: Mapping[str, Any]) -> list[Any]:
    """Return the blocks of the study sheet, at most 50 rows of it; none where it is empty.

    Parameters
    ----------
    sheet
        Of `playbook_plugins.report.sheet.describe_sheet`.
    """
    if not sheet["rows"]:
        return []
    rows = sheet["rows"][:_MAX_ROWS]
    lines = table_lines(sheet["names"], rows)
    if len(sheet["rows"]) > len(rows):
        lines += ["", f"The first {len(rows)} of {len(sheet['rows']):,} studies; the table that this report's run "]
        lines[-1] += "logged has all of them."
    return [import_reports().H2("The studies"), _markdown(lines)]


def text_blocks(title: str, lines: Sequence[str]) -> list[Any]:
    """Return a heading and Markdown below it, whose texts are escaped already."""
    return [import_reports().H2(title), _markdown(lines)]


def checklist_blocks(title: str, questions: Sequence[tuple[str, str]]) -> list[Any]:
    """Return questions to tick off, each with the section of the playbook that asks it."""
    wr = import_reports()
    items = [
        wr.CheckedListItem(text=[f"{question} ", wr.Link(text="playbook", url=section_link(section)), ""])
        for question, section in questions
    ]
    return [wr.H2(title), wr.CheckedList(items=items)]


def _markdown(lines: Sequence[str]) -> Any:
    return import_reports().MarkdownBlock("\n".join(lines))


def _again(words: Mapping[str, Any]) -> list[Any]:
    wr = import_reports()
    blocks: list[Any] = []
    for row in words["best"]["rows"][:_N_AGAIN]:
        code = "\n".join(label(line, 2_000) for line in row["again"].splitlines())
        blocks += [wr.P(f"Trial {row['trial']}, rank {row['rank']}:"), wr.CodeBlock(code=code, language="python")]
    return [wr.H3("Run the best trials again", collapsed_blocks=blocks)] if blocks else []


def _grid(group: PanelGroup, charts: Mapping[str, str]) -> Any:
    wr = import_reports()
    panels = [_panel(panel, charts) for panel in group.panels]
    for place, panel in enumerate(panels):
        is_alone = len(panels) == 1 and not isinstance(group.panels[0], ScatterPanel)
        width = 2 * _WIDTH if is_alone else _WIDTH
        panel.layout = wr.Layout(x=place % 2 * _WIDTH, y=place // 2 * _HEIGHT, w=width, h=_HEIGHT)
    return wr.PanelGrid(runsets=[_runset(group)], panels=panels, hide_run_sets=True)


def _runset(group: PanelGroup) -> Any:
    """Return the selection of runs of a group; its entity and project are the report's own."""
    wr = import_reports()
    runset = wr.Runset(name="Runs")
    if group.best_first is not None:
        runset.order = [wr.OrderBy(wr.SummaryMetric(OBJECTIVE_KEY), ascending=group.best_first == "minimize")]
    # Runset parses its filters from a line of text, in which a quote or an equals sign of a study's name goes wrong.
    runset._stashed_filters_v2 = {"filterFormat": "filterV2", "filters": _filters(group.conditions)}
    runset._stashed_filter_string = runset.filters
    return runset


def _filters(conditions: Sequence[Condition]) -> list[dict[str, Any]]:
    return [
        {
            "key": {"section": condition.section, "name": condition.name},
            "op": "=",
            "value": to_plain(condition.value),
            "disabled": False,
            **({"connector": "AND"} if place else {}),
        }
        for place, condition in enumerate(conditions)
    ]


def _panel(panel: Panel, charts: Mapping[str, str]) -> Any:
    wr = import_reports()
    match panel:
        case PresetPanel():
            known = PRESETS[panel.stem].strings
            return wr.CustomChart(
                query=panel.query,
                chart_name=charts[panel.stem],
                chart_fields=dict(panel.fields),
                chart_strings={name: text for name, text in panel.strings.items() if name in known},
            )
        case LinesPanel():
            return wr.LinePlot(title=panel.title, x=STEP_KEY, y=list(panel.y), max_runs_to_show=_MAX_LINES)
        case ScatterPanel():
            # Its key may be no text at all: what cannot be encoded would fail the whole report.
            key = wr.Config(label(panel.key, 2_000))
            return wr.ScatterPlot(title=panel.title, x=key, y=wr.SummaryMetric(OBJECTIVE_KEY), log_x=panel.is_log)
        case ParallelPanel():
            columns = [
                wr.ParallelCoordinatesPlotColumn(metric=wr.Config(label(key, 2_000)), log=is_log)
                for key, is_log in panel.keys
            ]
            last = wr.ParallelCoordinatesPlotColumn(
                metric=wr.SummaryMetric(OBJECTIVE_KEY), display_name=panel.objective_title
            )
            return wr.ParallelCoordinatesPlot(title=panel.title, columns=[*columns, last])
