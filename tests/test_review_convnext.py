"""What does the whole review say of a real random search with known facts? 512 trials of ConvNeXt-tiny on ImageNet."""

from __future__ import annotations

import numpy as np
import pytest
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Finding, Trials, Verdict, check_boundaries, review
from playbook_plugins.report import word

pytestmark = needs_convnext


@pytest.fixture(scope="module")
def pool() -> Trials:
    return convnext()


@pytest.fixture(scope="module")
def findings(pool: Trials) -> list[Finding]:
    return review(pool)


def flags(findings: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.check, finding.subject) for finding in findings if finding.verdict is Verdict.FLAG}


def test_infeasible_trials_are_explained_by_the_learning_rate(findings: list[Finding]) -> None:
    [feasibility] = [finding for finding in findings if finding.check == "feasibility"]
    assert feasibility.numbers["share"] == pytest.approx(0.438, abs=0.001)
    assert (feasibility.numbers["explained_by"], feasibility.numbers["explained_side"]) == ("lr", "upper")
    assert feasibility.numbers["share_there"] == 1.0
    # Less than half: no flag.
    assert feasibility.verdict is Verdict.NO_EVIDENCE


def test_the_edge_of_stability_is_found_and_no_wider_range_is_advised_there(
    pool: Trials, findings: list[Finding]
) -> None:
    assert ("stability edge", "lr, upper") in flags(findings)
    assert ("boundary", "lr, upper") not in {(finding.check, finding.subject) for finding in findings}
    [edge] = [finding for finding in findings if finding.check == "stability edge"]
    assert 1.0 < float(edge.numbers["threshold"]) < 2.0
    assert float(edge.numbers["best"]) == pool.values["lr"][pool.ranking()[0]]
    assert word(edge).action.startswith("Do not widen the range there.")


def test_the_best_steps_are_reported_as_uninformative(findings: list[Finding]) -> None:
    [best_steps] = [finding for finding in findings if finding.check == "best step"]
    assert best_steps.verdict is Verdict.NO_EVIDENCE
    assert "Under a decaying learning rate late best steps say little" in word(best_steps).sentence


def test_instability_comes_before_the_search_space(findings: list[Finding]) -> None:
    order = [finding.check for finding in findings if finding.verdict is Verdict.FLAG]
    assert order[0] == "stability edge"


def test_the_learning_rate_is_never_called_unimportant(pool: Trials) -> None:
    generator = np.random.default_rng(0)
    for _ in range(40):
        some = pool.select(np.sort(generator.choice(len(pool), 96, replace=False)))
        found = flags(review(some))
        assert ("sensitivity", "lr") not in found
        assert ("good region", "lr, lower") not in found


def test_no_part_of_it_is_told_to_raise_the_learning_rate(pool: Trials) -> None:
    generator = np.random.default_rng(0)
    for n_trials, least in ((64, 0.1), (128, 0.35), (256, 0.7)):
        found = [
            flags(check_boundaries(pool.select(np.sort(generator.choice(len(pool), n_trials, replace=False)))))
            for _ in range(60)
        ]
        assert sum(("boundary", "lr, upper") in one for one in found) == 0
        # In its better half the objective is nearly flat: small studies rarely have several of the best at the edge.
        assert np.mean([("stability edge", "lr, upper") in one for one in found]) >= least


def test_what_is_to_be_searched_further_is_not_to_be_fixed(findings: list[Finding]) -> None:
    found = flags(findings)
    fixed = {subject for check, subject in found if check == "sensitivity"}
    further = {subject.rpartition(", ")[0] for check, subject in found if check == "boundary"}
    further |= {name for check, subject in found if check == "interaction" for name in subject.split(", ")}
    assert {"lr", "weight_decay", "label_smoothing", "epochs"} <= further
    assert fixed
    assert not fixed & further
