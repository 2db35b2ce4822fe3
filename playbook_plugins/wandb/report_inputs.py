"""Can this be published? What is checked before anything is sent.

Playbook: "Extracting insight from experimental results". The same rules as those of the page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from playbook_plugins.analysis import Trials
from playbook_plugins.wandb.clients import import_wandb


def check_place(entity: str, project: str) -> None:
    """Raise ValueError where entity or project are none, or the client is not to go online."""
    if not isinstance(entity, str) or not re.fullmatch(r"[\w.-]+", entity):
        raise ValueError(
            f"`entity` is {entity!r}: a report belongs to a user or a team of W&B. Pass its name, as it stands in the "
            "addresses of its projects."
        )
    if not isinstance(project, str) or not re.fullmatch(r"[^/\\#?%:]{1,128}", project):
        raise ValueError(
            f"`project` is {project!r}: the name of a project of W&B has 1 to 128 characters, none of them one of "
            "/ \\ # ? % :. Pass such a name."
        )
    mode = import_wandb().setup().settings.mode
    if mode not in ("online", "shared", "run"):
        raise ValueError(
            f"`WANDB_MODE` is {mode!r}: a report is kept by W&B's server. Set WANDB_MODE=online, or write the page "
            "with playbook_plugins.report.write_report, which needs no server."
        )


def check_tables(tables: Sequence[Trials]) -> None:
    """Raise ValueError where there is no table, or one has no trial."""
    if not tables:
        raise ValueError("`trials` is empty: a report needs at least one study. Pass one table of trials, or several.")
    for table in tables:
        if not len(table):
            raise ValueError(
                f"`trials` of the study {table.name!r} has no trial: a report needs at least one. Run the study first, "
                "or make its live report with report_template."
            )
