"""Does what short runs say of a hyperparameter hold for long ones? The suspicions of the playbook's authors, by kind.

Playbook: "Deciding how long to train when training is compute-bound", its "Round 1".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from playbook_plugins.analysis.findings import Finding, Verdict
from playbook_plugins.analysis.parameters import Role
from playbook_plugins.analysis.regularizers import is_regularizer
from playbook_plugins.analysis.trials import Trials

SECTION = "Deciding how long to train when training is compute-bound"

Kind: TypeAlias = Literal[
    "warmup",
    "initialization",
    "architecture",
    "optimizer",
    "data augmentation",
    "regularization",
    "learning rate schedule",
]

# The playbook's order, from the surest on.
TRANSFER: Mapping[Kind, str] = {
    "warmup": "very likely",
    "initialization": "very likely",
    "architecture": "likely",
    "optimizer": "might",
    "data augmentation": "might",
    "regularization": "might",
    "learning rate schedule": "unlikely",
}
# What the parts of a name tell, the first that fits.
_NAMES: tuple[tuple[Kind, str], ...] = (
    ("warmup", "warmup"),
    ("initialization", r"\binit|initiali[sz]"),
    ("data augmentation", "augment|mixup|cutmix|cutout|crop|flip|jitter"),
    ("learning rate schedule", r"schedule|cooldown|anneal|(?<!weight )(?<!ema )\bdecay|milestone"),
    (
        "architecture",
        r"architecture|\b(width|depth|layers?|hidden|heads?|kernels?|activation|channels?|embed\w*|blocks?|filters|units"
        r"|dim|model)\b",
    ),
    ("optimizer", r"optimi[sz]er|learning rate|momentum|nesterov|\b(lr|beta|betas|eps|epsilon|rho)\d*\b"),
)


def transfer_kind(name: str) -> Kind | None:
    """Return what a hyperparameter is, judged by its name; None where it tells nothing.

    Parameters
    ----------
    name
        As in ``"learning_rate"``; ``"adam.learning_rate"`` is one of a branch.
    """
    own = name.rpartition(".")[2]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", own).lower()
    early: tuple[Kind, ...] = ("warmup", "initialization", "data augmentation")
    for kind, pattern in _NAMES:
        if kind not in early and is_regularizer(own):
            return "regularization"
        if re.search(pattern, words):
            return kind
    return None


def check_transfer(trials: Trials, kinds: Mapping[str, Kind], best: Mapping[str, Any]) -> list[Finding]:
    """Say of each hyperparameter that was tuned in short runs whether its conclusions hold for longer training.

    Parameters
    ----------
    trials
        The short runs.
    kinds
        What hyperparameters are, where their names do not tell.
    best
        The searched hyperparameters of the best long run; empty where there is none.

    Returns
    -------
    list of Finding
        ``"transfer"``, one a tuned hyperparameter, in the playbook's order: FLAG where its conclusions are unlikely to
        hold, TOO_LITTLE_DATA where its name tells nothing. Numbers: ``kind``, ``likelihood``, ``best`` (its value).
    """
    findings = []
    for parameter in trials.parameters:
        if parameter.role is Role.FIXED:
            continue
        kind = kinds.get(parameter.name, kinds.get(parameter.given_name, transfer_kind(parameter.name)))
        likelihood = None if kind is None else TRANSFER[kind]
        value = best.get(parameter.name)
        verdict = Verdict.TOO_LITTLE_DATA if kind is None else Verdict.NO_EVIDENCE
        findings.append(
            Finding(
                check="transfer",
                subject=parameter.name,
                verdict=Verdict.FLAG if likelihood == "unlikely" else verdict,
                numbers={
                    "kind": kind,
                    "likelihood": likelihood,
                    "best": value if value is None or isinstance(value, int | float) else str(value),
                },
                section=SECTION,
            )
        )
    order = [*TRANSFER, None]
    return sorted(findings, key=lambda finding: order.index(finding.numbers["kind"]))  # type: ignore[arg-type]
