"""Does the real W&B client work against the loopback server, and does the server keep what it was sent?"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb
from wandb.errors import CommError
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_server import DEFAULT_ENTITY, LoopbackServer, start_server

PROJECT = f"{DEFAULT_ENTITY}/tuning"


@pytest.fixture(autouse=True)
def _all_requests_are_understood(wandb_server: LoopbackServer) -> Iterator[None]:
    yield
    assert wandb_server.invalid == []
    assert wandb_server.unknown == []


def test_a_client_that_an_earlier_test_left_does_not_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.setup()
    assert "WANDB_SERVICE" in os.environ
    with pytest.MonkeyPatch.context() as patch:
        next(start_server(tmp_path / "later", patch))
    assert "WANDB_SERVICE" not in os.environ


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client try twice, one second apart, and wait one second for each answer."""
    for kind in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER"):
        monkeypatch.setenv(f"WANDB_X_{kind}_RETRY_MAX", "1")
        monkeypatch.setenv(f"WANDB_X_{kind}_RETRY_WAIT_MIN_SECONDS", "1")
        monkeypatch.setenv(f"WANDB_X_{kind}_RETRY_WAIT_MAX_SECONDS", "1")
        monkeypatch.setenv(f"WANDB_X_{kind}_TIMEOUT_SECONDS", "1")


def _log_run(**settings: object) -> str:
    with wandb.init(project="tuning", reinit="create_new", **settings) as run:
        run.log({"loss": 1.0})
    return run.id


def _save_chart() -> str:
    return wandb.Api().create_custom_chart(
        entity=DEFAULT_ENTITY,
        name="curve",
        display_name="Curve",
        spec_type="vega2",
        access="private",
        spec={"mark": "bar"},
    )


def test_a_run_arrives_with_everything_that_it_logged(wandb_server: LoopbackServer) -> None:
    run = wandb.init(
        project="tuning",
        name="first",
        group="round-1",
        job_type="train",
        tags=["a", "b"],
        notes="a note",
        config={"lr": 0.1, "optimizer": {"name": "adam"}},
        reinit="create_new",
    )
    run.define_metric("loss", step_metric="epoch", summary="min")
    for epoch, loss in enumerate([1.0, 0.25, 0.5]):
        run.log({"loss": loss, "epoch": epoch})
    run.log({"table": wandb.Table(columns=["x", "y"], data=[[1, 2.5], [3, 4.5]]), "page": wandb.Html("<p>hi</p>")})
    run.config.update({"batch_size": 8})
    run.summary["best"] = 0.25
    artifact = wandb.Artifact("model", "weights", metadata={"epoch": 2})
    with artifact.new_file("folder/weights.bin", mode="wb") as file:
        file.write(bytes(range(256)))
    run.log_artifact(artifact, aliases=["best"]).wait()
    run.finish()

    received = wandb_server.find_run("first")
    assert received.settings == {"lr": 0.1, "optimizer": {"name": "adam"}, "batch_size": 8}
    assert (received.group, received.job_type, received.tags) == ("round-1", "train", ["a", "b"])
    assert (received.notes, received.state, received.exit_code) == ("a note", "finished", 0)
    assert [row["loss"] for row in received.history[:3]] == [1.0, 0.25, 0.5]
    assert [row["_step"] for row in received.history] == [0, 1, 2, 3]
    assert received.summary["best"] == 0.25
    assert received.summary["loss"] == {"min": 0.25}
    assert received.config["_wandb"]["value"]["m"][0]["1"] == "loss"
    page = received.uploads[received.history[3]["page"]["path"]]
    assert b"<p>hi</p>" in page

    versions = {artifact.type_name: artifact for artifact in wandb_server.artifacts}
    assert versions["weights"].files == {"folder/weights.bin": bytes(range(256))}
    assert json.loads(versions["weights"].metadata or "") == {"epoch": 2}
    assert [alias["alias"] for alias in versions["weights"].resolve_aliases()] == ["latest", "best"]
    table = json.loads(versions["run_table"].files["table.table.json"])
    assert table["data"] == [[1, 2.5], [3, 4.5]]
    assert table["columns"] == ["x", "y"]


