"""What does this round of experiments ask, and which hyperparameters play which role in it?

Playbook: "Designing the next round of experiments": a goal; scientific hyperparameters, whose effect is the question;
nuisance hyperparameters, optimized away for a fair comparison; fixed ones, whose values limit the conclusions.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.records import Direction
from playbook_plugins.optuna.baseline import Baseline
from playbook_plugins.optuna.round_checks import check_round, scientific_distribution, warn_of_few_trials
from playbook_plugins.optuna.round_space import Branches, Entry, Space, list_entries, sampled_space, sort_entries
from playbook_plugins.optuna.running import Callback, Train, run_round, wrap_training
from playbook_plugins.optuna.sampled_study import seed_of_name
from playbook_plugins.optuna.sampler import HaltonSampler
from playbook_plugins.optuna.trials import EXPLOITATION_KEY, ROUND_KEY, parameter_of

# What may change while the same sequence goes on.
_FREE_TO_CHANGE = ("goal", "n_trials", "baseline", "caveats")


class Round:
    """A round of experiments: its goal, the roles of the hyperparameters and the number of trials.

    Parameters
    ----------
    goal
        The question that the round answers, in words.
    scientific
        The hyperparameters whose effect is measured: values, or an Optuna distribution. Finite ones are covered
        exactly evenly, and every value faces the same points of the shared nuisances.
    nuisance
        The hyperparameters to optimize over, as Optuna distributions, in order of importance. May be empty where
        ``conditional`` has some.
    fixed
        The hyperparameters held constant, with values that JSON can hold.
    conditional
        Hyperparameters that exist only for one value of another: ``{"optimizer": {"adam": {"learning_rate": ...}}}``.
        They are stored as ``adam.learning_rate`` and handed over as ``learning_rate``: two that share a name are still
        two hyperparameters.
    n_trials
        The number of trials of the whole round, over all scientific values.
    chance_level
        The objective of guessing, in the objective's unit: a trial that is no better is infeasible. By default none.
    seed
        The draw of the quasi-random sequence, >= 0. By default it follows from the study's name.
    baseline
        The incumbent configuration, kept with the round; the next round takes it over until a launch replaces it.

    Raises
    ------
    ValueError
        When the goal or the search space is empty, a name has two roles, a branch has no such parent value, a fixed
        value cannot be kept, or n_trials is below 1.
    """

    def __init__(
        self,
        goal: str,
        *,
        scientific: Mapping[str, Sequence[Any] | BaseDistribution],
        nuisance: Space,
        fixed: Mapping[str, Any] | None = None,
        conditional: Branches | None = None,
        n_trials: int,
        chance_level: float | None = None,
        seed: int | None = None,
        baseline: Baseline | None = None,
    ) -> None:
        self.goal = goal
        self.scientific = {name: scientific_distribution(name, values) for name, values in scientific.items()}
        self.nuisance = dict(nuisance)
        self.fixed = dict(fixed or {})
        self.conditional = {
            parent: {value: dict(space) for value, space in branches.items()}
            for parent, branches in (conditional or {}).items()
        }
        self.n_trials = n_trials
        self.chance_level = chance_level
        self.seed = seed
        self.baseline = baseline
        check_round(goal, self.scientific, self.nuisance, self.fixed, self.conditional, n_trials)

    @property
    def caveats(self) -> tuple[str, ...]:
        """What the fixed values limit, one sentence each (playbook: fixed hyperparameters come with caveats)."""
        return tuple(
            f"{name} was {value!r} in every trial: the conclusions hold for this value, and may not for others."
            for name, value in self.fixed.items()
        )

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The search space, as the tables of the round's studies have it; a branch's under their stored names."""
        return tuple(
            parameter_of(entry.stored, entry.distribution, entry.role, entry.condition) for entry in self._entries()
        )

    def suggest(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Return the whole configuration of a trial: scientific, nuisance, its branch's, and fixed values.

        Parameters
        ----------
        trial
            A trial of a study made by `create_study` or `load_study`, or a FixedTrial or FrozenTrial with all values.

        Returns
        -------
        dict
            Plain values by name.

        Raises
        ------
        ValueError
            When the study runs under another sampler: its points would not be the round's.
        """
        if isinstance(trial, optuna.Trial):
            self.check_sampler(trial.study)
        config: dict[str, Any] = {}
        for entry in self._entries():
            if entry.condition is None or config.get(entry.condition[0]) == entry.condition[1]:
                config[entry.given] = entry.suggest(trial)
        return config | self.fixed

    def create_study(
        self,
        *,
        study_name: str | None = None,
        storage: str | optuna.storages.BaseStorage | None = None,
        direction: Direction = "minimize",
        load_if_exists: bool = False,
    ) -> optuna.Study:
        """Create the round's study, or go on with it.

        Parameters
        ----------
        study_name, storage, direction, load_if_exists
            As in `optuna.create_study`.

        Returns
        -------
        optuna.Study
            Under the round's own sampler, with the round kept in it, so that any worker or report can rebuild it.

        Raises
        ------
        ValueError
            When the study exists and belongs to another round. A changed n_trials or goal is no other round: the same
            sequence goes on.
        """
        study = optuna.create_study(
            study_name=study_name, storage=storage, direction=direction, load_if_exists=load_if_exists
        )
        kept = study.user_attrs.get(ROUND_KEY)
        if kept is None and study.get_trials(deepcopy=False):
            raise ValueError(
                f"`study_name` is {study.study_name!r}: this study has trials, but no round is kept in it, so its "
                "points are not the round's. Choose another name for the round's study."
            )
        if kept is None:
            warn_of_few_trials(self.n_trials, self.scientific, self.nuisance, self.conditional)
        else:
            self._check_same(json.loads(kept), study.study_name)
        if kept != self.to_json():
            study.set_user_attr(ROUND_KEY, self.to_json())
        return self._under_own_sampler(study)

    def as_studies(
        self,
        *,
        study_name: str,
        storage: str | optuna.storages.BaseStorage | None = None,
        direction: Direction = "minimize",
        load_if_exists: bool = False,
    ) -> dict[str, optuna.Study]:
        """Create one study a combination of scientific values, instead of one study for all.

        All are on the round's one seed, so that every value faces the same points of the nuisances. Each keeps a round
        of its own, in which the scientific values are fixed: ``Round.from_study(study).optimize(study, train)`` runs
        it, and `Trials.concat` joins the tables again.

        Parameters
        ----------
        study_name
            The beginning of the names; the values follow, as in ``"digits/optimizer=adam"``.
        storage, direction, load_if_exists
            As in `create_study`.

        Returns
        -------
        dict of str to optuna.Study
            By the values, as in ``"optimizer=adam"``. The trials are shared out evenly.
        """
        seed = seed_of_name(study_name) if self.seed is None else self.seed
        _, scientific = sampled_space(self.scientific, self.nuisance, self.conditional)
        combinations = [
            dict(zip(scientific, values, strict=True)) for values in itertools.product(*scientific.values())
        ]
        studies = {}
        for place, values in enumerate(combinations):
            n_trials = (self.n_trials + len(combinations) - 1 - place) // len(combinations)
            if n_trials:
                label = ", ".join(f"{name}={value}" for name, value in values.items())
                studies[label] = self._fix(values, n_trials, seed).create_study(
                    study_name=f"{study_name}/{label}",
                    storage=storage,
                    direction=direction,
                    load_if_exists=load_if_exists,
                )
        return studies

    def _fix(self, values: dict[str, Any], n_trials: int, seed: int) -> Round:
        """Return the round with scientific hyperparameters fixed; of their branches one stays, without condition."""
        nuisance = dict(self.nuisance)
        for parent, value in values.items():
            nuisance |= self.conditional.get(parent, {}).get(value, {})
        return Round(
            self.goal,
            scientific={name: space for name, space in self.scientific.items() if name not in values},
            nuisance=nuisance,
            fixed=self.fixed | values,
            conditional={parent: branches for parent, branches in self.conditional.items() if parent not in values},
            n_trials=n_trials,
            chance_level=self.chance_level,
            seed=seed,
            baseline=self.baseline,
        )

    @classmethod
    def load_study(cls, *, study_name: str | None = None, storage: str | optuna.storages.BaseStorage) -> optuna.Study:
        """Load a study that `create_study` made, under its round's sampler.

        Raises
        ------
        KeyError
            When there is no such study.
        ValueError
            When no round is kept with it.
        """
        study = optuna.load_study(study_name=study_name, storage=storage)
        return cls.from_study(study)._under_own_sampler(study)

    @classmethod
    def from_study(cls, study: optuna.Study) -> Round:
        """Rebuild the round kept in a study.

        Raises
        ------
        ValueError
            When no round is kept with it.
        """
        kept = study.user_attrs.get(ROUND_KEY)
        if kept is None:
            raise ValueError(
                f"`study` {study.study_name!r} has no round kept in it: it was not made by Round.create_study. Create "
                "its study that way, or use trials_from_study, which reads any study."
            )
        return cls.from_json(kept)

    def objective(self, train: Train) -> Callable[[optuna.Trial], float]:
        """Wrap a training function into an Optuna objective.

        Out of memory, divergence and `InfeasibleError` become infeasible trials. Any other exception is the user's to
        see: the trial fails, and the exception goes on.

        Parameters
        ----------
        train
            ``train(config, trial) -> TrialRecord``.

        Returns
        -------
        callable
            ``objective(trial) -> float``, for `optuna.Study.optimize`.
        """
        return wrap_training(self.suggest, train, self.chance_level)

    def optimize(
        self,
        study: optuna.Study,
        train: Train,
        *,
        n_jobs: int = 1,
        timeout: float | None = None,
        callbacks: Sequence[Callback] = (),
        catch: type[Exception] | tuple[type[Exception], ...] = (),
        older_than: datetime.timedelta | None = None,
    ) -> None:
        """Run trials until the round has its n_trials in all, whoever ran them.

        A run that was killed is started again with the same call: it first queues what the killed one left
        (`redo_lost`), then goes on where it stopped. Several processes may call it at once; what one of them leaves
        that dies meanwhile, the others find and do, the last of them before it returns. What ended by an error that
        ``catch`` names is tried again by the next call, and `trials_from_study` gives the error as its reason.

        Parameters
        ----------
        study
            The study of `create_study` or `load_study`.
        train
            ``train(config, trial) -> TrialRecord``.
        n_jobs, timeout, callbacks, catch
            As in `optuna.Study.optimize`.
        older_than
            As in `redo_lost`, at the start.

        Raises
        ------
        ValueError
            When the study runs under another sampler.
        """
        self.check_sampler(study)
        run_round(
            study,
            self.objective(train),
            self.n_trials,
            n_jobs=n_jobs,
            timeout=timeout,
            callbacks=callbacks,
            catch=catch if isinstance(catch, tuple) else (catch,),
            older_than=older_than,
        )

    def to_json(self) -> str:
        """Return the round as JSON, the form kept in its study."""
        return json.dumps(
            {
                "version": 1,
                "goal": self.goal,
                "n_trials": self.n_trials,
                "seed": self.seed,
                "chance_level": self.chance_level,
                "baseline": self.baseline.to_plain() if self.baseline else None,
                "fixed": self.fixed,
                "caveats": self.caveats,
                "space": [entry.to_plain() for entry in self._entries()],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Round:
        """Rebuild a round from `to_json`.

        Raises
        ------
        ValueError
            When the text was written by a newer version of this package.
        """
        data = json.loads(text)
        if data.get("version") != 1:
            raise ValueError(
                f"`text` is a round of version {data.get('version')!r}: this package reads version 1. Upgrade "
                "playbook-plugins to read it."
            )
        scientific, nuisance, conditional = sort_entries(Entry.from_plain(plain) for plain in data["space"])
        return cls(
            data["goal"],
            scientific=scientific,
            nuisance=nuisance,
            fixed=data["fixed"],
            conditional=conditional,
            n_trials=data["n_trials"],
            chance_level=data["chance_level"],
            seed=data["seed"],
            baseline=Baseline.from_plain(data["baseline"]) if data.get("baseline") else None,
        )

    def _entries(self) -> list[Entry]:
        return list(list_entries(self.scientific, self.nuisance, self.conditional))

    def _under_own_sampler(self, study: optuna.Study) -> optuna.Study:
        """Set the round's sampler; a study begun with other settings is refused here, where it costs no trial."""
        if EXPLOITATION_KEY in study.user_attrs:
            raise ValueError(
                f"`study` {study.study_name!r} is the Bayesian phase of a round: its sampler learns from the trials, "
                "and the round's own would not. Open it again with create_exploitation_study."
            )
        sampler = self._sampler()
        sampler.check(study)
        study.sampler = sampler
        return study

    def _sampler(self) -> HaltonSampler:
        """Return the sampler of the round: branches share dimensions, as they never meet in one trial."""
        search_space, scientific = sampled_space(self.scientific, self.nuisance, self.conditional)
        return HaltonSampler(seed=self.seed, search_space=search_space, scientific=scientific or None)

    def check_sampler(self, study: optuna.Study) -> None:
        """Raise ValueError where a study does not run under the round's sampler."""
        sampler = getattr(study.sampler, "_base_sampler", study.sampler)
        if not isinstance(sampler, HaltonSampler):
            raise ValueError(
                f"`study` {study.study_name!r} runs under {type(study.sampler).__name__}: the round's points come from "
                "its own HaltonSampler. Make the study with Round.create_study or Round.load_study, which set it."
            )

    def _check_same(self, kept: Mapping[str, Any], study_name: str) -> None:
        own = json.loads(self.to_json())
        changed = [name for name in own if name not in _FREE_TO_CHANGE and own[name] != kept.get(name)]
        if changed:
            raise ValueError(
                f"`study_name` is {study_name!r}: the round kept in this study differs from this one in {changed}. A "
                "study holds one round; only its goal and n_trials may change. Give the changed round a study of its "
                "own, or rebuild the kept one with Round.from_study."
            )
