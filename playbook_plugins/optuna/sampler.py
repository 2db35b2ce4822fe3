"""How do the trials of a round spread evenly over the search space? Optuna's sampler for quasi-random search.

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?", "Where can I find an implementation of quasi-random search?".

The sampler keeps nothing of its own: a trial's number, and what the storage says of the trials before it, give its
index in the sequence of `playbook_plugins.optuna.halton`; the index and the hyperparameter give the value.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from playbook_plugins.optuna.coordinates import (
    SearchSpace,
    assign_dimensions,
    check_scientific,
    scientific_value,
    value_at,
)
from playbook_plugins.optuna.halton import check_seed
from playbook_plugins.optuna.sampled_study import SampledStudy, settings_of


class HaltonSampler(BaseSampler):
    """Optuna's sampler for the playbook's quasi-random search: non-adaptive, even, the same for any number of workers.

    Parallel workers draw exactly the points that one worker would draw alone. Trial 0, conditional hyperparameters and
    ranges that change are all drawn from the sequence; nothing falls back to random draws. Enqueued trials take no
    point; a retried trial takes the point of the one that was lost.

    Parameters
    ----------
    seed
        A whole number, 0 or greater. By default it is derived from the study's name, so that workers agree without a
        message: unlike Optuna's other samplers this one is deterministic then, and another seed or another name gives
        another draw.
    search_space
        The hyperparameters in order of importance, as the first dimensions of the sequence cover best: from name to
        Optuna distribution, or, for exclusive branches, from the parent's name to ``{value: {name: distribution}}``,
        where the k-th hyperparameters of the branches share a dimension. Only names and order matter to the sampler;
        values are drawn from what the objective asks for, so that a range may still be widened.

        Recommended, and needed for exact agreement of workers when the objective has branches. Names that are not
        declared claim a dimension when they are first suggested; the claims are kept with the study. Without branches
        that order is the same in every worker. With branches, workers that start together may claim in different
        orders; no two names ever share a dimension within a trial, but the points may differ from a sequential run's.
    scientific
        The scientific hyperparameters with finitely many values, from name to values: they are covered exactly evenly,
        in randomly permuted blocks of all combinations, and every combination is tried at the same points of the
        nuisance hyperparameters. The objective must suggest them as categorical, integer or a float grid, from values
        that contain those listed. They take no dimension.

    Raises
    ------
    ValueError
        When an argument is out of its domain; when a study was begun with other settings, at its next trial.

    Notes
    -----
    A trial added with `Study.add_trial` that is neither enqueued nor a retry counts like any other, and so takes up an
    index. The settings are kept in the study's user attribute ``playbook:sampler``.

    Examples
    --------
    >>> import optuna
    >>> from optuna.distributions import FloatDistribution
    >>> sampler = HaltonSampler(
    ...     seed=0,
    ...     search_space={
    ...         "weight_decay": FloatDistribution(1e-6, 1e-2, log=True),
    ...         "optimizer": {
    ...             "adam": {"adam.learning_rate": FloatDistribution(1e-5, 1e-1, log=True)},
    ...             "nesterov": {"nesterov.learning_rate": FloatDistribution(1e-3, 1e1, log=True)},
    ...         },
    ...     },
    ...     scientific={"optimizer": ["adam", "nesterov"]},
    ... )
    >>> study = optuna.create_study(sampler=sampler)
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        search_space: SearchSpace | None = None,
        scientific: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        self.seed = None if seed is None else check_seed(seed)
        self.search_space = search_space
        self.scientific = scientific
        self._values = check_scientific(scientific or {})
        self._dimensions = assign_dimensions(search_space or {}, without=self._values)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.RLock()
        self._studies: weakref.WeakKeyDictionary[BaseStorage, dict[tuple[int, str], SampledStudy]]
        self._studies = weakref.WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the arguments only; the rest is read from the study again."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_studies")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the arguments."""
        self.__dict__.update(state)
        self._forget()

    def reseed_rng(self) -> None:
        """Do nothing: workers share one sequence, so its seed must not change in a worker."""

    def infer_relative_search_space(
        self,
        study: Study,  # noqa: ARG002
        trial: FrozenTrial,  # noqa: ARG002
    ) -> dict[str, BaseDistribution]:
        """Return an empty space: each value is drawn when the objective asks for it, from the range it asks for."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the values of the hyperparameters in ``search_space`` at the trial's point."""
        return {name: self.sample_independent(study, trial, name, space) for name, space in search_space.items()}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return the value of one hyperparameter at the trial's point.

        Raises
        ------
        ValueError
            When a scientific hyperparameter is suggested from values that lack one of those listed, or when the study
            was begun with other settings.
        """
        with self._lock:
            sampled = self._sampled(study)
            sampled.check(study)
            if param_name in self._values:
                value = sampled.scientific(study, trial)[param_name]
                return scientific_value(param_name, value, self._values[param_name], param_distribution)
            return value_at(sampled.coordinate(study, trial, param_name), param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Find the trial's index, and check on the first trial that the study has these settings.

        Raises
        ------
        ValueError
            When the study was begun with other settings; the trial is told as failed first, as nobody will run it.
        """
        with self._lock:
            if trial.number == 0:
                # A deleted study may have left its name and its id to a new one.
                self._studies.get(study._storage, {}).pop(_key(study), None)
            sampled = self._sampled(study)
            try:
                sampled.settle(study)
            except ValueError:
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
                raise
            # Now, because here the trial carries its system attributes; later each look at them is a query.
            sampled.count(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,  # noqa: ARG002
    ) -> None:
        """Forget the trial, and warn when it suggested none of the scientific hyperparameters."""
        with self._lock:
            sampled = self._sampled(study)
            sampled.close(trial)
            unused = (
                state is TrialState.COMPLETE and self._values and not any(name in trial.params for name in self._values)
            )
            if unused and sampled.count(study, trial).index(trial.number) is not None:
                warnings.warn(
                    f"`scientific` names {list(self._values)}, but trial {trial.number} suggested none of them: its "
                    "nuisance hyperparameters repeat the point of other trials. Suggest them in the objective, or "
                    "leave them out of `scientific`.",
                    stacklevel=2,
                )

    def index(self, study: Study, trial: FrozenTrial | Trial) -> int | None:
        """Return the index of a trial in the sequence, without writing to the study.

        Parameters
        ----------
        study
            The study of the trial.
        trial
            A trial of it in any state, also a running one.

        Returns
        -------
        int or None
            The index, counted from 0; None for a trial enqueued by the user and for its retries. With ``scientific``
            the K combinations of the indices K b to K b + K - 1 share the b-th point of the nuisances.
        """
        frozen = study._storage.get_trial(trial._trial_id) if isinstance(trial, Trial) else trial
        with self._lock:
            return self._sampled(study).count(study, frozen).index(frozen.number)

    def check(self, study: Study) -> None:
        """Write these settings into a study that has none yet, and refuse one that was begun with others.

        Each worker's first trial does the same; called before, it costs no trial.

        Raises
        ------
        ValueError
            When the study was begun with other settings.
        """
        with self._lock:
            self._sampled(study).settle(study)

    def _sampled(self, study: Study) -> SampledStudy:
        of_storage = self._studies.setdefault(study._storage, {})
        sampled = of_storage.get(_key(study))
        if sampled is None:
            sampled = SampledStudy(settings_of(study.study_name, self.seed, self._dimensions, self._values))
            of_storage[_key(study)] = sampled
        return sampled


def _key(study: Study) -> tuple[int, str]:
    return study._study_id, study.study_name
