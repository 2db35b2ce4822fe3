"""What does a user see when something is wrong? One line on stderr and exit status 2, never a secret."""

from __future__ import annotations

import contextlib
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperGroup

from playbook_plugins.cli.secrets import mask_secrets, mask_url, printable

ERROR_STATUS = 2
_MAX_CHARACTERS = 700


class CommandError(Exception):
    """Something that the user can mend; its text says what it is and how."""


@contextlib.contextmanager
def one_line_errors(url: str, *, debug: bool) -> Iterator[None]:
    """Turn every error into one line on stderr and exit status 2, and warnings into notes on stderr.

    Parameters
    ----------
    url
        The storage's URL, whose secrets are masked in all that is printed.
    debug
        Print the traceback too, masked as well.
    """

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        print_note(str(message), url)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Of other kinds, such as deprecations, none is for the user of a command.
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = note
            yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if debug:
            sys.stderr.write(printable(_mask(traceback.format_exc(), url)))
        _print(_describe(error, url), url)
        raise typer.Exit(ERROR_STATUS) from None


class OneLineGroup(TyperGroup):
    """The commands, with wrong usage told in one line too, because an argument may hold a secret."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        """Read the arguments that stand before the command."""
        self._arguments = list(args)
        with self._one_line_usage():
            return super().make_context(info_name, args, *rest, **extra)

    def invoke(self, ctx: Any) -> Any:
        """Find the command, read its arguments and run it."""
        with self._one_line_usage():
            return super().invoke(ctx)

    @contextlib.contextmanager
    def _one_line_usage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Typer brings a copy of click or uses the installed one, so that its errors have no one type.
            is_usage = hasattr(error, "format_message") and hasattr(error, "exit_code")
            if not is_usage or type(error).__name__ == "NoArgsIsHelpError":
                raise
            text = error.format_message()  # type: ignore[attr-defined]
            for argument in self._arguments:
                text = mask_secrets(text, argument)
            context = getattr(error, "ctx", None)
            command = context.command_path if context is not None else "playbook"
            typer.echo(f"playbook: {_one_line(text).rstrip('.')}. Try: {command} --help", err=True)
            raise typer.Exit(ERROR_STATUS) from None


def print_note(text: str, url: str) -> None:
    """Print one line on stderr that is not an error."""
    typer.echo(f"note: {_one_line(_mask(text, url))}", err=True)


def find_database_error(error: BaseException) -> BaseException | None:
    """Return what the database's driver said, where an error comes from a database."""
    seen: BaseException | None = error
    while seen is not None:
        driver = getattr(seen, "orig", None)
        if isinstance(driver, BaseException):
            return driver
        seen = seen.__cause__ or seen.__context__
    return None


def describe_database_error(error: BaseException, url: str) -> str:
    """Return what the driver said about the storage, in one sentence where it is a common case."""
    text = str(error)
    if "database is locked" in text or "database table is locked" in text:
        return f"the storage {mask_url(url)} is locked by another program: try again in a moment."
    if "is not a database" in text:
        return f"{mask_url(url)} is no SQLite database. Give the file of a study."
    return f"the storage {mask_url(url)} cannot be read: {text}"


def _describe(error: Exception, url: str) -> str:
    if isinstance(error, CommandError):
        return str(error)
    from_database = find_database_error(error)
    if from_database is not None:
        return describe_database_error(from_database, url)
    if isinstance(error, ImportError):
        if error.name in ("optuna", "jinja2", "vl_convert"):
            extra = "optuna" if error.name == "optuna" else "report"
            return f"this needs {error.name}, which is not installed. Run: pip install 'playbook-plugins[{extra}]'"
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or mask_url(url)}: {error.strerror}."
    if isinstance(error, ValueError | OSError):
        return str(error)
    return f"unexpected {type(error).__name__}: {error}. Run it again with --debug to see where."


def _print(text: str, url: str) -> None:
    typer.echo(f"playbook: {_one_line(_mask(text, url))}", err=True)


def _mask(text: str, url: str) -> str:
    text = mask_secrets(text, url)
    try:
        from playbook_plugins.optuna.masking import mask_text
    except ImportError:
        # Without optuna there was no storage to open, and what is secret in its URL is masked.
        return text
    return mask_text(text)


def _one_line(text: str) -> str:
    line = printable(" ".join(text.split()))
    if len(line) > _MAX_CHARACTERS:
        line = f"{line[: _MAX_CHARACTERS - 1]}…"
    return line
