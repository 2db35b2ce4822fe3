"""What must a worker know of a study to draw its next point? The settings, the foreign trials and the claims, all read.

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?".

Everything here is a memory of what the study's storage says and can be thrown away at any moment.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.storages import _CachedStorage
from optuna.trial import FrozenTrial

from playbook_plugins.optuna.coordinates import rank_claims
from playbook_plugins.optuna.halton import HaltonSequence, draw_permutations
from playbook_plugins.optuna.indices import TrialIndices

# The user attributes of the study: the settings, and the place in the order that an undeclared name has claimed.
SETTINGS_KEY = "playbook:sampler"
CLAIM_PREFIX = "playbook:dimension:"

_ALGORITHM = "greedy scrambled Halton"
_VERSION = 1
_ARGUMENTS = {"seed": "seed", "dimensions": "search_space", "scientific": "scientific"}
# Points are computed for so many consecutive indices at once, and kept for so many such runs.
_RUN = 16
_MAX_RUNS = 64
# Trials that are asked for and never told are forgotten beyond this many.
_MAX_OPEN_TRIALS = 10_000


def seed_of_name(study_name: str) -> int:
    """Return the seed that follows from a study's name, the same in every worker."""
    return int.from_bytes(hashlib.sha256(study_name.encode()).digest()[:4], "big")


