"""Which torch optimizer does a configuration of the search describe?

Playbook: "What are the update rules for all the popular optimization algorithms?".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

_ALLOWED = {
    "sgd": (),
    "momentum": ("one_minus_momentum",),
    "nesterov": ("one_minus_momentum",),
    "rmsprop": ("one_minus_momentum", "one_minus_rho", "epsilon"),
    "adam": ("one_minus_beta1", "one_minus_beta2", "epsilon"),
    "nadam": ("one_minus_beta1", "one_minus_beta2", "epsilon"),
}
_COMMON = ("learning_rate", "weight_decay")
_KEYS = ("one_minus_momentum", "one_minus_rho", "one_minus_beta1", "one_minus_beta2", "epsilon")
# Names that other libraries use: they would be ignored in silence.
_INSTEAD = {
    "lr": "learning_rate",
    "momentum": "one_minus_momentum",
    "betas": "one_minus_beta1 and one_minus_beta2",
    "beta1": "one_minus_beta1",
    "beta2": "one_minus_beta2",
    "eps": "epsilon",
}
# 0.96 ** (step * _CONSTANT_MOMENTUM) is zero, so that torch's momentum schedule of NAdam stays at beta1.
_CONSTANT_MOMENTUM = 1e6


def build_optimizer(config: Mapping[str, Any], parameters: Iterable[Any]) -> Optimizer:
    """Build the torch optimizer that a configuration describes, with the playbook's update rule where torch has it.

    Parameters
    ----------
    config
        ``"optimizer"``: ``"sgd"``, ``"momentum"``, ``"nesterov"``, ``"rmsprop"``, ``"adam"`` or ``"nadam"``;
        ``"learning_rate"``, positive; and optionally, for the optimizers that have them:

        - ``"one_minus_momentum"`` (momentum, nesterov: default 0.1; rmsprop: default 1, which is no momentum),
        - ``"one_minus_beta1"`` (adam, nadam: default 0.1),
        - ``"one_minus_beta2"`` (adam, nadam: default 0.001),
        - ``"one_minus_rho"`` (rmsprop, the decay of its second moment: default 0.01),
        - ``"epsilon"`` (rmsprop, adam, nadam: default 1e-8), positive,
        - ``"weight_decay"`` (all: default 0), at least 0.

        Each ``one_minus_`` value lies in (0, 1]. One of these keys that the chosen optimizer does not have is
        refused, since the search would tune a number without effect, and so are torch's spellings (lr, betas, ...).
        All other keys belong to the model and are left alone.
    parameters
        What a torch optimizer takes: parameters, or parameter groups.

    Notes
    -----
    SGD, momentum and Nesterov are the playbook's rules exactly. The others differ a little, because they are torch's:

    - Adam: torch adds epsilon to sqrt(v / (1 - beta2^t)), the playbook to sqrt(v): at step t torch's epsilon acts as
      the playbook's epsilon times sqrt(1 - beta2^t).
    - NAdam: as Adam; and torch corrects the bias of the momentum term by 1 - beta1^(t + 1), the playbook by
      1 - beta1^t (and keeps the product of the momenta in the default precision). torch's warmup of the momentum
      (``momentum_decay``), which the playbook lacks, is turned off.
    - RMSProp: torch starts the second moment at 0, the playbook at 1; torch adds epsilon outside the square root, the
      playbook inside; torch applies the learning rate to the whole momentum buffer, the playbook to what enters it,
      which differs while the rate changes.

    Weight decay is decoupled from the gradient for adam and nadam (AdamW, NAdamW: the rate times the decay is taken
    off the weights); for the others it is the L2 penalty's gradient, as torch has it.

    Raises
    ------
    ValueError
        When a key is missing, unknown to the optimizer or out of range.
    """
    name = config.get("optimizer")
    if name not in _ALLOWED:
        raise ValueError(
            f"`optimizer` of the configuration is {name!r}: it must be one of {list(_ALLOWED)}. Add or correct it."
        )
    for key, instead in _INSTEAD.items():
        if key in config:
            raise ValueError(
                f"`{key}` is in the configuration: optimizers take {instead} here. Rename it, or give the model's own "
                "hyperparameter another name."
            )
    for key in _KEYS:
        if key in config and key not in _ALLOWED[name]:
            raise ValueError(
                f"`{key}` is in the configuration, but {name} has none: it takes {[*_COMMON, *_ALLOWED[name]]}. Remove "
                "it, or make it conditional on the optimizer."
            )
    if "learning_rate" not in config:
        raise ValueError("`learning_rate` is missing in the configuration: every optimizer needs one. Add it.")
    rate = _number(config, "learning_rate", math.nan, lambda value: value > 0, "a positive number")
    decay = _number(config, "weight_decay", 0.0, lambda value: value >= 0, "a number of at least 0")
    epsilon = _number(config, "epsilon", 1e-8, lambda value: value > 0, "a positive number")

    def one_minus(key: str, default: float) -> float:
        return 1.0 - _number(config, key, default, lambda value: 0 < value <= 1, "a number above 0 and at most 1")

    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
    if name in ("momentum", "nesterov"):
        momentum = one_minus("one_minus_momentum", 0.1)
        # torch refuses Nesterov without momentum, where the rule is plain SGD.
        return torch.optim.SGD(
            parameters, lr=rate, momentum=momentum, nesterov=name == "nesterov" and momentum > 0, weight_decay=decay
        )
    if name == "rmsprop":
        return torch.optim.RMSprop(
            parameters,
            lr=rate,
            alpha=one_minus("one_minus_rho", 0.01),
            eps=epsilon,
            momentum=one_minus("one_minus_momentum", 1.0),
            weight_decay=decay,
        )
    betas = (one_minus("one_minus_beta1", 0.1), one_minus("one_minus_beta2", 0.001))
    if name == "adam":
        if decay:
            return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=epsilon, weight_decay=decay)
        return torch.optim.Adam(parameters, lr=rate, betas=betas, eps=epsilon)
    return torch.optim.NAdam(
        parameters,
        lr=rate,
        betas=betas,
        eps=epsilon,
        weight_decay=decay,
        decoupled_weight_decay=True,
        momentum_decay=_CONSTANT_MOMENTUM,
    )


def _number(config: Mapping[str, Any], key: str, default: float, is_valid: Callable[[float], bool], rule: str) -> float:
    value = config.get(key, default)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not is_valid(value)
    ):
        raise ValueError(f"`{key}` of the configuration is {value!r}: it must be {rule}. Correct it.")
    return float(value)
