"""The study of the sweep: quasi-random, with both activations compared at the same points."""

import functools

from playbook_plugins.wandb import halton_sweep

optimizer = functools.partial(
    halton_sweep, scientific=["activation"], search_space=["learning_rate", "one_minus_momentum"]
)
