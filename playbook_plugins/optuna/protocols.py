"""What does a procedure of the playbook return? Its findings, what it recommends, and the runs that it rests on.

Playbook: "Determining the number of steps for each training run", "How can optimization failures be debugged and
mitigated?", "Determining whether to adopt a training pipeline change or hyperparameter configuration".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from playbook_plugins.analysis.findings import Finding
from playbook_plugins.analysis.trials import Trials


@dataclass(frozen=True, kw_only=True, eq=False)
class ProtocolResult:
    """The outcome of a procedure; `playbook_plugins.report.write_report` writes its page.

    Attributes
    ----------
    findings
        What was asked and answered, in the order in which it is to be read; `playbook_plugins.report.word` words them.
    recommendation
        Entries for the configuration of what follows, by the names that training knows; empty where the runs give no
        reason for one.
    trials
        The runs, by stage, each stage in the order of its plan.
    """

    findings: tuple[Finding, ...]
    recommendation: Mapping[str, Any]
    trials: Mapping[str, Trials] = field(default_factory=dict)
