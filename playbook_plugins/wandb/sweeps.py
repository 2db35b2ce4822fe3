"""How does a W&B sweep search quasi-randomly? A study for the Optuna engine of ``wandb sweep-scheduler``.

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?", "Where can I find an implementation of quasi-random search?".

W&B's own methods are grid, random and bayes. Since version 0.31 its client can leave the choice of the runs to an
Optuna study in a process of the user's; the agents that train stay as they are.

This is the one place where the sub-package needs `playbook_plugins.optuna`, which holds the sequence: the points of a
sweep and of a study are the same then. It is imported when `halton_sweep` is called, so that the rest of the
sub-package neither needs nor loads Optuna.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import optuna
    from wandb.sdk.sweeps.sweep_info import SweepInfo

# The user attribute of a kept study that says which sweep it mirrors.
SWEEP_KEY = "playbook:sweep"


def halton_sweep(
    sweep: SweepInfo,
    *,
    seed: int | None = None,
    scientific: Mapping[str, Sequence[Any]] | Sequence[str] | None = None,
    storage: str | optuna.storages.BaseStorage | None = None,
    study_name: str | None = None,
    search_space: Mapping[str, Any] | Sequence[str] | None = None,
) -> optuna.Study:
    """Return the study from which W&B's scheduler draws the runs of a sweep: quasi-random, the same at each start.

    It is the function that ``scheduler.optimizer`` names in a sweep's YAML. The whole file ``halton.py``::

        from playbook_plugins.wandb import halton_sweep as optimizer

    and in the sweep's YAML ``scheduler: {engine: optuna, source: halton.py, optimizer: optimizer}``. Arguments are
    given by ``optimizer = functools.partial(halton_sweep, scientific=["optimizer"])``.

    A scheduler that is stopped and started again goes on at the next point: see Notes.

    Parameters
    ----------
    sweep
        The sweep, as the scheduler hands it over. Its ``metric`` has a name, and the goal "minimize" or "maximize".
    seed
        A whole number, 0 or greater; by default it follows from the sweep's id. It must stay the same at each start.
    scientific
        The hyperparameters whose values are compared and so are covered evenly: names of parameters of the sweep that
        have ``values``, or from names to values.
    storage
        An Optuna storage or its URL, to look at the study with Optuna's tools; by default the study is in memory. It
        holds a copy: W&B keeps the runs, and each start of the scheduler makes the study anew from them.
    study_name
        The study's name in the storage; by default ``sweep-<id>``.
    search_space
        The hyperparameters in order of importance, as the first dimensions of the sequence cover best: their names,
        or a mapping as `HaltonSampler` takes it. By default those of the sweep's ``parameters`` that have more than
        one value, in the order in which W&B returns them, which is the alphabet's. With ``scheduler.search_space`` in
        the YAML the names come from that function; declare them here where it has branches.

    Returns
    -------
    optuna.Study
        With a sampler that is a `playbook_plugins.optuna.HaltonSampler`, and a pruner that stops no run.

    Raises
    ------
    ValueError
        When the sweep has no metric, several, or an unknown goal; when ``scientific`` names what is not a parameter
        with values; when the storage holds a study of that name which is not this sweep's.
    ImportError
        When Optuna is not installed.

    Notes
    -----
    At each start W&B's scheduler shows the study the runs that the sweep has. They are recognized by their values, in
    any order; runs that do not come from the sequence take up no point. The points then go on after the last that is
    known, with none twice and none left out. Failed runs and infeasible ones count as drawn. A run that was deleted
    from the sweep is drawn again only if it was the last one.

    The search never ends by itself: give the sweep a ``run_cap``. Run one scheduler of a sweep at a time.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError(
            "optuna draws the runs of a quasi-random sweep and is not installed. Run: pip install "
            "'playbook-plugins[wandb,optuna]'"
        ) from error
    from playbook_plugins.wandb.sweep_sampler import SweepSampler

    direction = _direction(sweep)
    parameters = sweep.config.get("parameters") or {}
    sampler = SweepSampler(
        name=sweep.id,
        seed=seed,
        search_space=_search_space(parameters, search_space),
        scientific=_scientific(parameters, scientific),
    )
    name = study_name or f"sweep-{sweep.id}"
    address = f"{sweep.entity}/{sweep.project}/{sweep.id}"
    if storage is not None:
        _remove_copy(storage, name, address)
    study = optuna.create_study(
        study_name=name, storage=storage, direction=direction, sampler=sampler, pruner=optuna.pruners.NopPruner()
    )
    study.set_user_attr(SWEEP_KEY, address)
    return study


