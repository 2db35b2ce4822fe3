"""Is the winner of a search really better than the baseline? Both trained again with other seeds, and compared.

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration", and for what
follows, a launch, "The incremental tuning strategy". The result that won the search is no evidence: it was chosen for
its luck too. Only runs that chose nothing are compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.adoption import SECTION
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Direction
from playbook_plugins.analysis.retrains import (
    ALPHA,
    ERROR_RATE,
    RetrainComparison,
    compare_retrains,
    comparison_numbers,
)
from playbook_plugins.analysis.selection_bias import estimate_selection_bias
from playbook_plugins.analysis.trial_variance import estimate_trial_variance
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.baseline import Baseline
from playbook_plugins.optuna.plans import Plan, TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.stages import train_stage


@dataclass(frozen=True, kw_only=True, eq=False)
class Retraining(ProtocolResult):
    """The outcome of `retrain`.

    Attributes
    ----------
    config
        The candidate's configuration.
    objectives
        What its retrains reached, in the order of the seeds; infinite or NaN where one diverged.
    comparison
        The candidate against the baseline; None without a baseline.
    incumbent
        The baseline with its retrains, as it was before; None without one.
    adds_complexity
        What the candidate adds to the baseline, as it was written down.
    is_adopted
        Whether the candidate is better beyond the noise of retraining; False without a baseline.
    """

    config: Mapping[str, Any]
    objectives: tuple[float, ...]
    comparison: RetrainComparison | None = None
    incumbent: Baseline | None = None
    adds_complexity: str = ""
    is_adopted: bool = False

    def next_baseline(self) -> Baseline:
        """Return the baseline to go on with: the launched candidate where it is adopted, else the one before.

        The candidate carries the comparison as its evidence and what it adds as its complexity; without a baseline it
        is the first one.
        """
        retrains = tuple(value for value in self.objectives if math.isfinite(value))
        if self.incumbent is None:
            return Baseline(config=self.config, objectives=retrains)
        if not self.is_adopted or self.comparison is None:
            return self.incumbent
        return self.incumbent.launch(
            self.config, retrains, evidence=_evidence(self.comparison), complexity=self.adds_complexity
        )


def retrain(
    train: TrainConfig,
    config: Mapping[str, Any],
    *,
    baseline: Mapping[str, Any] | Baseline | None = None,
    adds_complexity: str = "",
    n_retrains: int = 5,
    searched: Trials | None = None,
    known_sd: float | None = None,
    known_freedom: float = math.inf,
    seed: str = "seed",
    study_name: str,
    storage: str | optuna.storages.BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> Retraining:
    """Train a candidate and the baseline with several seeds each, and say whether to adopt the candidate.

    The candidate is adopted at p <= 0.05 of `compare_retrains` (Welch, or with ``known_sd`` a z-test), which then
    happens to a candidate that is no better in at most 6% of cases. An advantage of two standard deviations is found
    by 3, 5 and 10 retrains a side in 0.57, 0.89 and 0.99 of cases. That it outweighs what it adds is for people to
    judge: p knows nothing of it.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``; it has to use the seed.
    config
        The candidate, for instance the winner of a search.
    baseline
        The configuration to beat. A `Baseline` that holds at least ``n_retrains`` objectives is not trained again:
        pass its ``config`` where the pipeline has changed since. Without it the candidate's noise is measured only.
    adds_complexity
        What the candidate adds to the baseline: code, hyperparameters, cost; "none" where it adds nothing. It is kept
        as part of the study's goal.
    n_retrains
        Runs of each configuration, with the seeds 0 to n_retrains - 1; at least 2, and 1 with ``known_sd``.
    searched
        The search that the candidate won: how far its result was luck is said then. It is not used as evidence.
    known_sd, known_freedom
        The standard deviation over retrains known from before, as in `compare_retrains`.
    seed
        The entry of the configuration that takes the seed.
    study_name
        The beginning of the names: the stages are ``"<study_name>/candidate"`` and ``"<study_name>/baseline"``.
    storage, direction, n_jobs
        As in `optuna.create_study` and `optuna.Study.optimize`.

    Returns
    -------
    Retraining
        ``recommendation`` is the whole configuration to go on with, without the seed. Findings:

        - ``"retraining"`` of ``"candidate"`` and ``"baseline"``: FLAG where a retrain diverged. Numbers:
          ``n_retrains``, ``n_diverged``, ``mean``, ``sd``, ``sd_low`` and ``sd_high`` (95%), in the objective's unit.
        - ``"launch"`` of ``"candidate"``: FLAG where it is to be adopted. Numbers: the fields of `RetrainComparison`,
          ``allowed_p``, ``adds_complexity``. False at most in 6% of cases.
        - ``"searched value"`` of ``"candidate"``, with ``searched``: FLAG where the best value of the search is better
          than another retrain would be, at p <= 0.05 (which is then the rate of false flags, were nothing chosen).
          Numbers: ``search_best``, ``mean``, ``optimism`` (by how much the search's is better), ``p``, ``n_trials``,
          ``expected_bias`` and ``shrunken`` of `estimate_selection_bias` for the standard deviation over retrains,
          all in the objective's unit. TOO_LITTLE_DATA without that.

    Raises
    ------
    ValueError
        When an argument is out of its range, ``config`` holds the seed, a baseline comes without the complexity, it
        is the candidate itself, the search has another direction, or a study of these names was begun with other
        arguments.
    """
    incumbent = baseline if baseline is None or isinstance(baseline, Baseline) else Baseline(config=dict(baseline))
    _check(config, incumbent, adds_complexity, n_retrains, known_sd, seed)
    if searched is not None and searched.direction != direction:
        raise ValueError(
            f"`direction` is {direction!r}, but the search {searched.name!r} is to {searched.direction} its objective: "
            "the retrains measure the same objective. Pass the direction of the search."
        )
    # Its refusals come before any run.
    compare_retrains([0.0, 0.0], [0.0, 0.0], direction, known_sd, known_freedom=known_freedom)
    storage = optuna.storages.get_storage(storage)
    options: dict[str, Any] = {"storage": storage, "direction": direction, "n_jobs": n_jobs}
    passed = tuple({seed: number} for number in range(n_retrains))

    def run(stage: str, fixed: Mapping[str, Any]) -> Trials:
        goal = f"How much do retrains of the {stage} differ?"
        if incumbent is not None:
            goal += f" Is the candidate better than the baseline? It adds: {adds_complexity.strip()}"
        plan = Plan(goal=goal, points=({},) * n_retrains, fixed=dict(fixed), passed=passed)
        return train_stage(plan, train, study_name=f"{study_name}/{stage}", **options)[0]

    trials = {"candidate": run("candidate", config)}
    candidate = trials["candidate"].objective
    findings = [_noise("candidate", candidate)]
    comparison = None
    is_adopted = False
    if incumbent is not None:
        if len(incumbent.objectives) < n_retrains:
            trials["baseline"] = run("baseline", incumbent.config)
            reached = trials["baseline"].objective
            finite = tuple(float(value) for value in reached[np.isfinite(reached)])
            incumbent = Baseline(**{**vars(incumbent), "objectives": finite})
        else:
            reached = np.array(incumbent.objectives)
        findings.append(_noise("baseline", reached))
        comparison = compare_retrains(candidate, reached, direction, known_sd, known_freedom=known_freedom)
        is_adopted = comparison.p <= ALPHA
        findings.append(_launch(comparison, adds_complexity.strip()))
    if searched is not None:
        findings.append(_searched_value(searched, candidate, known_sd, known_freedom))
    is_first = incumbent is None or is_adopted
    return Retraining(
        findings=tuple(findings),
        recommendation=dict(config) if is_first or incumbent is None else dict(incumbent.config),
        trials=trials,
        config=dict(config),
        objectives=tuple(candidate.tolist()),
        comparison=comparison,
        incumbent=incumbent,
        adds_complexity=adds_complexity.strip(),
        is_adopted=is_adopted,
    )


def _noise(subject: str, objective: NDArray[np.float64]) -> Finding:
    finite = objective[np.isfinite(objective)]
    spread = estimate_trial_variance([finite])
    numbers: dict[str, Number] = {
        "n_retrains": len(objective),
        "n_diverged": len(objective) - len(finite),
        "mean": float(finite.mean()) if len(finite) else None,
        "sd": _known(spread.sd),
        "sd_low": _known(spread.low),
        "sd_high": _known(spread.high),
    }
    verdict = Verdict.FLAG if len(finite) < len(objective) else Verdict.NO_EVIDENCE
    return Finding(check="retraining", subject=subject, verdict=verdict, numbers=numbers, section=SECTION)


def _launch(comparison: RetrainComparison, adds_complexity: str) -> Finding:
    return Finding(
        check="launch",
        subject="candidate",
        verdict=Verdict.FLAG if comparison.p <= ALPHA else Verdict.NO_EVIDENCE,
        numbers=comparison_numbers(comparison) | {"allowed_p": ALPHA, "adds_complexity": adds_complexity},
        section=SECTION,
        error_rate=ERROR_RATE,
    )


def _searched_value(
    searched: Trials, candidate: NDArray[np.float64], known_sd: float | None, known_freedom: float
) -> Finding:
    """Return whether the search's best result is one that a retrain would reach."""
    finite = candidate[np.isfinite(candidate)]
    rows = searched.ranking()
    spread = estimate_trial_variance([finite])
    sd, freedom = (spread.sd, float(spread.freedom)) if known_sd is None else (known_sd, known_freedom)
    numbers: dict[str, Number] = {"n_trials": len(rows)}
    verdict = Verdict.TOO_LITTLE_DATA
    if len(rows):
        numbers["search_best"] = float(searched.objective[rows[0]])
    if len(rows) and len(finite):
        mean = float(finite.mean())
        best = float(searched.objective[rows[0]])
        optimism = mean - best if searched.direction == "minimize" else best - mean
        numbers |= {"mean": mean, "optimism": optimism}
        if math.isfinite(sd) and sd > 0:
            bias = estimate_selection_bias(searched.objective[rows], sd, searched.direction)
            # One more run differs from the mean of the others by its own noise and theirs.
            height = optimism / (sd * math.sqrt(1.0 + 1.0 / len(finite)))
            p = float(scipy.special.ndtr(-height) if math.isinf(freedom) else scipy.special.stdtr(freedom, -height))
            numbers |= {"p": p, "expected_bias": bias.expected_bias, "shrunken": bias.shrunken, "sd": sd}
            verdict = Verdict.FLAG if p <= ALPHA else Verdict.NO_EVIDENCE
    return Finding(
        check="searched value",
        subject="candidate",
        verdict=verdict,
        numbers=numbers,
        section=SECTION,
        error_rate=ALPHA,
    )


def _evidence(comparison: RetrainComparison) -> str:
    runs = f"{comparison.n_candidate} retrains against {comparison.n_baseline} of the baseline"
    chance = f"the probability that it is better is {comparison.probability:.3g}"
    if comparison.method == "rank":
        n_diverged = (comparison.n_diverged_candidate, comparison.n_diverged_baseline)
        return f"{runs}, of which {n_diverged[0]} and {n_diverged[1]} diverged: {chance} by their ranks."
    interval = f"{comparison.confidence:.0%} interval {comparison.low:.4g} to {comparison.high:.4g}"
    return f"{runs}: better by {comparison.improvement:.4g} ({interval}); {chance}."


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _check(
    config: Mapping[str, Any],
    incumbent: Baseline | None,
    adds_complexity: str,
    n_retrains: int,
    known_sd: float | None,
    seed: str,
) -> None:
    least = 2 if known_sd is None else 1
    if n_retrains < least:
        raise ValueError(
            f"`n_retrains` is {n_retrains}: without `known_sd` at least 2 are needed for a spread, and with it at "
            "least 1. Pass 5, or more where an advantage below two standard deviations matters."
        )
    # It refuses what JSON cannot hold, before anything is trained.
    Baseline(config=config)
    for argument, one in (("config", config), ("baseline", incumbent.config if incumbent else {})):
        if seed in one:
            raise ValueError(
                f"`{argument}` has {seed!r} = {one[seed]!r}: the retrains set it to 0 to {n_retrains - 1}. Leave it "
                "out, or name the entry that takes the seed by `seed`."
            )
    if incumbent is None:
        return
    if not adds_complexity.strip():
        raise ValueError(
            f"`adds_complexity` is {adds_complexity!r}: a change is adopted only if it outweighs the complexity that "
            "it adds. Say in a sentence what it adds to the baseline, or 'none'."
        )
    if json.dumps(dict(config), sort_keys=True) == json.dumps(dict(incumbent.config), sort_keys=True):
        raise ValueError(
            f"`baseline` is {dict(incumbent.config)!r}, which is `config` itself: there is nothing to adopt. Pass the "
            "configuration that `config` is to replace, or leave it out to measure the noise."
        )
