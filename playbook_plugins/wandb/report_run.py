"""How do the tables and the page of a report get to W&B? By one run, checked once it has ended, or deleted again.

Playbook: "Setting up experiment tracking".
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playbook_plugins.wandb.clients import import_wandb, start_wandb
from playbook_plugins.wandb.report_tables import ReportTable
from playbook_plugins.wandb.retrying import WandbUnavailableError, describe, with_retries
from playbook_plugins.wandb.run_layout import REPORT_JOB

# Which report a run belongs to, in its config.
MARKER_KEY = "playbook_report"
ARTIFACT_TYPE = "playbook-report"
PAGE_FILE = "report.html"
# Seconds: for the start, for what is still to be uploaded at the end, and for the page.
_INIT_SECONDS, _FINISH_SECONDS, _WAIT_SECONDS = 30.0, 180.0, 180


@dataclass(frozen=True, kw_only=True)
class ReportRun:
    """The run to log.

    Attributes
    ----------
    run_id
        New, and known before the run exists, so that the report's charts can be bound to it.
    name, group
        Its name, and the study that it is shown with; "" for no group.
    config
        With the report's marker under `MARKER_KEY`.
    tables
        By key.
    page
        The page as HTML; None for none.
    page_name
        The name of the artifact that holds it.
    """

    run_id: str
    name: str
    group: str
    config: Mapping[str, Any]
    tables: Mapping[str, ReportTable]
    page: str | None
    page_name: str


def log_report_run(entity: str, project: str, logged: ReportRun) -> None:
    """Log the run, and see that all of it arrived.

    The run of the caller, where there is one, stays the active one.

    Parameters
    ----------
    entity, project
        Where; the project is made where there is none.
    logged
        What.

    Raises
    ------
    WandbUnavailableError
        When W&B cannot be reached, or some part did not arrive. The run may be there in part: delete it.
    """
    with _hold("start the report's run"):
        wandb = start_wandb()
        run = wandb.init(
            entity=entity,
            project=project,
            id=logged.run_id,
            name=logged.name,
            group=logged.group or None,
            job_type=REPORT_JOB,
            config=dict(logged.config),
            # A run of the caller's own goes on.
            reinit="create_new",
            resume="never",
            settings=wandb.Settings(
                console="off",
                disable_git=True,
                init_timeout=_INIT_SECONDS,
                # Without a limit, a client that cannot upload never ends.
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
                quiet=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
    try:
        with _hold("log the report's tables and page"):
            tables = {
                key: wandb.Table(columns=list(table.columns), data=[list(row) for row in table.rows])
                for key, table in logged.tables.items()
            }
            if tables:
                run.log(tables)
            if logged.page is not None:
                run.log_artifact(_artifact(wandb, logged)).wait(timeout=_WAIT_SECONDS)
    except BaseException:
        with contextlib.suppress(Exception):
            run.finish(exit_code=1)
        raise
    with _hold("upload the report's run"):
        run.finish()
    missing = with_retries(f"read the report's run {logged.run_id}", lambda: _missing(wandb, entity, project, logged))
    if missing:
        raise WandbUnavailableError(
            f"could not log the report's run {logged.run_id}: {', '.join(missing)} did not arrive at W&B. Publish it "
            "again when W&B answers (https://status.wandb.com)."
        )


def delete_report_run(entity: str, project: str, run_id: str, marker: str | None = None) -> bool:
    """Delete a report's run with its tables and its page, where it is there.

    Parameters
    ----------
    entity, project, run_id
        Which run.
    marker
        The report to which it must belong; another run, or that of another report, is left alone. None for a run that
        this process has made itself.

    Returns
    -------
    bool
        Whether there was such a run.

    Raises
    ------
    WandbUnavailableError
        When W&B does not answer.
    """

    def delete() -> bool:
        found = start_wandb().Api().runs(f"{entity}/{project}", filters={"name": run_id}, lazy=False)
        try:
            runs = [run for run in found if run.id == run_id and (marker is None or _belongs(run, marker))]
        except ValueError:
            # There is no such project.
            return False
        for run in runs:
            run.delete(delete_artifacts=True)
        return bool(runs)

    return with_retries(f"delete the report's run {run_id}", delete, n_attempts=2)


def _belongs(run: Any, marker: str) -> bool:
    return bool(run.job_type == REPORT_JOB and run.config.get(MARKER_KEY) == marker)


def _artifact(wandb: Any, logged: ReportRun) -> Any:
    artifact = wandb.Artifact(logged.page_name, type=ARTIFACT_TYPE, description="The report as a page of its own.")
    # Equal pages of two runs would be one artifact, which the deletion of either would take away.
    files = {PAGE_FILE: logged.page or "", "run.txt": f"{logged.run_id}\n"}
    with tempfile.TemporaryDirectory(prefix="playbook-report-") as folder:
        for name, text in files.items():
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            artifact.add_file(str(path))
    return artifact


def _missing(wandb: Any, entity: str, project: str, logged: ReportRun) -> list[str]:
    """Return what of a finished run the server does not have: the client ends without a word when an upload fails."""
    run = wandb.Api().run(f"{entity}/{project}/{logged.run_id}")
    missing = []
    for key in logged.tables:
        path = run.summary.get(key, {}).get("path")
        if path is None or not any(file.size for file in run.files([path])):
            missing.append(f"the table {key}")
    if len([artifact for artifact in run.logged_artifacts() if artifact.type == "run_table"]) < len(logged.tables):
        missing.append("an artifact of the tables")
    return missing


@contextlib.contextmanager
def _hold(what: str) -> Iterator[None]:
    """Turn what the client raises when it gives up into the error of this package; a wrong key stays one."""
    errors = import_wandb().errors
    try:
        yield
    except (errors.UsageError, errors.AuthenticationError):
        raise
    except (errors.Error, TimeoutError, ValueError) as error:
        raise WandbUnavailableError(f"could not {what}: W&B did not take it. {describe(error).rstrip('.')}.") from error