def test_a_run_that_fails_is_a_failed_run(wandb_server: LoopbackServer) -> None:
    run = wandb.init(project="tuning", reinit="create_new")
    run.finish(exit_code=3)

    assert (wandb_server.runs[0].state, wandb_server.runs[0].exit_code) == ("failed", 3)


def test_numbers_beyond_json_arrive_bare_in_a_history_and_come_back(wandb_server: LoopbackServer) -> None:
    values = [0.1 + 0.2, math.nan, math.inf, -math.inf, 5e-324]
    with wandb.init(project="tuning", reinit="create_new") as run:
        for value in values:
            run.log({"loss": value})
    lines = wandb_server.runs[0].history_lines
    for word, line in zip(["NaN", "Infinity", "-Infinity"], lines[1:4], strict=True):
        assert f'"loss":{word}' in line

    reader = wandb.Api().run(f"{PROJECT}/{run.id}")
    everything = [row["loss"] for row in reader.scan_history()]
    assert everything[:1] + everything[2:] == values[:1] + values[2:]
    assert math.isnan(everything[1])
    # With keys the rows travel as JSON itself, which has no such numbers; the server writes words.
    chosen = [row["loss"] for row in reader.scan_history(keys=["loss"])]
    assert chosen == [values[0], "NaN", "Infinity", "-Infinity", values[4]]


def test_numbers_beyond_json_in_config_and_summary(wandb_server: LoopbackServer) -> None:
    with wandb.init(project="tuning", config={"lr": math.nan, "cap": math.inf}, reinit="create_new") as run:
        run.log({"loss": math.nan})
        run.summary["chosen"] = math.nan
        run.summary["bound"] = math.inf
    reader = wandb.Api().run(f"{PROJECT}/{run.id}")

    # The client itself writes null for a config's NaN, and drops a summary's NaN that is set by hand.
    assert reader.config == {"lr": None, "cap": math.inf}
    assert math.isnan(reader.summary["loss"])
    assert "chosen" not in reader.summary.keys()  # noqa: SIM118 - the summary has no __contains__ of its own
    assert reader.summary["bound"] == math.inf


def test_threads_log_runs_at_the_same_time(wandb_server: LoopbackServer) -> None:
    def train(worker: int) -> None:
        with wandb.init(
            project="tuning", name=f"worker-{worker}", reinit="create_new", config={"worker": worker}
        ) as run:
            for step in range(20):
                run.log({"value": worker * 100 + step})

    # Threads that begin runs while the client still reads its settings would get the defaults.
    wandb.setup()
    threads = [threading.Thread(target=train, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for worker in range(3):
        received = wandb_server.find_run(f"worker-{worker}")
        assert [row["value"] for row in received.history] == [worker * 100 + step for step in range(20)]
        assert received.settings == {"worker": worker}


def test_another_process_logs_a_run(wandb_server: LoopbackServer, tmp_path: Path) -> None:
    script = "import wandb\nwith wandb.init(project='tuning', name='child') as run: run.log({'loss': 2})"
    environment = {**os.environ, **wandb_server.environment(tmp_path / "child")}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=60)

    assert wandb_server.find_run("child").history[0]["loss"] == 2


def test_a_thousand_runs_are_read_with_two_requests(wandb_server: LoopbackServer) -> None:
    for index in range(1000):
        wandb_server.plant_run(
            DEFAULT_ENTITY,
            "tuning",
            name=f"run-{index:04d}",
            config={"lr": 10.0**-index, "layers": [index]},
            summary={"loss": index / 7},
            created_at=f"2026-01-01T00:{index // 60:02d}:{index % 60:02d}Z",
        )
    api = wandb.Api()
    runs = list(api.runs(PROJECT, per_page=500, lazy=False))

    assert [run.id for run in runs] == [f"run-{index:04d}" for index in range(1000)]
    assert runs[3].config == {"lr": 1e-3, "layers": [3]}
    assert runs[3].summary["loss"] == 3 / 7
    assert wandb_server.count("Runs") == 2


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["a", "b", "c"]),
        ({"config.lr": 0.1}, ["a"]),
        ({"config.lr.value": {"$in": [0.1, 0.2]}}, ["a", "b"]),
        ({"config.optimizer.name": "sgd"}, ["c"]),
        ({"summary_metrics.val.loss": {"$lt": 2}}, ["a"]),
        ({"summary_metrics.val.loss": {"$gte": 2, "$ne": 3}}, ["b"]),
        ({"group": "g"}, ["a", "b"]),
        ({"jobType": "train"}, ["a"]),
        ({"tags": "t"}, ["a", "c"]),
        ({"tags": {"$in": ["u"]}}, ["c"]),
        ({"tags": {"$nin": ["u"]}}, ["a", "b"]),
        ({"state": {"$ne": "finished"}}, ["c"]),
        ({"sweep": "s1"}, ["b"]),
        ({"display_name": {"$regex": "^The"}}, ["b"]),
        ({"name": {"$eq": "c"}}, ["c"]),
        ({"$or": [{"name": "a"}, {"$and": [{"group": None}, {"tags": "u"}]}]}, ["a", "c"]),
    ],
    ids=str,
)
def test_filters_choose_runs(wandb_server: LoopbackServer, filters: dict[str, object], names: list[str]) -> None:
    plant, home = wandb_server.plant_run, (DEFAULT_ENTITY, "tuning")
    plant(*home, name="a", config={"lr": 0.1}, summary={"val.loss": 1}, group="g", tags=["t"], job_type="train")
    plant(*home, name="b", config={"lr": 0.2}, summary={"val.loss": 2}, group="g", sweep="s1", display_name="The b")
    optimizer = {"name": "sgd"}
    plant(*home, name="c", config={"optimizer": optimizer}, summary={"val.loss": 3}, tags=["t", "u"], state="crashed")

    assert [run.id for run in wandb.Api().runs(PROJECT, filters=filters)] == names


