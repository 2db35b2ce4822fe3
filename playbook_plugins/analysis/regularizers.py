"""Which hyperparameters regularize? Their names tell, unless the user does.

Playbook: "Examining the training curves", and "Deciding how long to train when training is not compute-bound", whose
sweep is made without regularization.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# What the name of a hyperparameter of regularization or data augmentation holds.
REGULARIZERS = (
    "weight_decay",
    "dropout",
    "label_smoothing",
    "drop_path",
    "stochastic_depth",
    "mixup",
    "cutmix",
    "cutout",
    "augment",
)
# Too short to be looked for within a name.
_WHOLE_NAMES = ("l1", "l2")
_OFF = ("", "none", "off", "no", "false")


def is_regularizer(name: str) -> bool:
    """Return whether a hyperparameter regularizes, judged by its name; "adam.weight_decay" is one of a branch."""
    own = name.rpartition(".")[2].lower().replace("-", "_")
    parts = own.split("_")
    return any(part in _WHOLE_NAMES for part in parts) or any(word in own for word in REGULARIZERS)


def is_on(value: Any) -> bool:
    """Return whether a value of a regularizer switches it on: neither 0, NaN, False, None nor a word for "off"."""
    # A numpy number of another width is no float: its NaN would count as on.
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return value.lower() not in _OFF
    if isinstance(value, float):
        return not math.isnan(value) and value != 0
    return bool(value)
