from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis.regularizers import REGULARIZERS, is_on, is_regularizer

# The names that configurations of common training code give to their hyperparameters.
NAMES = {
    "weight_decay": True,
    "weight-decay": True,
    "adam.weight_decay": True,
    "model.encoder.dropout": True,
    "dropout_rate": True,
    "attention_dropout": True,
    "Dropout": True,
    "label_smoothing": True,
    "drop_path": True,
    "drop-path-rate": True,
    "stochastic_depth_prob": True,
    "mixup_alpha": True,
    "CutMix": True,
    "cutout_size": True,
    "augment": True,
    "auto_augment": True,
    "augmentation": True,
    "l2": True,
    "l2_penalty": True,
    "L1": True,
    "lambda_l1": True,
    "learning_rate": False,
    "lr": False,
    "momentum": False,
    "beta2": False,
    "depth": False,
    "n_layers": False,
    "warmup_steps": False,
    # "l1" and "l2" count as whole words only.
    "ml2_size": False,
    "level1": False,
    "layer_l20": False,
    # The branch says nothing about its hyperparameter.
    "dropout.learning_rate": False,
    "": False,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_name_tells(name: str) -> None:
    assert is_regularizer(name) is NAMES[name]
    # Neither do upper case, hyphens and a branch before it.
    for other in (name.upper(), name.replace("_", "-"), f"adam.{name}"):
        assert is_regularizer(other) is NAMES[name]


@pytest.mark.parametrize("word", REGULARIZERS)
def test_every_word_is_found_at_any_place(word: str) -> None:
    for name in (word, f"my_{word}", f"{word}_rate", f"my_{word}_rate"):
        assert is_regularizer(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.1, True),
        (1e-300, True),
        (-0.5, True),
        (math.inf, True),
        (0.0, False),
        (-0.0, False),
        (math.nan, False),
        (1, True),
        (0, False),
        (True, True),
        (False, False),
        (None, False),
        ("randaugment", True),
        ("on", True),
        ("none", False),
        ("None", False),
        ("OFF", False),
        ("no", False),
        ("false", False),
        ("", False),
        (np.float64(0.1), True),
        (np.float64("nan"), False),
        (np.float32(0.0), False),
        (np.float32("nan"), False),
        (np.int64(0), False),
        (np.int64(2), True),
        (np.True_, True),
        (np.False_, False),
    ],
)
def test_a_value_says_whether_it_is_on(value: Any, expected: bool) -> None:
    assert is_on(value) is expected