def settings_of(
    study_name: str, seed: int | None, dimensions: Mapping[str, int], scientific: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return the settings that decide all points of a study, in the form that is kept with it."""
    return {
        "algorithm": _ALGORITHM,
        "version": _VERSION,
        "seed": seed_of_name(study_name) if seed is None else seed,
        "dimensions": dict(dimensions),
        # A list, because the order of the names decides which combination is which.
        "scientific": [[name, list(values)] for name, values in scientific.items()],
    }


class SampledStudy:
    """The memory of one study in one worker.

    Parameters
    ----------
    settings
        As `settings_of` makes them.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._sequence = _sequence(settings["seed"])
        self._dimensions: Mapping[str, int] = settings["dimensions"]
        self._scientific: Sequence[tuple[str, Sequence[Any]]] = settings["scientific"]
        self._n_combinations = math.prod(len(values) for _, values in self._scientific)
        self._indices = TrialIndices()
        self._claims: dict[str, int] = {}
        self._ranks: dict[str, int] = {}
        # From the number of a trial to the ranks that it began with, and the dimensions its names have drawn from.
        self._drawn: dict[int, tuple[dict[str, int], dict[str, int]]] = {}
        self._runs: dict[int, list[list[float]]] = {}
        self._is_checked = False
        self._is_settled = False

    def check(self, study: Study) -> None:
        """Compare the settings with the study's, once."""
        if not self._is_checked:
            self.settle(study)

    def settle(self, study: Study) -> None:
        """Read settings and claims, until they have once been found as they were left.

        After a write they are read again at the next trial: another worker may have written at the same moment.

        Raises
        ------
        ValueError
            When the study was begun with other settings.
        """
        if self._is_settled:
            return
        attributes = study._storage.get_study_user_attrs(study._study_id)
        kept = attributes.get(SETTINGS_KEY)
        if kept is None:
            study._storage.set_study_user_attr(study._study_id, SETTINGS_KEY, self._settings)
        else:
            _compare(kept, self._settings, study.study_name)
        self._is_checked = True
        self._is_settled = not self._read_claims(attributes) and kept is not None

    def count(self, study: Study, trial: FrozenTrial) -> TrialIndices:
        """Return the indices of the study's trials, counted up to this one at least."""
        if trial.number >= len(self._indices):
            for earlier in _trials_between(study, len(self._indices), trial.number):
                self._indices.append(earlier.system_attrs)
            self._indices.append(trial.system_attrs)
        return self._indices

    def scientific(self, study: Study, trial: FrozenTrial) -> dict[str, Any]:
        """Return the scientific values of a trial.

        Each run of as many indices as there are combinations holds every combination once, in random order.
        """
        block, place = divmod(self.count(study, trial).point(trial.number), self._n_combinations)
        # Two numbers as the key, because the dimensions of the sequence have one.
        (order,) = draw_permutations(self._settings["seed"], (0, block), (self._n_combinations,))
        combination = int(order[place])
        due = {}
        for name, values in self._scientific:
            combination, chosen = divmod(combination, len(values))
            due[name] = values[chosen]
        return due

    def coordinate(self, study: Study, trial: FrozenTrial, name: str) -> float:
        """Return the coordinate in [0, 1) of a hyperparameter that is not scientific."""
        point = self.count(study, trial).point(trial.number) // self._n_combinations
        dimension = self._dimensions.get(name)
        if dimension is None:
            dimension = self._claimed_dimension(study, trial, name)
        run, row = divmod(point, _RUN)
        points = self._runs.get(run)
        if points is None or len(points[row]) <= dimension:
            n_dimensions = max(dimension + 1, self._n_declared + len(self._claims))
            points = self._sequence.points(range(run * _RUN, (run + 1) * _RUN), range(n_dimensions)).tolist()
            if len(self._runs) >= _MAX_RUNS:
                self._runs.clear()
            self._runs[run] = points
        return points[row][dimension]

    def close(self, trial: FrozenTrial) -> None:
        """Forget what only a running trial needs."""
        self._drawn.pop(trial.number, None)

    @property
    def _n_declared(self) -> int:
        return 1 + max(self._dimensions.values(), default=-1)

    def _claimed_dimension(self, study: Study, trial: FrozenTrial, name: str) -> int:
        began_with, drawn = self._drawn.setdefault(trial.number, (self._ranks, {}))
        if name in drawn:
            return drawn[name]
        if name not in self._claims:
            self._claim(study, [*self._undeclared(trial), name])
        dimension = self._ranks[name]
        if self._ranks is not began_with:
            # The ranks may have moved since the trial began, as another worker's claim came to light. A name whose
            # dimension is taken draws from one that no name has, for this trial only.
            taken = {*drawn.values(), *(self._ranks[other] for other in self._undeclared(trial))}
            if dimension in taken:
                dimension = 1 + max(*taken, *self._ranks.values())
        drawn[name] = dimension
        if len(self._drawn) > _MAX_OPEN_TRIALS:
            del self._drawn[next(iter(self._drawn))]
        return dimension

    def _undeclared(self, trial: FrozenTrial) -> Iterator[str]:
        """Yield the names that the trial has already, in their order, where they were enqueued or fixed as well.

        They claim like the others, so that the order of the claims is the objective's.
        """
        scientific = {name for name, _ in self._scientific}
        for name, distribution in trial.distributions.items():
            if name not in self._dimensions and name not in scientific and not distribution.single():
                yield name

    def _claim(self, study: Study, names: Sequence[str]) -> None:
        storage, study_id = study._storage, study._study_id
        self._read_claims(storage.get_study_user_attrs(study_id))
        for name in names:
            if name not in self._claims:
                place = 1 + max(self._claims.values(), default=-1)
                storage.set_study_user_attr(study_id, CLAIM_PREFIX + name, place)
                self._claims[name] = place
                self._is_settled = False
        self._ranks = rank_claims(self._claims, self._n_declared)

    def _read_claims(self, attributes: Mapping[str, Any]) -> bool:
        """Take over the claims kept with the study, and return whether any of them is news."""
        kept = {
            key.removeprefix(CLAIM_PREFIX): place for key, place in attributes.items() if key.startswith(CLAIM_PREFIX)
        }
        if kept == self._claims:
            return False
        self._claims.update(kept)
        self._ranks = rank_claims(self._claims, self._n_declared)
        return True


@functools.lru_cache(maxsize=16)
def _sequence(seed: int) -> HaltonSequence:
    """Return the sequence of a seed, shared by all studies of the process."""
    return HaltonSequence(seed)


def _trials_between(study: Study, first: int, end: int) -> Iterator[FrozenTrial]:
    """Yield the trials with the numbers first, ..., end - 1 of the whole study, whatever a pruner filters."""
    if first == end:
        return
    storage = study._storage
    numbers = range(first, end)
    if isinstance(storage, _CachedStorage):
        # `Study.ask` has just read the trials of the other workers to look for waiting ones; they lie here. Reading
        # them once more would take up to seven queries.
        held = getattr(getattr(storage, "_studies", {}).get(study._study_id), "trials", {})
        trials = [held[number] for number in numbers if number in held]
        if len(trials) == len(numbers):
            yield from trials
            return
    everything = {trial.number: trial for trial in storage.get_all_trials(study._study_id, deepcopy=False)[first:]}
    for number in numbers:
        if number not in everything:
            raise RuntimeError(
                f"Trial {number} of the study {study.study_name!r} is missing in its storage, which has trial {end}: "
                "an index depends on all trials before it. Check the storage."
            )
        yield everything[number]


def _compare(kept: Mapping[str, Any], own: Mapping[str, Any], study_name: str) -> None:
    for key in ("algorithm", "version"):
        if kept.get(key) != own[key]:
            raise ValueError(
                f"`study` {study_name!r} was begun with {key} {kept.get(key)!r} of HaltonSampler, and this one has "
                f"{own[key]!r}: its further points would not belong to the same sequence. Continue it with the version "
                "of playbook-plugins that began it, or begin a new study."
            )
    for key, argument in _ARGUMENTS.items():
        # As text: True is not 1, and the order of scientific values counts.
        if json.dumps(kept.get(key), sort_keys=True) != json.dumps(own[key], sort_keys=True):
            raise ValueError(
                f"`{argument}` of HaltonSampler gives the {key} {own[key]!r}, but the study {study_name!r} was begun "
                f"with {kept.get(key)!r}: all trials of a study come from one sequence. Pass the `{argument}` that it "
                "was begun with, or begin a new study."
            )