def test_runs_come_in_the_order_asked_for(wandb_server: LoopbackServer) -> None:
    for name, loss in [("a", 2.0), ("b", 1.0), ("c", None), ("d", 3.0)]:
        summary = {} if loss is None else {"loss": loss}
        wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name=name, summary=summary)
    api = wandb.Api()

    assert [run.id for run in api.runs(PROJECT, order="-summary_metrics.loss")] == ["d", "a", "b", "c"]
    assert [run.id for run in api.runs(PROJECT, order="+summary_metrics.loss")] == ["b", "a", "d", "c"]
    assert [run.id for run in api.runs(PROJECT, order="-created_at")] == ["d", "c", "b", "a"]


def test_a_filter_that_nobody_documents_is_an_error(wandb_server: LoopbackServer) -> None:
    wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name="a")

    with pytest.raises(WandbApiFailedError, match="unknown key 'nonsense'"):
        list(wandb.Api().runs(PROJECT, filters={"nonsense": 1}))


def test_a_history_is_scanned_page_by_page(wandb_server: LoopbackServer) -> None:
    rows = [{"loss": index, **({"val": index * 2} if index % 10 == 0 else {})} for index in range(95)]
    wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name="long", history=rows)
    run = wandb.Api().run(f"{PROJECT}/long")

    assert list(run.scan_history(page_size=20)) == [{"_step": step, **row} for step, row in enumerate(rows)]
    assert wandb_server.count("HistoryPage") == 5
    assert [row["val"] for row in run.scan_history(keys=["val"])] == list(range(0, 190, 20))
    assert [row["_step"] for row in run.scan_history(min_step=90)] == [90, 91, 92, 93, 94]
    assert len(run.history(samples=10, pandas=False)) == 10
    assert run.history(keys=["val"], pandas=False)[1] == {"_step": 10, "val": 20}


def test_an_empty_history_is_scanned(wandb_server: LoopbackServer) -> None:
    wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name="empty")

    assert list(wandb.Api().run(f"{PROJECT}/empty").scan_history()) == []


def test_a_run_is_changed_and_deleted(wandb_server: LoopbackServer) -> None:
    wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name="old", config={"lr": 1})
    run = wandb.Api().run(f"{PROJECT}/old")
    run.tags = ["seen"]
    run.update()
    assert wandb_server.find_run("old").tags == ["seen"]
    assert wandb_server.find_run("old").settings == {"lr": 1}

    run.delete()
    assert wandb_server.runs == []
    with pytest.raises(CommError, match="Could not find run"):
        wandb.Api().run(f"{PROJECT}/old")


