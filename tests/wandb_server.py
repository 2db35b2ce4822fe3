"""A stand-in for W&B's server on 127.0.0.1: the real client works against it, and tests read what it was sent.

    with LoopbackServer() as server:
        environment = server.environment()

It speaks the client's GraphQL operations, file streams and uploads. It can be told to fail, and it keeps every request.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import re
import secrets
import tempfile
import threading
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb_artifacts import Artifact
from wandb_backend import Backend
from wandb_http import Failure, HttpServer, Request
from wandb_records import Chart, Run, Sweep, View, now

DEFAULT_ENTITY = "playbook-team"
_END_SECONDS = 60.0


class LoopbackServer:
    """The server: a context manager that listens as long as the context lasts.

    Attributes
    ----------
    backend
        What it remembers, in plain Python: projects with their runs, sweeps and views; charts.
    requests
        Every request, in the order of arrival.
    invalid
        GraphQL requests that do not fit tests/wandb_schema.graphql; each was refused with HTTP 400.
    unknown
        Requests to paths that this server does not have.
    """

    def __init__(self, entity: str = DEFAULT_ENTITY) -> None:
        self.entity = entity
        self.api_key = secrets.token_hex(20)
        self.backend = Backend(entity)
        self.requests: list[Request] = []
        self.invalid: list[tuple[Request, list[str]]] = []
        self.unknown: list[Request] = []
        self._failures: list[Failure] = []
        self._lock = threading.RLock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> LoopbackServer:
        self._http = HttpServer(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.backend.store.base_url = self.url
        self._folder = tempfile.TemporaryDirectory(prefix="playbook-wandb-", ignore_cleanup_errors=True)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()
        self._http.shutdown()
        self._thread.join()
        self._http.close_connections()
        self._http.server_close()
        if self._folder is not None:
            self._folder.cleanup()

    def environment(self, folder: Path | None = None) -> dict[str, str]:
        """Return the variables under which the client talks to this server and writes below `folder` only."""
        assert self._folder is not None
        folder = Path(self._folder.name) if folder is None else folder
        folders = {name: folder / name.lower() for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR")}
        folders["ARTIFACT_DIR"] = folder / "artifacts"
        for path in folders.values():
            path.mkdir(parents=True, exist_ok=True)
        return {
            **{f"WANDB_{name}": str(path) for name, path in folders.items()},
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": self.api_key,
            "WANDB_ENTITY": self.entity,
            "WANDB_MODE": "online",
            "WANDB_SILENT": "true",
            "WANDB_CONSOLE": "off",
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DISABLE_CODE": "true",
            "WANDB_DISABLE_GIT": "true",
            "WANDB_X_DISABLE_STATS": "true",
            "WANDB_X_DISABLE_META": "true",
            "WANDB_X_SAVE_REQUIREMENTS": "false",
            # No key of the person who runs the tests.
            "NETRC": str(folder / "netrc"),
        }

    @property
    def charts_are_updatable(self) -> bool:
        """Whether a second custom chart of one name replaces the first; otherwise it is an error.

        What W&B's own server does is not documented, so that a program has to cope with both.
        """
        return self.backend.charts_are_updatable

    @charts_are_updatable.setter
    def charts_are_updatable(self, updatable: bool) -> None:
        self.backend.charts_are_updatable = updatable

    # What was received

    @property
    def runs(self) -> list[Run]:
        """Every run of every project, in the order of creation."""
        return [run for project in list(self.backend.projects.values()) for run in list(project.runs.values())]

    def find_run(self, name: str) -> Run:
        """Return the only run of this id or, failing that, of this display name."""
        found = [run for run in self.runs if run.name == name] or [run for run in self.runs if run.display_name == name]
        if len(found) != 1:
            raise KeyError(f"{len(found)} runs are called {name!r}")
        return found[0]

    @property
    def artifacts(self) -> list[Artifact]:
        """Every committed version of every artifact; `files` has its bytes."""
        return [version for collection in self.backend.list_collections() for version in collection.versions]

    @property
    def reports(self) -> list[View]:
        """Every saved report and draft."""
        return list(self.backend.views.values())

    @property
    def charts(self) -> dict[tuple[str, str], Chart]:
        """Every custom chart by (entity, name)."""
        return self.backend.charts

    @property
    def received(self) -> list[bytes]:
        """What came in beside Authorization headers: one entry per request, with path, other headers and body."""
        return [
            b"\n".join([f"{one.method} {one.path}".encode(), json.dumps(one.headers).encode(), one.body])
            for one in list(self.requests)
        ]

    def count(self, operation: str) -> int:
        """Count the requests of a GraphQL operation."""
        return sum(request.operation == operation for request in list(self.requests))

    # What a test plants

    def plant_run(
        self,
        entity: str,
        project: str,
        *,
        name: str,
        config: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        state: str = "finished",
        display_name: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        job_type: str | None = None,
        sweep: str | None = None,
        notes: str | None = None,
        created_at: str | None = None,
    ) -> Run:
        """Put a run there as if a client had logged it; rows without `_step` are numbered."""
        rows = [{"_step": step, **row} for step, row in enumerate(history)]
        home = self.backend.ensure_project(entity, project)
        home.runs[name] = Run(
            project=home,
            name=name,
            display_name=display_name or name,
            created_at=created_at or now(),
            config={key: {"value": value} for key, value in (config or {}).items()},
            summary=dict(summary or {}),
            history_lines=[json.dumps(row) for row in rows],
            state=state,
            group=group,
            tags=list(tags),
            job_type=job_type,
            sweep_name=sweep,
            notes=notes,
            parsed_lines=rows,
        )
        return home.runs[name]

    def add_sweep(self, entity: str, project: str, sweep_id: str, config: Mapping[str, Any]) -> Sweep:
        """Put a sweep there."""
        sweep = Sweep(sweep_id, yaml.safe_dump(dict(config)), config.get("method"))
        self.backend.ensure_project(entity, project).sweeps[sweep_id] = sweep
        return sweep

    # Failures

    def fail(
        self,
        kind: int | str,
        *,
        times: int | None = 1,
        operation: str | None = None,
        path: str | None = None,
        retry_after: float = 1,
    ) -> None:
        """Fail the next requests of an operation or of paths that match a pattern.

        Parameters
        ----------
        kind
            An HTTP status, "drop" (the socket is closed without an answer) or "hang" (no answer for a long time).
        times
            How many requests fail; None stands for all until `heal`.
        operation
            Only this GraphQL operation.
        path
            Only paths in which this regular expression is found, such as "file_stream".
        retry_after
            The seconds in the Retry-After header of status 429.
        """
        with self._lock:
            self._failures.append(Failure(kind, times, operation, path, retry_after))

    def heal(self) -> None:
        """Forget every failure, and let go of the requests that hang."""
        with self._lock:
            for failure in self._failures:
                failure.healed.set()
            self._failures.clear()

    # The protocol

    def take_failure(self, request: Request) -> Failure | None:
        """Return the failure that a request meets, counted down."""
        with self._lock:
            for failure in self._failures:
                if failure.concerns(request):
                    failure.left = None if failure.left is None else failure.left - 1
                    return failure
        return None

    def answer(self, request: Request) -> tuple[int, bytes]:
        """Answer a request: the status and the body."""
        path = urllib.parse.urlsplit(request.path).path
        if path.startswith("/storage/"):
            return self._answer_storage(request, path.removeprefix("/storage/"))
        expected = "Basic " + base64.b64encode(f"api:{self.api_key}".encode()).decode()
        if request.authorization != expected:
            return 401, json.dumps({"errors": [{"message": "user is not logged in"}]}).encode()
        with self._lock:
            if request.method == "POST" and path == "/graphql":
                status, answer = self.backend.execute(request.query or "", request.variables)
                if status == 400:
                    self.invalid.append((request, [error["message"] for error in answer["errors"]]))
                return status, json.dumps(answer).encode()
            stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
            if request.method == "POST" and stream is not None:
                run = self.backend.find_run(*map(urllib.parse.unquote, stream.groups()))
                if run is None:
                    return 404, b'{"error": "run not found"}'
                self.backend.receive_stream(run, json.loads(request.body))
                return 200, b"{}"
        self.unknown.append(request)
        return 404, b'{"error": "not found"}'

    def _answer_storage(self, request: Request, key: str) -> tuple[int, bytes]:
        with self._lock:
            file = self.backend.store.files_by_key.get(key)
            if file is None:
                return 404, b""
            if request.method == "PUT":
                file.content, file.updated_at = request.body, now()
                return 200, b""
            return (404, b"") if file.content is None else (200, file.content)


def end_client() -> None:
    """End the client's side-car; once in a while it does not end by itself, and the client waits for it for ever."""
    import psutil
    import wandb

    ending = threading.Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(_END_SECONDS)
    if ending.is_alive():
        for child in psutil.Process().children():
            if child.name().startswith("wandb-core"):
                child.kill()
        ending.join()


def forget_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """End the client that an earlier test left, and take W&B's variables out of the environment.

    In this order: the address of a side-car stands in the environment too, and would come back after the test.
    """
    end_client()
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def start_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    """Yield a server that this process's W&B client talks to; end the client's side-car afterwards."""
    with warnings.catch_warnings():
        # The package still declares its models in Pydantic's old way, and says so once, at its first import.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="wandb_workspaces")
        import wandb_workspaces.reports.v2  # noqa: F401
    from wandb.sdk import wandb_setup

    with LoopbackServer() as server:
        forget_client(monkeypatch)
        for name, value in server.environment(tmp_path / "wandb").items():
            monkeypatch.setenv(name, value)
        yield server
        server.heal()
        # A run that a failed test left open would have its threads raise in the next test.
        wandb_setup.singleton().finish_all_active_runs()
        end_client()
    with warnings.catch_warnings():
        # The client's tables leave folders behind, of which any later test would be told.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
