"""A small network on handwritten digits: one run of the sweep, and the training that classic.py imports.

An agent of the sweep calls it with the hyperparameters as arguments; alone it is an ordinary training script.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import wandb
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from playbook_plugins.analysis import Curve, Status, TrialRecord
from playbook_plugins.wandb import log_trial

MAX_STEPS = 200
STEPS_BETWEEN_EVALUATIONS = 20
BATCH_SIZE = 64
Array = NDArray[np.float64]


def load_data() -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Return the scans, shape (n, 64), and digits of 1,200 training and 300 validation examples; 297 stay untouched."""
    scans, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(digits))
    train, validation = order[:1200], order[1200:1500]
    return scans[train] / 16, digits[train], scans[validation] / 16, digits[validation]


class Network:
    """One hidden layer, trained by gradient descent with momentum on the cross-entropy."""

    def __init__(self, width: int, activation: str, generator: np.random.Generator) -> None:
        self.activation = activation
        sizes = [(64, width), (width, 10)]
        self.weights = [generator.normal(0, np.sqrt(2 / size[0]), size) for size in sizes]
        self.biases = [np.zeros(size[1]) for size in sizes]
        self.velocities = [np.zeros_like(parameter) for parameter in (*self.weights, *self.biases)]

    def logits(self, scans: Array) -> tuple[Array, Array]:
        """Return the hidden units, shape (n, width), and the logits, shape (n, 10)."""
        inputs = scans @ self.weights[0] + self.biases[0]
        hidden = np.maximum(inputs, 0) if self.activation == "relu" else np.tanh(inputs)
        return hidden, hidden @ self.weights[1] + self.biases[1]

    def error(self, scans: Array, digits: NDArray[np.int64]) -> float:
        """Return the share of wrong answers."""
        return float(np.mean(self.logits(scans)[1].argmax(axis=1) != digits))

    def step(
        self, scans: Array, digits: NDArray[np.int64], learning_rate: float, momentum: float
    ) -> tuple[float, float]:
        """Take one step and return the loss before it and the norm of the gradient."""
        hidden, logits = self.logits(scans)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = exponentials / exponentials.sum(axis=1, keepdims=True)
        rows = np.arange(len(digits))
        loss = -np.log(slope[rows, digits]).mean()
        slope[rows, digits] -= 1
        slope /= len(digits)
        derivative = (hidden > 0) if self.activation == "relu" else 1 - hidden**2
        inner = (slope @ self.weights[1].T) * derivative
        gradients = [scans.T @ inner, hidden.T @ slope, inner.sum(axis=0), slope.sum(axis=0)]
        for parameter, velocity, gradient in zip(
            (*self.weights, *self.biases), self.velocities, gradients, strict=True
        ):
            velocity *= momentum
            velocity -= learning_rate * gradient
            parameter += velocity
        return float(loss), float(np.sqrt(sum(np.sum(gradient**2) for gradient in gradients)))


def train(config: Mapping[str, Any], seed: int = 0) -> TrialRecord:
    """Train one configuration and return its record; a run that diverges is infeasible."""
    scans, digits, validation_scans, validation_digits = load_data()
    generator = np.random.default_rng(seed)
    network = Network(config["width"], config["activation"], generator)
    steps, validation, training, norms = [], [], [], []
    status, reason = Status.COMPLETE, ""
    norm = float("nan")
    with np.errstate(all="ignore"):
        for step in range(MAX_STEPS + 1):
            if step % STEPS_BETWEEN_EVALUATIONS == 0:
                steps.append(step)
                validation.append(network.error(validation_scans, validation_digits))
                training.append(network.error(scans, digits))
                norms.append(norm)
            batch = generator.integers(len(digits), size=BATCH_SIZE)
            loss, norm = network.step(
                scans[batch], digits[batch], config["learning_rate"], 1 - config["one_minus_momentum"]
            )
            if not np.isfinite(loss):
                status, reason = Status.INFEASIBLE, f"diverged: the loss is {loss} at step {step}"
                break
    return TrialRecord(
        direction="minimize",
        objective_name="validation error",
        status=status,
        reason=reason,
        max_steps=MAX_STEPS,
        curve=Curve.from_columns(
            steps,
            validation,
            training,
            learning_rate=np.full(len(steps), config["learning_rate"]),
            gradient_norm=norms,
        ),
    )


def main() -> None:
    """Train one configuration and log it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--activation", choices=["relu", "tanh"], default="relu")
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--one_minus_momentum", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=32)
    config = vars(parser.parse_args())
    # The agent says which sweep it is, and the run joins it by itself.
    sweep = os.environ.get("WANDB_SWEEP_ID")
    with wandb.init(project=None if sweep else "playbook-sweep") as run:
        log_trial(train(config), config, study=f"sweep-{sweep}" if sweep else "digits-by-hand", run=run)


if __name__ == "__main__":
    main()
