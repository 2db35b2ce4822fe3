"""Which of an optimizer's hyperparameters should be searched with this many trials, and where?

Playbook: "How should Adam's hyperparameters be tuned?": fewer than 10 trials are spent on the learning rate alone, 10
to 25 on beta1 too, more on epsilon, and beta2 last; momentum and the betas are searched as 1 - x on a log scale.
"""

from __future__ import annotations

from optuna.distributions import FloatDistribution

_LEARNING_RATE = {
    "sgd": (1e-3, 1e1),
    "momentum": (1e-3, 1e1),
    "nesterov": (1e-3, 1e1),
    "rmsprop": (1e-5, 1e-1),
    "adam": (1e-5, 1e-1),
    "nadam": (1e-5, 1e-1),
}
# In the order in which they earn their place: (from how many trials on, name, bounds).
_ADAM = (
    (10, "one_minus_beta1", (1e-3, 1.0)),
    (25, "epsilon", (1e-10, 1e-1)),
    (50, "one_minus_beta2", (1e-4, 1e-1)),
)
_MOMENTUM = ((10, "one_minus_momentum", (1e-3, 1.0)),)
_MORE = {
    "sgd": (),
    "momentum": _MOMENTUM,
    "nesterov": _MOMENTUM,
    "rmsprop": (*_MOMENTUM, (25, "epsilon", (1e-10, 1e-1)), (50, "one_minus_rho", (1e-4, 1e-1))),
    "adam": _ADAM,
    "nadam": _ADAM,
}


def optimizer_space(name: str, n_trials: int) -> dict[str, FloatDistribution]:
    """Return the search space of one optimizer for a budget of trials.

    The bounds are a wide first guess, several decades each; the boundary check of the report says where to move them.

    Parameters
    ----------
    name
        ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"rmsprop"``, ``"adam"`` or ``"nadam"``.
    n_trials
        The trials for this optimizer alone (n_trials per scientific value), at least 1. Adam and NAdam: below 10 the
        learning rate; from 10 also ``one_minus_beta1``; from 25 also ``epsilon``; from 50 also ``one_minus_beta2``.
        Momentum and Nesterov: from 10 also ``one_minus_momentum``. RMSProp: from 10 ``one_minus_momentum``, from 25
        ``epsilon``, from 50 ``one_minus_rho``.

    Returns
    -------
    dict of str to FloatDistribution
        Log-scaled distributions in order of importance, under the names that `build_optimizer` takes.

    Raises
    ------
    ValueError
        For an unknown optimizer or a budget below 1.
    """
    if name not in _LEARNING_RATE:
        raise ValueError(
            f"`name` is {name!r}: it must be one of {sorted(_LEARNING_RATE)}. Pass one of these, or write the search "
            "space of another optimizer as a dict of Optuna distributions."
        )
    if n_trials < 1:
        raise ValueError(
            f"`n_trials` is {n_trials}: it must be at least 1, the number of trials for this optimizer. Pass the "
            "round's trials divided by the number of optimizers."
        )
    low, high = _LEARNING_RATE[name]
    space = {"learning_rate": FloatDistribution(low, high, log=True)}
    for from_trials, parameter, (lower, upper) in _MORE[name]:
        if n_trials >= from_trials:
            space[parameter] = FloatDistribution(lower, upper, log=True)
    return space
