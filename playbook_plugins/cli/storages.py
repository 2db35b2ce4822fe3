"""Which study is meant, and how is its storage read without writing to it?

Optuna creates what it does not find: a mistyped file name gives a new empty database. Here a storage is looked at first
and opened only where it holds studies; nothing is created, and a file that must not be written to is read all the same.
"""

from __future__ import annotations

import contextlib
import difflib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode

from playbook_plugins.cli.errors import CommandError
from playbook_plugins.cli.secrets import mask_url

if TYPE_CHECKING:
    import optuna
    import sqlalchemy

    from playbook_plugins.analysis import Trials

LOCKED_SECONDS = 5.0
_CONNECT_SECONDS = 10
_SQLITE_HEADER = b"SQLite format 3\x00"
_JOURNAL_ENDINGS = (".log", ".journal")
_MAX_NAMES = 10
# What each driver calls the longest wait for a server.
_TIMEOUTS = {
    "psycopg": "connect_timeout",
    "psycopg2": "connect_timeout",
    "pymysql": "connect_timeout",
    "mysqldb": "connect_timeout",
    "mysqlconnector": "connection_timeout",
    "pg8000": "timeout",
}
_PACKAGES = {
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "PyMySQL",
    "mysql": "mysql-connector-python",
}


@contextlib.contextmanager
def open_storage(url: str) -> Iterator[optuna.storages.BaseStorage]:
    """Open a storage for reading, as long as the context lasts.

    Parameters
    ----------
    url
        An Optuna storage URL, or the path of a journal file.

    Raises
    ------
    CommandError
        When there is no such storage, it holds no study, or it cannot be opened as what it is given as.
    """
    if "://" not in url:
        yield _open_journal(Path(url))
        return
    storage = _open_database(url)
    try:
        yield storage
    finally:
        storage.scoped_session.remove()
        storage.engine.dispose()


def choose_names(storage: optuna.storages.BaseStorage, url: str, names: Sequence[str], *, hint: str = "") -> list[str]:
    """Return the studies that are meant: those named, or the only one.

    Raises
    ------
    CommandError
        When a name does not exist, or none is given and there are several or none.
    """
    known = list_names(storage, url)
    if not names:
        if len(known) > 1:
            raise CommandError(
                f"{mask_url(url)} holds {len(known)} studies: choose one by --study{hint}. They are {_listed(known)}."
            )
        return known
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            found = f"The nearest: {_listed(nearest)}." if nearest else f"There are {_listed(known)}."
            raise CommandError(f"{mask_url(url)} holds no study {name!r}. {found}")
    return list(dict.fromkeys(names))


def list_names(storage: optuna.storages.BaseStorage, url: str) -> list[str]:
    """Return the names of all studies, sorted; CommandError where there is none."""
    import optuna

    names = sorted(optuna.study.get_all_study_names(storage))
    if not names:
        raise _no_study(url)
    return names


def load_study(storage: optuna.storages.BaseStorage, name: str) -> optuna.Study:
    """Return a study by its name."""
    import optuna

    return optuna.load_study(study_name=name, storage=storage)


def read_trials(study: optuna.Study) -> Trials:
    """Return the table of a study; CommandError where it has no trial, ValueError for several objectives."""
    from playbook_plugins.optuna import trials_from_study

    trials = trials_from_study(study)
    if not len(trials):
        raise CommandError(f"the study {study.study_name!r} has no trial yet. Run it first.")
    return trials


def _open_journal(path: Path) -> optuna.storages.BaseStorage:
    if path.suffix.lower() not in _JOURNAL_ENDINGS:
        like = f"sqlite:///{path}" if _starts_as_sqlite(path) else "sqlite:///study.db"
        raise CommandError(
            f"{str(path)!r} is no storage URL and no journal file (.log, .journal). An SQLite file is given as {like}"
        )
    _check_file(path)
    if _starts_as_sqlite(path):
        raise CommandError(f"{str(path)!r} is an SQLite database and no journal. Give it as sqlite:///{path}")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"{str(path)!r} is no journal of Optuna. Give the file of a study.") from error


def _open_database(url: str) -> optuna.storages.RDBStorage:
    import optuna
    import sqlalchemy

    try:
        parsed = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise CommandError(
            f"{mask_url(url)} is no storage URL. Give one such as sqlite:///study.db or "
            "postgresql://user:password@host/database, with special characters of the password percent-encoded."
        ) from error
    arguments = _engine_arguments(parsed, url)
    _check_tables(_make_engine(parsed, arguments), url)
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs=dict(arguments), skip_table_creation=True)
    except RuntimeError as error:
        # Tables of another version of Optuna; its message says what to do.
        raise CommandError(f"{mask_url(url)}: {error}") from error


