"""What should be done first? Every check that the data allow, ordered as the playbook would go through them.

Playbook: "Extracting insight from experimental results": before a result is believed, the checklist: is the search
space right, was training the right length, and only then the scientific question.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from playbook_plugins.analysis.boundaries import check_boundaries
from playbook_plugins.analysis.feasibility import check_feasibility
from playbook_plugins.analysis.findings import Finding, Verdict
from playbook_plugins.analysis.isolation import check_isolation
from playbook_plugins.analysis.steps import check_best_steps
from playbook_plugins.analysis.trials import Trials

Check: TypeAlias = Callable[[Trials], list[Finding]]

_CHECKS: tuple[Check, ...] = (check_feasibility, check_boundaries, check_best_steps, check_isolation)
# What makes later questions moot comes first: a bug, then instability, the space, the budget, the question itself.
_ORDER = ("feasibility", "stability edge", "boundary", "best step", "isolation")
_VERDICTS = (Verdict.FLAG, Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE)


def review(trials: Trials) -> list[Finding]:
    """Run every check and order the findings by what to do first.

    Parameters
    ----------
    trials
        The study, finished or still running.

    Returns
    -------
    list of Finding
        Flags first, in the order a bug, instability, the search space, the length of training, the scientific
        question; then what had too little data, then what showed no evidence, in the same order.
    """
    findings = [finding for check in _CHECKS for finding in check(trials)]
    return sorted(
        findings, key=lambda finding: (_VERDICTS.index(finding.verdict), _ORDER.index(finding.check), finding.subject)
    )
