"""What does the loopback W&B server remember of projects, runs, sweeps, reports and charts, and how are they read?

Fields are named as in tests/wandb_schema.graphql, in snake case; a method `resolve_x` answers field x where the value
is not stored as it is sent.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import wandb_filters

if TYPE_CHECKING:
    from wandb_artifacts import Artifact, ArtifactSequence, StoredFile


def make_id(kind: str, *parts: object) -> str:
    """Make an opaque id as W&B does: base64 of what it names."""
    return base64.b64encode(":".join([kind, "v1", *map(str, parts)]).encode()).decode()


def now() -> str:
    """Return the time as W&B writes it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def paginate(items: Sequence[Any], after: str | None, first: int | None) -> dict[str, Any]:
    """Cut one page out of a list: a GraphQL connection whose cursors count items."""
    start = int(base64.b64decode(after)) if after else 0
    stop = len(items) if first is None else start + first
    page = items[start:stop]
    cursors = [base64.b64encode(str(start + position + 1).encode()).decode() for position in range(len(page))]
    return {
        "total_count": len(items),
        "edges": [{"node": item, "cursor": cursor} for item, cursor in zip(page, cursors, strict=True)],
        "page_info": {"end_cursor": cursors[-1] if cursors else None, "has_next_page": stop < len(items)},
    }


def sample(rows: Sequence[Any], samples: int | None) -> list[Any]:
    """Keep at most so many rows, evenly spread, the first and the last among them."""
    if samples is None or len(rows) <= samples:
        return list(rows)
    if samples < 2:
        return list(rows[:samples])
    return [rows[round(index * (len(rows) - 1) / (samples - 1))] for index in range(samples)]