def test_projects_and_sweeps_are_found(wandb_server: LoopbackServer) -> None:
    config = {"method": "grid", "name": "the sweep", "parameters": {"lr": {"values": [1, 2]}}}
    wandb_server.add_sweep(DEFAULT_ENTITY, "tuning", "s1", config)
    wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name="a", sweep="s1")
    api = wandb.Api()
    api.create_project("another", DEFAULT_ENTITY)

    sweep = api.sweep(f"{PROJECT}/s1")
    assert (sweep.config, sweep.name, [run.id for run in sweep.runs]) == (config, "the sweep", ["a"])
    assert [project.name for project in api.projects(DEFAULT_ENTITY)] == ["tuning", "another"]
    assert api.default_entity == DEFAULT_ENTITY
    with pytest.raises(ValueError, match="Could not find project"):
        list(api.runs(f"{DEFAULT_ENTITY}/nowhere"))


def test_artifacts_are_downloaded_and_deleted(wandb_server: LoopbackServer, tmp_path: Path) -> None:
    with wandb.init(project="tuning", reinit="create_new") as run:
        for content in ("one", "two", "two"):
            artifact = wandb.Artifact("data", "dataset")
            with artifact.new_file("text.txt") as file:
                file.write(content)
            run.log_artifact(artifact).wait()
    api = wandb.Api()

    assert [one.name for one in api.run(f"{PROJECT}/{run.id}").logged_artifacts()] == ["data:v0", "data:v1"]
    first = api.artifact(f"{PROJECT}/data:v0")
    assert (Path(first.download(root=str(tmp_path / "first"))) / "text.txt").read_text() == "one"
    assert api.artifact(f"{PROJECT}/data:latest").version == "v1"
    first.delete()
    assert not api.artifact_exists(f"{PROJECT}/data:v0")


def test_a_report_is_saved_updated_listed_and_deleted(wandb_server: LoopbackServer) -> None:
    import wandb_workspaces.reports.v2 as reports

    report = reports.Report(entity=DEFAULT_ENTITY, project="tuning", title="One", blocks=[reports.H1("Head")])
    report.save(draft=True)
    assert [(view.type, view.display_name) for view in wandb_server.reports] == [("runs/draft", "One")]
    report.title = "Two"
    report.save()

    (view,) = wandb_server.reports
    assert (view.id, view.type, view.display_name) == (report.id, "runs", "Two")
    assert "Head" in view.spec
    listed = wandb.Api().reports(PROJECT)
    assert [(one.id, one.display_name) for one in listed] == [(report.id, "Two")]
    assert reports.Report.from_url(report.url).blocks == [reports.H1("Head")]
    assert report.delete()
    assert wandb_server.reports == []


def test_a_custom_chart_is_kept(wandb_server: LoopbackServer) -> None:
    assert _save_chart() == f"{DEFAULT_ENTITY}/curve"
    chart = wandb_server.charts[DEFAULT_ENTITY, "curve"]
    assert (chart.spec, chart.access, chart.type) == ({"mark": "bar"}, "PRIVATE", "vega2")

    with pytest.raises(WandbApiFailedError, match="already exists"):
        _save_chart()
    wandb_server.charts_are_updatable = True
    assert _save_chart() == f"{DEFAULT_ENTITY}/curve"


@pytest.mark.parametrize("query", ["query Odd { nothing }", "query Odd {", "query Odd { viewer { id(x: 1) } }"])
def test_an_operation_outside_the_schema_is_refused(wandb_server: LoopbackServer, query: str) -> None:
    with pytest.raises(WandbApiFailedError, match=r"Cannot query|Syntax Error|Unknown argument"):
        wandb.Api()._service_api.execute_graphql(query)
    ((request, _),) = wandb_server.invalid
    assert (request.operation, request.status) == ("Odd", 400)
    wandb_server.invalid.clear()


def test_variables_outside_the_schema_are_refused(wandb_server: LoopbackServer) -> None:
    query = "mutation Odd($input: UpsertModelInput!) { upsertModel(input: $input) { inserted } }"
    with pytest.raises(WandbApiFailedError, match="unknown field"):
        wandb.Api()._service_api.execute_graphql(query, {"input": {"colour": "red"}})
    assert len(wandb_server.invalid) == 1
    wandb_server.invalid.clear()


