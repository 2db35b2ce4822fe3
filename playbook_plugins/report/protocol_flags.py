"""What do the findings of the procedures mean, and what is to be done about them? The words for all of them together.

Playbook: the sections of the procedures in playbook_plugins.optuna.
"""

from __future__ import annotations

from collections.abc import Callable

from playbook_plugins.analysis import Finding
from playbook_plugins.report.phrases import Words
from playbook_plugins.report.protocol_decision_flags import DECISION_FLAGS, DECISION_QUESTIONS, DECISION_UNANSWERED
from playbook_plugins.report.protocol_length_flags import LENGTH_FLAGS, LENGTH_QUESTIONS, LENGTH_UNANSWERED
from playbook_plugins.report.protocol_stability_flags import STABILITY_FLAGS, STABILITY_QUESTIONS, STABILITY_UNANSWERED

# What is looked for; {} is what it was asked about.
PROTOCOL_QUESTIONS = {
    **STABILITY_QUESTIONS,
    **DECISION_QUESTIONS,
    **LENGTH_QUESTIONS,
}

PROTOCOL_FLAGS: dict[str, Callable[[Finding], Words | None]] = {
    **STABILITY_FLAGS,
    **DECISION_FLAGS,
    **LENGTH_FLAGS,
}

# Why a question has no answer, where it is not for want of trials.
PROTOCOL_UNANSWERED: dict[str, Callable[[Finding], Words | None]] = {
    **STABILITY_UNANSWERED,
    **DECISION_UNANSWERED,
    **LENGTH_UNANSWERED,
}