def spell_out(value: Any) -> Any:
    """Replace the numbers that JSON lacks by words: an answer cannot have them bare, as a history's line does."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: spell_out(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [spell_out(inner) for inner in value]
    return value


@dataclass(eq=False)
class Run:
    """A run: its config as the server keeps it ({key: {"value": ...}}), its history's lines as the client sent them."""

    project: Project = field(repr=False)
    name: str
    display_name: str
    created_at: str
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history_lines: list[str] = field(default_factory=list, repr=False)
    event_lines: list[str] = field(default_factory=list)
    log_lines: list[str] = field(default_factory=list)
    state: str = "running"
    exit_code: int | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    notes: str | None = None
    description: str | None = None
    commit: str | None = None
    host: str | None = None
    program: str | None = None
    sweep_name: str | None = None
    heartbeat_at: str = field(default_factory=now)
    files: dict[str, StoredFile] = field(default_factory=dict)
    logged_artifacts: list[Artifact] = field(default_factory=list, repr=False)
    used_artifacts: list[Artifact] = field(default_factory=list, repr=False)
    # Kept beside the lines, since a reader of a thousand runs asks for the steps of each.
    parsed_lines: list[dict[str, Any]] | None = field(default=None, repr=False)

    username = "loopback"
    read_only = False
    should_stop = False

    @property
    def id(self) -> str:
        return make_id("Run", self.name, self.project.name, self.project.entity_name)

    @property
    def exitcode(self) -> int | None:
        return self.exit_code

    @property
    def running(self) -> bool:
        return self.state == "running"

    @property
    def failed(self) -> bool:
        return self.state in ("failed", "crashed")

    @property
    def stopped(self) -> bool:
        return self.state in ("finished", "killed")

    @property
    def history(self) -> list[dict[str, Any]]:
        """The history's rows."""
        if self.parsed_lines is None:
            self.parsed_lines = [json.loads(line) for line in self.history_lines]
        return self.parsed_lines

    @property
    def events(self) -> list[dict[str, Any]]:
        """The rows of the system metrics."""
        return [json.loads(line) for line in self.event_lines]

    @property
    def settings(self) -> dict[str, Any]:
        """The config as the user wrote it: without the client's own notes and without the wrappings."""
        return {key: entry["value"] for key, entry in self.config.items() if key != "_wandb"}

    @property
    def uploads(self) -> dict[str, bytes]:
        """The bytes of every uploaded file by its name."""
        return {name: file.content for name, file in self.files.items() if file.content is not None}

    def write_lines(self, kind: str, offset: int, lines: Sequence[str]) -> None:
        """Put lines where the client says that they belong: it sends some again after a failure."""
        stored: list[str] = getattr(self, kind)
        stored[offset : offset + len(lines)] = lines
        if kind == "history_lines":
            self.parsed_lines = None

    def resolve_config(self) -> str:
        return json.dumps(self.config)

    def resolve_wandb_config(self, keys: list[str] | None = None) -> str:
        own = self.config.get("_wandb", {}).get("value", {})
        return json.dumps({key: own[key] for key in keys or own if key in own})

    def resolve_summary_metrics(self) -> str:
        return json.dumps(self.summary)

    def resolve_system_metrics(self) -> str:
        return json.dumps(self.events[-1] if self.event_lines else {})

    def resolve_user(self) -> dict[str, Any]:
        return {"id": make_id("User", 1), "name": self.username, "username": self.username}

    def resolve_project_id(self) -> int:
        return self.project.internal_id

    def resolve_history_line_count(self) -> int:
        return len(self.history_lines)

    def resolve_events_line_count(self) -> int:
        return len(self.event_lines)

    def resolve_log_line_count(self) -> int:
        return len(self.log_lines)

    def resolve_history_tail(self) -> str:
        return json.dumps(self.history_lines[-1:])

    def resolve_events_tail(self) -> str:
        return json.dumps(self.event_lines[-1:])

    def resolve_history_keys(self) -> dict[str, Any] | None:
        if not self.history_lines:
            return None
        counts = Counter(itertools.chain.from_iterable(self.history))
        keys = {key: {"typeCounts": [{"type": "number", "count": count}]} for key, count in counts.items()}
        return {"sets": [], "keys": keys, "lastStep": self.history[-1]["_step"]}

    def resolve_history(self, min_step: int = 0, max_step: int | None = None, samples: int | None = None) -> list[str]:
        stop = math.inf if max_step is None else max_step
        rows = zip(self.history, self.history_lines, strict=True)
        return sample([line for row, line in rows if min_step <= row["_step"] < stop], samples)

    def resolve_events(self, samples: int | None = None) -> list[str]:
        return sample(self.event_lines, samples)

    def resolve_sampled_history(self, specs: list[str]) -> list[list[dict[str, Any]]]:
        return [self._sample_keys(**json.loads(spec)) for spec in specs]

    def _sample_keys(
        self, keys: list[str] | tuple[()] = (), samples: int | None = None, minStep: int = 0, maxStep: int | None = None
    ) -> list[dict[str, Any]]:
        # Here, unlike in a page of the history, the client counts the last step in.
        last = math.inf if maxStep is None else maxStep
        rows = [row for row in self.history if minStep <= row["_step"] <= last and all(key in row for key in keys)]
        return [{key: row[key] for key in keys} for row in sample(rows, samples)]

    def resolve_parquet_history(self, live_keys: list[str]) -> dict[str, Any]:
        # No history was exported to Parquet yet: all of it is live.
        return {"parquet_urls": [], "live_data": [{key: row.get(key) for key in live_keys} for row in self.history]}

    def resolve_file_count(self) -> int:
        return len(self.uploads)

    def resolve_files(
        self,
        names: list[str] | None = None,
        after: str | None = None,
        first: int | None = None,
        pattern: str | None = None,
    ) -> dict[str, Any]:
        like = re.compile(".*".join(map(re.escape, (pattern or "%").split("%"))))
        files = [self.files[name] for name in self.uploads if like.fullmatch(name) and (not names or name in names)]
        return paginate(files, after, first)

    def resolve_output_artifacts(self, after: str | None = None, first: int | None = None) -> dict[str, Any]:
        return paginate(self.logged_artifacts, after, first)

    def resolve_input_artifacts(self, after: str | None = None, first: int | None = None) -> dict[str, Any]:
        return paginate(self.used_artifacts, after, first)


@dataclass(eq=False)
class Sweep:
    """A sweep: its config is YAML text, as the server keeps it."""

    name: str
    config: str
    method: str | None
    state: str = "RUNNING"
    display_name: str | None = None
    description: str | None = None
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)
    run_count: int = 0
    controller_run_name: str | None = None
    project: Project | None = field(default=None, repr=False)
    runs: list[Run] = field(default_factory=list, repr=False)

    best_loss = None
    run_count_expected = None
    heartbeat_at = None
    early_stop_job_running = False
    controller = None
    scheduler = None

    @property
    def id(self) -> str:
        return make_id("Sweep", self.name)

    def resolve_runs(self, first: int | None = None, after: str | None = None) -> dict[str, Any]:
        return paginate(self.runs, after, first)