def _make_engine(parsed: sqlalchemy.URL, arguments: dict[str, Any]) -> sqlalchemy.Engine:
    import sqlalchemy

    try:
        return sqlalchemy.create_engine(parsed, **arguments)
    except sqlalchemy.exc.NoSuchModuleError as error:
        raise CommandError(
            f"{parsed.drivername!r} is no kind of database that is known here. Use sqlite, postgresql or mysql."
        ) from error
    except ImportError as error:
        module = (error.name or parsed.get_driver_name()).partition(".")[0]
        raise CommandError(
            f"{parsed.drivername!r} needs the package {module}, which is not installed. Run: pip install "
            f"{_PACKAGES.get(module, module)}"
        ) from error


def _check_tables(engine: sqlalchemy.Engine, url: str) -> None:
    """Raise CommandError where Optuna would have to create its tables."""
    import sqlalchemy

    try:
        inspector = sqlalchemy.inspect(engine)
        # Not the list of all tables: on PostgreSQL they may lie in another schema of the search path.
        found = {name for name in ("studies", "version_info", "alembic_version") if inspector.has_table(name)}
    finally:
        engine.dispose()
    if "studies" not in found:
        raise _no_study(url)
    if len(found) < 3:
        raise CommandError(
            f"{mask_url(url)} was made by a version of Optuna that this one cannot read as it is. Run `optuna storage "
            "upgrade` on a copy of it."
        )


def _engine_arguments(parsed: sqlalchemy.URL, url: str) -> dict[str, Any]:
    if parsed.get_backend_name() != "sqlite":
        name = _TIMEOUTS.get(parsed.drivername.partition("+")[2] or _default_driver(parsed))
        return {"connect_args": {name: _CONNECT_SECONDS}} if name and name not in parsed.query else {}
    if parsed.host:
        raise CommandError(
            f"{mask_url(url)} names a host, and SQLite has none: write three slashes, sqlite:///study.db"
        )
    database, query = parsed.database or "", dict(parsed.query)
    is_uri = database.startswith("file:") and str(query.get("uri", "")).lower() in ("true", "1")
    if database in ("", ":memory:") or (is_uri and (":memory:" in database or query.get("mode") == "memory")):
        raise CommandError(f"{mask_url(url)} lies in the memory of one program: no other one can read it.")
    if is_uri:
        path = Path(unquote(database.removeprefix("file:").removeprefix("//")))
        options = {key: value for key, value in query.items() if key in ("mode", "immutable", "cache", "vfs", "nolock")}
    else:
        path, options = Path(database), {}
    _check_file(path)
    _check_sqlite(path, url)
    # "rw" creates no file, recovers what a killed writer left, and only reads where writing is not allowed.
    options = {"mode": "rw", **options}
    return {"creator": lambda: _connect(path, options)} if parsed.drivername in ("sqlite", "sqlite+pysqlite") else {}


def _default_driver(parsed: sqlalchemy.URL) -> str:
    import sqlalchemy

    try:
        return str(parsed.get_dialect().driver)
    except sqlalchemy.exc.NoSuchModuleError:
        return ""


def _connect(path: Path, options: dict[str, Any]) -> sqlite3.Connection:
    connection = _connect_as(path, options)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        # What a writer is about to write, or was when it was killed, lies beside the database.
        is_still = not any(Path(f"{path}{ending}").exists() for ending in ("-wal", "-journal"))
        if is_still and ("readonly" in str(error) or "unable to open" in str(error)):
            # Reading a write-ahead database needs a file beside it, unless nobody writes to it.
            return _connect_as(path, {"mode": "ro", "immutable": "1"})
        raise
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _connect_as(path: Path, options: dict[str, Any]) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{urlencode(options)}",
        uri=True,
        timeout=LOCKED_SECONDS,
        check_same_thread=False,
    )


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CommandError(f"{str(path)!r} is a folder. Give the file of a study inside it.")
    if not path.exists():
        raise CommandError(f"there is no file {str(path)!r}. It is made by the study, not by looking at it.")


def _starts_as_sqlite(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE_HEADER)) == _SQLITE_HEADER


def _check_sqlite(path: Path, url: str) -> None:
    if path.stat().st_size == 0:
        raise _no_study(url)
    if not _starts_as_sqlite(path):
        raise CommandError(f"{str(path)!r} is no SQLite database. Give the file of a study.")


def _no_study(url: str) -> CommandError:
    return CommandError(f"{mask_url(url)} holds no Optuna study yet. Create one first, or give another storage.")


def _listed(names: Sequence[str]) -> str:
    text = ", ".join(map(repr, names[:_MAX_NAMES]))
    return f"{text} and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else text
