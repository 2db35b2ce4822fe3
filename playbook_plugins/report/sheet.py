"""Which studies are there, and how is a trial run again? The playbook's spreadsheet, and the commands.

Playbook: "Setting up experiment tracking".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from playbook_plugins.report.phrases import config_text

# Of `playbook_plugins.optuna.study_sheet`, in the order of the playbook's own example.
_COLUMNS = {"study": "study", "config": "configuration", "notes": "notes", "n_trials": "trials", "best": "best"}
_COMMIT_LENGTH = 10


def describe_sheet(sheet: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the sheet as the page shows it: ``names`` of the columns and ``rows`` of texts; empty without a row."""
    if not sheet:
        return {"names": [], "rows": []}
    rows = []
    for row in sheet:
        texts = [_text(row.get(key)) for key in _COLUMNS]
        commit = _text(row.get("commit"))[:_COMMIT_LENGTH]
        if row.get("uncommitted_changes"):
            commit += " and uncommitted changes"
        rows.append([*texts, commit, _text(row.get("command"))])
    return {"names": [*_COLUMNS.values(), "commit", "command"], "rows": rows}


def reproduction(config: Mapping[str, Any], study: str, run: Mapping[str, Any] | None) -> str:
    """Return the lines that run a trial again: the commit, the configuration in Optuna, and the command of the study.

    Parameters
    ----------
    config
        The searched hyperparameters of the trial, under the names of the study.
    study
        The study's name.
    run
        Its row of the sheet, None where there is none.
    """
    lines = []
    run = run or {}
    if run.get("commit"):
        note = "  # and the uncommitted changes that are kept with the study" if run.get("uncommitted_changes") else ""
        lines.append(f"git checkout {run['commit']}{note}")
    lines += [
        "python - <<'END'",
        "import optuna",
        f"study = optuna.load_study(study_name={study!r}, storage=STORAGE)  # the URL of your storage",
        f"study.enqueue_trial({dict(config)!r})",
        "END",
    ]
    if run.get("command"):
        lines.append(f"{run['command']}  # its first trial is the one enqueued")
    return "\n".join(lines)


def _text(value: Any) -> str:
    return "" if value is None else config_text(value)
