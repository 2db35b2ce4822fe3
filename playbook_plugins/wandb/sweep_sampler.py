"""Which point comes next, when the scheduler that drew the earlier ones was stopped and another goes on with the sweep?

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?" (its points do not depend on what other trials found, so a search may stop anywhere).

W&B's scheduler keeps no study. At each start it makes one and fills it from the sweep's runs: the finished ones are
added, the active ones are enqueued, in the order in which W&B lists them, and some are left out. The numbers of the
trials say nothing then. Their values do: each lies at one point of the sequence, and the next point is the one after
the last.

The one module of this sub-package that imports `playbook_plugins.optuna`; `halton_sweep` imports it when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study, create_study, logging
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from playbook_plugins.optuna.indices import FIXED_PARAMS_KEY
from playbook_plugins.optuna.sampler import HaltonSampler

# A trial is looked for among the first so many points, and as many more as twice the trials of the study. Runs that
# were added to the sweep by hand lie at none, and the search for them must end.
_N_SEARCHED = 1024


class SweepSampler(HaltonSampler):
    """`HaltonSampler` for a study that W&B's scheduler fills anew at each start.

    Each trial of the study draws from a trial of another study, the sequence, which is kept in memory and where every
    trial has its place. A fresh trial takes the point after the last one that any trial of the study has taken, by
    whichever scheduler. So a gap stays one: a point without a run, because W&B refused it or the user deleted it, or
    one whose run the scheduler does not show, because it cannot read the metric. Nothing tells these apart, and to
    train a diverged run again at each start would be the worse mistake.

    Parameters
    ----------
    name
        Decides the seed, where ``seed`` is None: the id of the sweep.
    seed, search_space, scientific
        As `HaltonSampler` takes them.
    """

    def __init__(
        self,
        *,
        name: str,
        seed: int | None = None,
        search_space: Mapping[str, Any] | None = None,
        scientific: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        super().__init__(seed=seed, search_space=search_space, scientific=scientific)
        self._halton = HaltonSampler(seed=seed, search_space=search_space, scientific=scientific)
        self._sequence = _create_quietly(name, self._halton)
        # The trials of the sequence by their index in it.
        self._points: list[FrozenTrial] = []
        # From the number of a trial of the study to the trial of the sequence that it draws from, while it runs.
        self._sources: dict[int, FrozenTrial] = {}
        # From the number of a trial of the study to its index; None where it lies at no point.
        self._indices: dict[int, int | None] = {}
        self._taken: set[int] = set()
        self._last = -1
        self._tables: dict[tuple[tuple[str, str], ...], _Table] = {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Give the trial its point, unless it is an active run that is being adopted."""
        with self._lock:
            if FIXED_PARAMS_KEY in trial.system_attrs:
                # What its configuration lacks comes from the far part of the sequence.
                self._sequence.enqueue_trial({})
                self._sources[trial.number] = self._ask()
                return
            self._recognize(study, before=trial.number)
            self._enter(trial, self._last + 1)
            self._sources[trial.number] = self._point(self._last)

    def sample_independent(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return the value of one hyperparameter at the trial's point."""
        with self._lock:
            return self._draw(self._sources[trial.number], param_name, param_distribution)

    def after_trial(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,
        state: TrialState,  # noqa: ARG002
        values: Sequence[float] | None,  # noqa: ARG002
    ) -> None:
        """Forget what only a running trial needs."""
        with self._lock:
            self._sources.pop(trial.number, None)

    def index(self, study: Study, trial: FrozenTrial | Trial) -> int | None:
        """Return the index of a trial in the sequence; None for one that lies at no point of it."""
        with self._lock:
            self._recognize(study, before=trial.number + 1)
            return self._indices.get(trial.number)

    def _recognize(self, study: Study, before: int) -> None:
        """Find the indices of the trials that another scheduler began."""
        trials = study.get_trials(deepcopy=False)
        for trial in trials[:before]:
            if trial.number not in self._indices and (trial.distributions or trial.state.is_finished()):
                self._enter(trial, self._find(trial, _N_SEARCHED + 2 * len(trials)))

    def _enter(self, trial: FrozenTrial, index: int | None) -> None:
        self._indices[trial.number] = index
        if index is not None:
            self._taken.add(index)
            self._last = max(self._last, index)

    def _find(self, trial: FrozenTrial, end: int) -> int | None:
        """Return the first index, of no other trial and below ``end``, at which the trial's values lie."""
        space = {name: space for name, space in sorted(trial.distributions.items()) if not space.single()}
        if not space:
            return None
        table = self._tables.setdefault(tuple((name, repr(entry)) for name, entry in space.items()), _Table())
        wanted = _spell(trial.params, space)
        while True:
            free = [index for index in table.indices.get(wanted, ()) if index not in self._taken]
            if free or table.n_points >= end:
                return free[0] if free else None
            point = self._point(table.n_points)
            table.add(_spell({name: self._draw(point, name, entry) for name, entry in space.items()}, space))

    def _draw(self, point: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        return self._halton.sample_independent(self._sequence, point, name, distribution)

    def _point(self, index: int) -> FrozenTrial:
        while len(self._points) <= index:
            self._points.append(self._ask())
        return self._points[index]

    def _ask(self) -> FrozenTrial:
        self._sequence.ask()
        return self._sequence.get_trials(deepcopy=False)[-1]


def _create_quietly(name: str, sampler: HaltonSampler) -> Study:
    """Create a study in memory without Optuna's note on it: the user asked for one study, not for two."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        return create_study(study_name=name, sampler=sampler)
    finally:
        logging.set_verbosity(verbosity)


class _Table:
    """Which of the first points have which values, in one space."""

    def __init__(self) -> None:
        self.n_points = 0
        self.indices: dict[tuple[str, ...], list[int]] = {}

    def add(self, values: tuple[str, ...]) -> None:
        """Enter the values of the next point."""
        self.indices.setdefault(values, []).append(self.n_points)
        self.n_points += 1


def _spell(values: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> tuple[str, ...]:
    """Return the values so that equal ones are equal texts: on its way through JSON, W&B writes 1 for 1.0."""
    return tuple(f"{entry.to_internal_repr(values[name]):.12g}" for name, entry in space.items())
