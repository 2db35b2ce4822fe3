from __future__ import annotations

import numpy as np

from playbook_plugins.analysis import Parameter, Role, Trials, Verdict, review

METHOD = Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC)
RATE = Parameter(name="rate", kind="float", low=1e-4, high=1, log=True)


def test_what_to_do_first_comes_first() -> None:
    unit = np.linspace(0, 1, 64)
    cost = np.where(unit > 0.3, np.nan, (unit - 0.5) ** 2)
    trials = Trials.from_columns(
        "s", [METHOD, RATE], {"method": np.resize(["a", "b"], 64), "rate": 10 ** (4 * unit - 4)}, cost
    )
    findings = review(trials)
    assert [finding.check for finding in findings if finding.verdict is Verdict.FLAG][:2] == [
        "feasibility",
        "stability edge",
    ]
    ranks = [list(Verdict).index(finding.verdict) for finding in findings]
    assert ranks[0] == 0
    assert findings == review(trials)


def test_every_check_answers_any_study() -> None:
    for n_trials in (0, 1, 5):
        trials = Trials.from_columns(
            "s", [METHOD, RATE], {"method": ["a"] * n_trials, "rate": [0.1] * n_trials}, [1.0] * n_trials
        )
        findings = review(trials)
        assert {finding.check for finding in findings} == {"feasibility", "boundary", "best step", "isolation"}
        assert {finding.verdict for finding in findings} <= {Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE}
