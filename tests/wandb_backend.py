"""How does the loopback W&B server answer the client's GraphQL operations?

Operations are parsed, validated against tests/wandb_schema.graphql and executed by graphql-core.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphql import (
    GraphQLError,
    GraphQLInputObjectType,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    build_schema,
    execute_sync,
    is_abstract_type,
    parse,
    validate,
)
from graphql.language import DocumentNode
from wandb_artifacts import ArtifactSequence, ArtifactStore
from wandb_records import Chart, Project, Run, View, hash_key, make_id, now, paginate, spell_out
from wandb_sweep_operations import Agent, SweepOperations

# What this server can do of all that W&B's own can, and the client asks for by name.
FEATURES = (
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILES",
    "ARTIFACT_COLLECTION_MEMBERSHIP_FILE_DOWNLOAD_HANDLER",
    "ARTIFACT_DIGEST_ALGORITHM",
    "ARTIFACT_TAGS",
    "ARTIFACT_V2_DOWNLOAD_HANDLER_SUPPORTS_ARTIFACT_ID",
    "CLIENT_IDS",
    "FILESTREAM_GZIP",
    "LARGE_FILENAMES",
    "MARK_RUN_FILES_UPLOADED",
    "PROJECT_ARTIFACT_COLLECTION_MEMBERSHIP",
    "STRUCTURED_CONSOLE_LOGS",
    "SWEEPS_QUERY_FILTERING",
    "TOTAL_COUNT_IN_FILE_CONNECTION",
    "USE_ARTIFACT_WITH_ENTITY_AND_PROJECT_INFORMATION",
)
_WORD_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


@functools.cache
def _to_snake_case(name: str) -> str:
    return _WORD_BOUNDARY.sub("_", name).lower()


@functools.cache
def load_schema() -> GraphQLSchema:
    """Build the schema, with arguments and input fields handed over in snake case."""
    schema = build_schema(Path(__file__).with_name("wandb_schema.graphql").read_text())
    for kind in schema.type_map.values():
        if isinstance(kind, GraphQLInputObjectType):
            for name, input_field in kind.fields.items():
                input_field.out_name = _to_snake_case(name)
        elif isinstance(kind, GraphQLObjectType):
            for described in kind.fields.values():
                for name, argument in described.args.items():
                    argument.out_name = _to_snake_case(name)
        elif is_abstract_type(kind):
            kind.resolve_type = lambda value, *_: type(value).__name__
    # The answer is JSON, which has no number for a history's NaN.
    schema.type_map["JSON"].coerce_output_value = spell_out
    return schema


def _resolve(source: Any, info: GraphQLResolveInfo, **arguments: Any) -> Any:
    name = _to_snake_case(info.field_name)
    resolver = getattr(source, f"resolve_{name}", None)
    if resolver is not None:
        return resolver(**arguments)
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name)


@functools.lru_cache(maxsize=256)
def _check(query: str) -> tuple[DocumentNode | None, tuple[str, ...]]:
    """Parse and validate a document; return it, or what is wrong with it."""
    try:
        document = parse(query)
    except GraphQLError as error:
        return None, (error.message,)
    return document, tuple(error.message for error in validate(load_schema(), document))


@dataclass
class Backend(SweepOperations):
    """The server's memory, and the root of every query and mutation."""

    entity: str
    features: set[str] = field(default_factory=lambda: set(FEATURES))
    charts_are_updatable: bool = False
    projects: dict[tuple[str, str], Project] = field(default_factory=dict)
    charts: dict[tuple[str, str], Chart] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    deleted_runs: list[Run] = field(default_factory=list)
    deleted_views: list[View] = field(default_factory=list)
    agents: dict[str, Agent] = field(default_factory=dict)
    store: ArtifactStore = field(default_factory=ArtifactStore)

    def execute(self, query: str, variables: Mapping[str, Any] | None) -> tuple[int, dict[str, Any]]:
        """Answer an operation: the HTTP status and the body."""
        document, errors = _check(query)
        if document is None or errors:
            return 400, {"errors": [{"message": message} for message in errors]}
        result = execute_sync(
            load_schema(), document, root_value=self, variable_values=dict(variables or {}), field_resolver=_resolve
        )
        answer: dict[str, Any] = {"data": result.data}
        if result.errors:
            answer["errors"] = [error.formatted for error in result.errors]
        # An error without a path lies before the execution: in the variables.
        refused = any(error.path is None for error in result.errors or ())
        return 400 if refused else 200, answer

    def ensure_project(self, entity: str, name: str) -> Project:
        """Return the project; make it where there is none, as W&B does for a first run."""
        if (entity, name) not in self.projects:
            self.projects[entity, name] = Project(entity, name, internal_id=len(self.projects) + 1)
        return self.projects[entity, name]

    def find_run(self, entity: str, project: str, name: str) -> Run | None:
        found = self.projects.get((entity, project))
        return found and found.runs.get(name)

    def _require_run(self, entity: str, project: str, name: str) -> Run:
        run = self.find_run(entity, project, name)
        if run is None:
            raise GraphQLError(f"run {entity}/{project}/{name} not found")
        return run

    def receive_stream(self, run: Run, body: Mapping[str, Any]) -> None:
        """Store what a run's file stream brings: lines of its history, its summary, and how it ended."""
        kinds = {"wandb-history.jsonl": "history_lines", "wandb-events.jsonl": "event_lines", "output.log": "log_lines"}
        for name, chunk in (body.get("files") or {}).items():
            if name in kinds:
                run.write_lines(kinds[name], chunk["offset"], chunk["content"])
            elif name == "wandb-summary.json":
                run.summary = json.loads(chunk["content"][-1])
        run.heartbeat_at = now()
        if body.get("complete"):
            run.exit_code = body["exitcode"]
            run.state = "finished" if run.exit_code == 0 else "failed"

    # Queries

    def resolve_viewer(self) -> dict[str, Any]:
        return {
            "id": make_id("User", 1),
            "name": "Loopback User",
            "username": Run.username,
            "email": "user@example.com",
            "admin": False,
            "flags": "{}",
            "entity": self.entity,
            "api_keys": {"edges": []},
            "teams": {"edges": [{"node": {"id": make_id("Entity", self.entity), "name": self.entity}}]},
            "organizations": [],
        }

    def resolve_server_info(self) -> dict[str, Any]:
        return {"features": [{"name": name, "is_enabled": True} for name in sorted(self.features)]}

    def resolve_entity(self, name: str) -> dict[str, Any]:
        return {"id": make_id("Entity", name), "name": name, "is_team": True, "xxhash_digests_enabled": False}

    def resolve_organization(self, name: str) -> dict[str, Any]:
        return {"name": name}

    def resolve_project(self, name: str | None = None, entity_name: str | None = None) -> Project | None:
        return self.projects.get((entity_name or self.entity, name or ""))

    resolve_model = resolve_project

    def resolve_models(
        self, entity_name: str | None = None, after: str | None = None, first: int | None = None
    ) -> dict[str, Any]:
        found = [project for project in self.projects.values() if project.entity_name == (entity_name or self.entity)]
        return paginate(found, after, first)

    def resolve_artifact(self, id: str) -> Any:
        return self.store.by_id.get(id)

    def resolve_client_id_mapping(self, client_id: str) -> dict[str, str] | None:
        found = self.store.ids_by_client_id.get(client_id)
        return {"server_id": found} if found else None

    def resolve_view(self, id: str) -> View | None:
        return self.views.get(id)

    # Mutations

    def resolve_upsert_bucket(self, input: dict[str, Any]) -> dict[str, Any]:
        if input.get("id"):
            run, inserted = self._find_run_by_id(input["id"]), False
        else:
            project = self.ensure_project(input.get("entity_name") or self.entity, input["model_name"])
            inserted = input["name"] not in project.runs
            if inserted:
                project.runs[input["name"]] = Run(
                    project, input["name"], f"run-{len(project.runs) + 1}", created_at=now()
                )
            run = project.runs[input["name"]]
        names = {"group_name": "group", "job_program": "program", "sweep": "sweep_name"}
        plain = {"display_name", "description", "notes", "commit", "host", "job_type", "state", "tags", *names}
        for key in plain & {key for key, value in input.items() if value is not None}:
            setattr(run, names.get(key, key), input[key])
        if input.get("config") is not None:
            run.config = json.loads(input["config"])
        if input.get("summary_metrics") is not None:
            run.summary = json.loads(input["summary_metrics"])
        return {"bucket": run, "inserted": inserted}

    def _find_run_by_id(self, run_id: str) -> Run:
        for project in self.projects.values():
            for run in project.runs.values():
                if run.id == run_id:
                    return run
        raise GraphQLError(f"run {run_id} not found")

    def resolve_delete_run(self, input: dict[str, Any]) -> dict[str, Any]:
        run = self._find_run_by_id(input["id"])
        self.deleted_runs.append(run.project.runs.pop(run.name))
        return {"client_mutation_id": None}

    def resolve_upsert_model(self, input: dict[str, Any]) -> dict[str, Any]:
        entity = input.get("entity_name") or self.entity
        inserted = (entity, input["name"]) not in self.projects
        project = self.ensure_project(entity, input["name"])
        project.description = input.get("description") or project.description
        return {"project": project, "model": project, "inserted": inserted}

    def resolve_create_run_files(self, input: dict[str, Any]) -> dict[str, Any]:
        run = self._require_run(input["entity_name"], input["project_name"], input["run_name"])
        for name in input["files"]:
            key = f"runs/{hash_key(run.id, name)}"
            run.files[name] = self.store.announce_file(name, key)
        return {"run_id": run.id, "upload_headers": [], "files": [run.files[name] for name in input["files"]]}

    def resolve_mark_run_files_uploaded(self, input: dict[str, Any]) -> dict[str, bool]:
        self._require_run(input["entity_name"], input["project_name"], input["run_name"])
        return {"success": True}

    def resolve_create_artifact(self, input: dict[str, Any]) -> dict[str, Any]:
        project = self.ensure_project(input["entity_name"], input["project_name"])
        run = self._require_run(project.entity_name, project.name, input["run_name"]) if input.get("run_name") else None
        return {"artifact": self.store.create(project, run, input)}

    def resolve_create_artifact_manifest(self, input: dict[str, Any]) -> dict[str, Any]:
        artifact = self.store.by_id[input["artifact_id"]]
        return {"artifact_manifest": self.store.create_manifest(artifact, input["name"], input["digest"])}

    def resolve_update_artifact_manifest(self, input: dict[str, Any]) -> dict[str, Any]:
        manifest = self.store.manifests[input["artifact_manifest_id"]]
        manifest.digest = input.get("digest") or manifest.digest
        return {"artifact_manifest": manifest}

    def resolve_create_artifact_files(self, input: dict[str, Any]) -> dict[str, Any]:
        files = [self.store.announce_artifact_file(wanted) for wanted in input["artifact_files"]]
        return {"files": paginate(files, None, None)}

    def resolve_commit_artifact(self, input: dict[str, Any]) -> dict[str, Any]:
        artifact = self.store.by_id[input["artifact_id"]]
        artifact.artifact_sequence.commit(artifact)
        return {"artifact": artifact}

    def resolve_use_artifact(self, input: dict[str, Any]) -> dict[str, Any]:
        run = self._require_run(input["entity_name"], input["project_name"], input["run_name"])
        artifact = self.store.by_id[input["artifact_id"]]
        run.used_artifacts.append(artifact)
        return {"artifact": artifact}

    def resolve_delete_artifact(self, input: dict[str, Any]) -> dict[str, Any]:
        artifact = self.store.by_id[input["artifact_id"]]
        artifact.artifact_sequence.delete(artifact)
        return {"artifact": artifact}

    def resolve_upsert_view(self, input: dict[str, Any]) -> dict[str, Any]:
        changes = {key: input[key] for key in ("type", "name", "display_name", "description", "spec") if key in input}
        if input.get("id"):
            view = self.views.get(input["id"])
            if view is None:
                raise GraphQLError(f"view {input['id']} not found")
            for key, value in changes.items():
                setattr(view, key, value)
            view.updated_at = now()
            return {"view": view, "inserted": False}
        project = self.projects.get((input["entity_name"], input["project_name"]))
        if project is None:
            raise GraphQLError(f"project {input['entity_name']}/{input['project_name']} not found")
        view_id = make_id("View", len(self.views) + len(self.deleted_views) + 1)
        view = View(id=view_id, project=project, **changes)
        self.views[view_id] = project.views[view_id] = view
        return {"view": view, "inserted": True}

    def resolve_delete_view(self, input: dict[str, Any]) -> dict[str, Any]:
        view = self.views.pop(input["id"], None)
        if view is None:
            raise GraphQLError(f"view {input['id']} not found")
        del view.project.views[view.id]
        self.deleted_views.append(view)
        return {"success": True, "pending_drafts": False}

    def resolve_create_custom_chart(self, input: dict[str, Any]) -> dict[str, Any]:
        key = input["entity"], input["name"]
        if key in self.charts and not self.charts_are_updatable:
            raise GraphQLError(f"custom chart {'/'.join(key)} already exists")
        self.charts[key] = Chart(**{**input, "spec": json.loads(input["spec"])})
        return {"chart": self.charts[key]}

    def list_collections(self) -> list[ArtifactSequence]:
        """Return every collection of artifacts of every project."""
        return [collection for project in self.projects.values() for collection in project.collections.values()]
