from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from postgres import PostgresServer, find_binaries, free_port, run_postgres, start_server
from search_workers import count_queries, open_database, run_workers, sequential_params

_PROXY = """
import sys
import optuna

storage = optuna.storages.get_storage(sys.argv[1])
optuna.storages.run_grpc_proxy_server(storage, host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    yield from start_server()


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[str]:
    """Yield host:port of a gRPC proxy before a new database that holds the study "shared"."""
    url, port = server.create_database(), free_port()
    with open_database(url) as storage:
        optuna.create_study(study_name="shared", storage=storage)
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", _PROXY, url, str(port)])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def assert_sequential(study: optuna.Study) -> None:
    """Check that 200 trials hold exactly the sequence's first 200 points, in order, none of them twice."""
    assert [trial.params for trial in study.trials] == sequential_params(200)
    assert len({json.dumps(trial.params) for trial in study.trials}) == 200


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_four_processes_on_postgres_draw_exactly_the_sequential_points(server: PostgresServer, seconds: float) -> None:
    url = server.create_database()
    with open_database(url) as storage:
        study = optuna.create_study(study_name="shared", storage=storage)
        run_workers("database", url, "declared", seconds=seconds)
        assert_sequential(study)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_four_processes_behind_the_grpc_proxy_draw_exactly_the_sequential_points(proxy: str, seconds: float) -> None:
    host, port = proxy.split(":")
    with pytest.warns(ExperimentalWarning):
        storage = optuna.storages.GrpcStorageProxy(host=host, port=int(port))
    storage.wait_server_ready(timeout=60)
    run_workers("grpc", proxy, "declared", seconds=seconds)
    assert_sequential(optuna.load_study(study_name="shared", storage=storage))
    storage.close()


def test_an_ask_on_postgres_takes_at_most_one_query_more_than_a_random_samplers(server: PostgresServer) -> None:
    counts = count_queries(server.create_database())
    # The first trials write and read the settings.
    for ours, random in zip(counts["ours"][3:], counts["random"][3:], strict=True):
        assert ours <= random + 1


def test_the_server_is_gone_when_its_context_ends() -> None:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server: install Debian's package `postgresql`")
    with run_postgres(binaries) as server, socket.create_connection(("127.0.0.1", server.port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))