@dataclass(eq=False)
class View:
    """A saved view: a report is one of type "runs", its draft one of type "runs/draft"."""

    id: str
    project: Project = field(repr=False)
    type: str
    name: str
    spec: str
    display_name: str | None = None
    description: str | None = None
    created_at: str = field(default_factory=now)
    updated_at: str = field(default_factory=now)

    user = None


@dataclass(frozen=True)
class Chart:
    """A custom chart's preset, with its Vega specification parsed."""

    entity: str
    name: str
    display_name: str
    type: str
    access: str
    spec: dict[str, Any]

    @property
    def id(self) -> str:
        return f"{self.entity}/{self.name}"


@dataclass(eq=False)
class Project:
    """A project with everything in it, by name."""

    entity_name: str
    name: str
    internal_id: int
    created_at: str = field(default_factory=now)
    description: str | None = None
    runs: dict[str, Run] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    collections: dict[str, ArtifactSequence] = field(default_factory=dict)

    access = "TEAM"
    read_only = False
    is_benchmark = False
    user = None

    @property
    def id(self) -> str:
        return make_id("Project", self.name, self.entity_name)

    @property
    def entity(self) -> dict[str, Any]:
        return {"id": make_id("Entity", self.entity_name), "name": self.entity_name}

    def resolve_views(self) -> None:
        return None

    def resolve_run(self, name: str) -> Run | None:
        return self.runs.get(name)

    def resolve_bucket(self, name: str, missing_ok: bool | None = None) -> Run | None:
        return self.runs.get(name)

    def _select(self, filters: str | None) -> list[Run]:
        condition = json.loads(filters or "{}") or {}
        return [run for run in self.runs.values() if wandb_filters.matches(run, condition)]

    def resolve_run_count(self, filters: str | None = None) -> int:
        return len(self._select(filters))

    def resolve_runs(
        self, filters: str | None = None, after: str | None = None, first: int | None = None, order: str | None = None
    ) -> dict[str, Any]:
        return paginate(wandb_filters.sort_runs(self._select(filters), order), after, first)

    def resolve_total_sweeps(self) -> int:
        return len(self.sweeps)

    def resolve_sweep(self, sweep_name: str) -> Sweep | None:
        sweep = self.sweeps.get(sweep_name)
        runs = self.runs_of_sweep(sweep_name)
        return sweep and dataclasses.replace(sweep, run_count=len(runs), project=self, runs=runs)

    def runs_of_sweep(self, sweep_name: str) -> list[Run]:
        return [run for run in self.runs.values() if run.sweep_name == sweep_name]

    def resolve_sweeps(
        self, after: str | None = None, first: int | None = None, filters: str | None = None
    ) -> dict[str, Any]:
        return paginate(list(self.sweeps.values()), after, first)

    def resolve_all_views(
        self,
        view_type: str | None = None,
        view_name: str | None = None,
        first: int | None = None,
        after: str | None = None,
    ) -> dict[str, Any]:
        views = [view for view in self.views.values() if view.type == view_type and view_name in (None, view.name)]
        return paginate(views, after, first)

    def resolve_artifact_type(self, name: str) -> dict[str, Any]:
        of_type = {key: value for key, value in self.collections.items() if value.type_name == name}
        return {"name": name, "collections": of_type}

    def resolve_artifact_collection(self, name: str) -> ArtifactSequence | None:
        return self.collections.get(name)

    def resolve_artifact_collection_membership(self, name: str) -> dict[str, Any] | None:
        collection, _, alias = name.partition(":")
        found = self.collections.get(collection)
        return found and found.resolve_artifact_membership(alias or "latest")

    def resolve_artifact(self, name: str) -> Artifact | None:
        membership = self.resolve_artifact_collection_membership(name)
        return membership and membership["artifact"]


def hash_key(*parts: str) -> str:
    """Shorten names to something that fits into a URL."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