def test_the_key_travels_in_the_authorization_header_only(wandb_server: LoopbackServer) -> None:
    _log_run(config={"lr": 1})

    for request in wandb_server.requests:
        assert (request.authorization is None) == request.path.startswith("/storage/")
    assert not any(wandb_server.api_key.encode() in entry for entry in wandb_server.received)


def test_a_wrong_key_is_refused(wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    with pytest.raises(wandb.errors.AuthenticationError):
        wandb.Api()


@pytest.mark.parametrize("kind", [500, 429, "drop", "hang"])
def test_one_failure_is_retried(wandb_server: LoopbackServer, impatient: None, kind: int | str) -> None:
    wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name="a")
    api = wandb.Api()
    wandb_server.fail(kind, operation="Runs")

    assert [run.id for run in api.runs(PROJECT)] == ["a"]
    statuses = [request.status for request in wandb_server.requests if request.operation == "Runs"]
    assert statuses == [kind, 200]


@pytest.mark.parametrize("kind", [500, 429, "drop", "hang"])
def test_lasting_failures_end_in_an_exception(wandb_server: LoopbackServer, impatient: None, kind: int | str) -> None:
    api = wandb.Api()
    wandb_server.fail(kind, times=None)
    with pytest.raises(WandbApiFailedError, match="giving up after 2 attempt"):
        list(api.runs(PROJECT))
    wandb_server.heal()

    assert wandb_server.count("Runs") == 2


def _scan_history() -> None:
    list(wandb.Api().run(f"{PROJECT}/planted").scan_history())


def _log_artifact() -> None:
    run = wandb.init(project="tuning", reinit="create_new")
    try:
        artifact = wandb.Artifact("data", "dataset")
        with artifact.new_file("text.txt") as file:
            file.write("text")
        run.log_artifact(artifact).wait()
    finally:
        run.finish()


def _save_report() -> None:
    import wandb_workspaces.reports.v2 as reports

    reports.Report(entity=DEFAULT_ENTITY, project="tuning", title="One").save()


@pytest.mark.parametrize(
    ("failing", "call", "error"),
    [
        ({"operation": "Viewer"}, wandb.Api, wandb.errors.AuthenticationError),
        ({"operation": "UpsertBucket"}, _log_run, wandb.Error),
        ({"operation": "CreateArtifact"}, _log_artifact, ValueError),
        ({"path": "/storage/artifacts"}, _log_artifact, ValueError),
        ({"operation": "RunParquetHistory"}, _scan_history, CommError),
        ({"operation": "HistoryPage"}, _scan_history, WandbApiFailedError),
        ({"operation": "upsertView"}, _save_report, WandbApiFailedError),
        ({"operation": "CreateCustomChart"}, _save_chart, WandbApiFailedError),
    ],
    ids=lambda value: str(*value.values()) if isinstance(value, dict) else None,
)
def test_each_call_ends_in_its_own_exception(
    wandb_server: LoopbackServer,
    impatient: None,
    failing: dict[str, str],
    call: Callable[[], object],
    error: type[Exception],
) -> None:
    wandb_server.plant_run(DEFAULT_ENTITY, "tuning", name="planted", history=[{"loss": 1}])
    wandb_server.fail(500, times=None, **failing)
    with pytest.raises(error) as caught:
        call()

    assert caught.type is error


def test_a_hanging_request_does_not_hold_up_the_end() -> None:
    with LoopbackServer() as server:
        server.fail("hang")
        thread = threading.Thread(target=_request_and_fail, args=(server,))
        thread.start()
        while not server.requests:
            time.sleep(0.01)
        start = time.monotonic()
    thread.join()

    assert time.monotonic() - start < 2


def _request_and_fail(server: LoopbackServer) -> None:
    import http.client

    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    connection.request("GET", "/anything")
    with pytest.raises(OSError, match=r"."):
        connection.getresponse()
    connection.close()


def test_a_run_outlives_a_broken_file_stream(wandb_server: LoopbackServer, impatient: None) -> None:
    run = wandb.init(project="tuning", reinit="create_new")
    wandb_server.fail(500, times=None, path="file_stream")
    run.log({"loss": 1})
    run.finish()

    # Nothing is raised, and what the run logged stays on this machine only.
    assert wandb_server.runs[0].history == []
    assert wandb_server.runs[0].state == "running"
