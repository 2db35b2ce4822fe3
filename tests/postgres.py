"""A real PostgreSQL server for one test session: in a temporary folder, on a free loopback port, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

_USER = "postgres"
_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
# The server is thrown away, so that its data need not survive a power cut.
_SETTINGS = {"fsync": "off", "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "100"}


@dataclass(frozen=True)
class PostgresServer:
    """A running server: its port on 127.0.0.1 and its superuser's password."""

    port: int
    password: str

    def create_database(self) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        name = f"test_{secrets.token_hex(6)}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return f"postgresql+psycopg://{_USER}:{self.password}@127.0.0.1:{self.port}/{name}"

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """Connect to the server's own database."""
        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user=_USER,
            password=self.password,
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
        )


def find_binaries() -> Path | None:
    """Return the folder of Debian's newest PostgreSQL server, or that of a server on the PATH, or nothing."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent)
    complete = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    return complete[-1] if complete else None


@contextlib.contextmanager
def run_postgres(binaries: Path) -> Iterator[PostgresServer]:
    """Run a server as long as the context lasts; it dies with this process, too."""
    # Not below pytest's own folder, which only its owner may enter: as root the server runs as another user.
    with tempfile.TemporaryDirectory(prefix="playbook-postgres-", ignore_cleanup_errors=True) as name:
        folder, password = Path(name), secrets.token_urlsafe(16)
        (folder / "password").write_text(password)
        if os.geteuid() == 0:
            shutil.chown(folder, _USER, _USER)
            shutil.chown(folder / "password", _USER, _USER)
        data = folder / "data"
        make = ["initdb", f"--pgdata={data}", f"--username={_USER}", "--auth=scram-sha-256", "--no-sync"]
        subprocess.run(
            [*_as_server_user(), str(binaries / make[0]), *make[1:], f"--pwfile={folder / 'password'}"],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=_START_SECONDS,
        )
        port = free_port()
        options = [f"-c{key}={value}" for key, value in _SETTINGS.items()]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*_as_server_user(), str(binaries / "postgres"), "-D", str(data), "-p", str(port), *options],
                cwd=folder,
                stdout=log,
                stderr=log,
            )
            try:
                server = PostgresServer(port, password)
                _wait_until_ready(server, process, folder / "log")
                yield server
            finally:
                _stop(process)


def _as_server_user() -> list[str]:
    """Return the command that runs another one as somebody who is not root, which PostgreSQL refuses to be.

    The kernel sends SIGQUIT, an immediate shutdown, when this process is killed before it can stop the server.
    """
    become = [f"--reuid={_USER}", f"--regid={_USER}", "--clear-groups"] if os.geteuid() == 0 else []
    return ["setpriv", *become, "--pdeathsig=QUIT", "--"]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_ready(server: PostgresServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            server.connect().close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The PostgreSQL server did not start. Its log:\n{log.read_text()}") from error
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # A fast shutdown: open sessions are ended, not waited for.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def start_server() -> Iterator[PostgresServer]:
    """Yield a server; skip without PostgreSQL, but not in CI."""
    binaries = find_binaries()
    if binaries is None:
        reason = "no PostgreSQL server: install Debian's package `postgresql`"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with run_postgres(binaries) as running:
        yield running