def _direction(sweep: SweepInfo) -> Literal["minimize", "maximize"]:
    if sweep.config.get("metrics") is not None:
        names = [metric.get("name") for metric in sweep.config["metrics"]]
        raise ValueError(
            f"`sweep` {sweep.id!r} has the metrics {names!r}: the playbook compares trials by one. Write the one to "
            "compare by as `metric: {name: ..., goal: minimize}` into the sweep's configuration, and log the others."
        )
    metric = sweep.config.get("metric") or {}
    goal = str(metric.get("goal", "minimize")).lower()
    if not metric.get("name") or goal not in ("minimize", "maximize"):
        raise ValueError(
            f"`sweep` {sweep.id!r} has the metric {metric!r}: it must have a name, and the goal 'minimize' or "
            "'maximize'. Write for instance `metric: {name: val_error, goal: minimize}` into the sweep's configuration."
        )
    return "minimize" if goal == "minimize" else "maximize"


def _search_space(
    parameters: Mapping[str, Mapping[str, Any]], search_space: Mapping[str, Any] | Sequence[str] | None
) -> Mapping[str, Any]:
    if isinstance(search_space, Mapping):
        return search_space
    varied = [name for name, spec in parameters.items() if not _is_constant(spec)]
    if isinstance(search_space, str):
        raise ValueError(
            f"`search_space` is {search_space!r}: it must be a sequence of names, or a mapping from names to Optuna "
            f"distributions. Pass [{search_space!r}]."
        )
    if search_space is not None:
        unknown = [name for name in search_space if name not in varied]
        if unknown and varied:
            raise ValueError(
                f"`search_space` names {unknown!r}, which the sweep does not vary: its parameters with more than one "
                f"value are {varied!r}. Name those, in order of importance."
            )
        varied = [*search_space, *(name for name in varied if name not in search_space)]
    from optuna.distributions import FloatDistribution

    # Only names and order matter to the sampler; values are drawn from what the scheduler makes of the parameters.
    return {name: FloatDistribution(0.0, 1.0) for name in varied}


def _is_constant(spec: Mapping[str, Any]) -> bool:
    if "value" in spec:
        return True
    if "values" in spec:
        return len(spec["values"]) == 1
    return "min" in spec and spec["min"] == spec.get("max")


def _scientific(
    parameters: Mapping[str, Mapping[str, Any]], scientific: Mapping[str, Sequence[Any]] | Sequence[str] | None
) -> Mapping[str, Sequence[Any]] | None:
    if scientific is None or isinstance(scientific, Mapping):
        return scientific
    with_values = {name: spec["values"] for name, spec in parameters.items() if "values" in spec}
    names = [scientific] if isinstance(scientific, str) else list(scientific)
    unknown = [name for name in names if name not in with_values]
    if unknown or isinstance(scientific, str):
        raise ValueError(
            f"`scientific` is {scientific!r}: it must be a sequence of parameters of the sweep that have `values`, "
            f"which are {list(with_values)!r}. Name those, or pass a mapping from names to values."
        )
    return {name: with_values[name] for name in names}


def _remove_copy(storage: str | optuna.storages.BaseStorage, name: str, address: str) -> None:
    """Delete the copy of the sweep that an earlier scheduler left; refuse where the study is not one."""
    import optuna

    if name not in optuna.get_all_study_names(storage):
        return
    kept = optuna.load_study(study_name=name, storage=storage).user_attrs.get(SWEEP_KEY)
    if kept != address:
        raise ValueError(
            f"`study_name` is {name!r}, a study in the storage that is not a copy of the sweep {address} but "
            f"{json.dumps(kept) if kept else 'of another origin'}: it would be made anew at each start of the "
            "scheduler. Pass a `study_name` of the sweep's own."
        )
    optuna.delete_study(study_name=name, storage=storage)
