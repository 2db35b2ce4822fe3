"""What can a chart of a W&B report be, and what does each of them read? Panels as plain data, before any of W&B's.

Playbook: "Automate generically useful plots". Each panel tells its keys, so that they can be compared with what was
logged: a run that lacks one of them is lost from the chart without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.theme import label
from playbook_plugins.wandb.run_layout import OBJECTIVE_KEY, STEP_KEY

# The name of a run, which W&B adds to the rows of a query.
RUN_NAME = "name"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Which runs: those whose ``name`` in ``section`` equals ``value``."""

    section: Literal["run", "config", "summary"]
    name: str
    value: Any


@dataclass(frozen=True, kw_only=True)
class PresetPanel:
    """A chart of `playbook_plugins.wandb.presets`.

    Attributes
    ----------
    stem
        Which preset.
    fields
        Which column each of its fields reads.
    strings
        Its texts and settings.
    table
        The key of the table that the report's run logs; "" where the runs' own config and summary are read.
    config, summary
        The keys that are read of every run; empty with a table.
    """

    stem: str
    fields: Mapping[str, str]
    strings: Mapping[str, str]
    table: str = ""
    config: tuple[str, ...] = ()
    summary: tuple[str, ...] = ()

    @property
    def query(self) -> dict[str, Any]:
        """What W&B is asked for."""
        if self.table:
            return {"summaryTable": {"tableKey": self.table}}
        sections = {"config": self.config, "summary": self.summary}
        return {section: {"keys": list(keys)} for section, keys in sections.items() if keys}


@dataclass(frozen=True, kw_only=True)
class LinesPanel:
    """W&B's own lines of ``y``, keys of the history, over ``playbook/step``."""

    title: str
    y: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ScatterPanel:
    """W&B's own dots: the objective against a key of the config whose name no preset can draw."""

    title: str
    key: str
    is_log: bool


@dataclass(frozen=True, kw_only=True)
class ParallelPanel:
    """W&B's own parallel coordinates: keys of the config, each with whether its axis is logarithmic, and the objective.

    ``objective_title`` names the last axis.
    """

    title: str
    keys: tuple[tuple[str, bool], ...]
    objective_title: str


Panel: TypeAlias = PresetPanel | LinesPanel | ScatterPanel | ParallelPanel


@dataclass(frozen=True, kw_only=True)
class PanelGroup:
    """Panels over one selection of runs.

    Attributes
    ----------
    panels
        In their order.
    conditions
        All of which a run meets to be shown.
    best_first
        The direction of the objective where the best runs come first; None where their order does not matter.
    title
        What the group is about; "" where the chapter says it.
    is_folded
        Whether it is shown only when asked for.
    """

    panels: tuple[Panel, ...]
    conditions: tuple[Condition, ...]
    best_first: Direction | None = None
    title: str = ""
    is_folded: bool = False


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """One question: its title, the playbook's section, how to read the plots, the plots, and why there are none."""

    title: str
    section: str
    help: str
    groups: tuple[PanelGroup, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class PanelKeys:
    """What a panel reads: a table and its columns, or keys of config, summary and history."""

    table: str = ""
    columns: frozenset[str] = frozenset()
    config: frozenset[str] = frozenset()
    summary: frozenset[str] = frozenset()
    history: frozenset[str] = frozenset()


def panel_keys(panel: Panel) -> PanelKeys:
    """Return what a panel reads, so that it can be compared with what was logged."""
    match panel:
        case PresetPanel():
            # The run's name is no key: W&B adds it to every row.
            columns = frozenset(panel.fields.values()) - {RUN_NAME}
            if panel.table:
                return PanelKeys(table=panel.table, columns=columns)
            return PanelKeys(config=frozenset(panel.config), summary=columns - set(panel.config) | set(panel.summary))
        case LinesPanel():
            return PanelKeys(history=frozenset({STEP_KEY, *panel.y}))
        case ScatterPanel():
            return PanelKeys(config=frozenset({panel.key}), summary=frozenset({OBJECTIVE_KEY}))
        case ParallelPanel():
            return PanelKeys(config=frozenset(key for key, _ in panel.keys), summary=frozenset({OBJECTIVE_KEY}))


def chart_text(text: object, limit: int = 60) -> str:
    """Return a label that is inserted into a preset as it is, whatever it holds."""
    # W&B fills in the placeholders one after the other, also those that a text brings with it.
    return label(text, limit).replace("${", "$ {")
