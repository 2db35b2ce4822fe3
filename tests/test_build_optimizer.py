from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from playbook_plugins.lightning.optimizers import build_optimizer

RATE, DECAY, EPSILON = 0.03, 0.02, 1e-3


def gradients(n_steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(6, dtype=torch.float64, generator=generator) for _ in range(n_steps)]


def start() -> torch.Tensor:
    return torch.linspace(-1, 1, 6, dtype=torch.float64)


def run(config: dict[str, Any], n_steps: int = 30) -> torch.Tensor:
    """Return the weights after every step under fixed gradients, shape (n_steps, 6)."""
    parameter = torch.nn.Parameter(start())
    optimizer = build_optimizer(config, [parameter])
    path = []
    for gradient in gradients(n_steps):
        parameter.grad = gradient.clone()
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


def expected(rule: Any, n_steps: int = 30) -> torch.Tensor:
    """Return the weights under an update rule: a generator that takes gradients and yields what is subtracted."""
    weights, path = start(), []
    for subtract in rule(gradients(n_steps)):
        weights = weights - subtract(weights) if callable(subtract) else weights - subtract
        path.append(weights)
    return torch.stack(path)


def test_sgd_is_the_playbooks() -> None:
    assert_equal(run({"optimizer": "sgd", "learning_rate": RATE}), expected(lambda gs: (RATE * g for g in gs)))


def assert_equal(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.9, 0.5])
@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_momentum_and_nesterov_are_the_playbooks(name: str, gamma: float) -> None:
    def rule(gs: Any) -> Any:
        v = torch.zeros(6, dtype=torch.float64)
        for g in gs:
            v = gamma * v + g
            yield RATE * (gamma * v + g) if name == "nesterov" else RATE * v

    config = {"optimizer": name, "learning_rate": RATE, "one_minus_momentum": 1 - gamma}
    assert_equal(run(config), expected(rule))


@pytest.fixture
def double() -> Any:
    # torch keeps the product of NAdam's momenta in the default precision.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def playbook_adam(b1: float, b2: float, epsilon: Any, nesterov: bool = False, torch_bias: bool = False) -> Any:
    """Return the playbook's rule of Adam or NAdam; epsilon may depend on the step."""

    def rule(gs: Any) -> Any:
        m = v = torch.zeros(6, dtype=torch.float64)
        for t, g in enumerate(gs, 1):
            m = b1 * m + (1 - b1) * g
            v = b2 * v + (1 - b2) * g**2
            eps = epsilon(t) if callable(epsilon) else epsilon
            later = (1 - b1**t) / (1 - b1 ** (t + 1)) if torch_bias else 1.0
            direction = b1 * m * later + (1 - b1) * g if nesterov else m
            yield RATE * direction / (v.sqrt() + eps) * (1 - b2**t) ** 0.5 / (1 - b1**t)

    return rule


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.9)])
def test_adam_is_the_playbooks_but_for_epsilon(b1: float, b2: float) -> None:
    config = {"optimizer": "adam", "learning_rate": RATE, "one_minus_beta1": 1 - b1, "one_minus_beta2": 1 - b2}
    # Exactly the playbook's where epsilon vanishes, and where the playbook's epsilon is scaled as the docstring says.
    assert_equal(run(config | {"epsilon": 1e-300}), expected(playbook_adam(b1, b2, 0.0)))
    scaled = playbook_adam(b1, b2, lambda t: EPSILON * (1 - b2**t) ** 0.5)
    assert_equal(run(config | {"epsilon": EPSILON}), expected(scaled))
    assert not torch.allclose(run(config | {"epsilon": EPSILON}), expected(playbook_adam(b1, b2, EPSILON)), atol=1e-6)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.5, 0.9)])
def test_nadam_is_the_playbooks_but_for_epsilon_and_one_bias(b1: float, b2: float) -> None:
    config = {
        "optimizer": "nadam",
        "learning_rate": RATE,
        "one_minus_beta1": 1 - b1,
        "one_minus_beta2": 1 - b2,
        "epsilon": EPSILON,
    }
    rule = playbook_adam(b1, b2, lambda t: EPSILON * (1 - b2**t) ** 0.5, nesterov=True, torch_bias=True)
    assert_equal(run(config), expected(rule))
    # The two biases agree once beta1^t has vanished: late steps are the playbook's.
    exact = expected(playbook_adam(b1, b2, lambda t: EPSILON * (1 - b2**t) ** 0.5, nesterov=True), 400)
    moves = run(config, 400)
    assert_equal(moves.diff(dim=0)[-10:], exact.diff(dim=0)[-10:])


def test_rmsprop_is_torchs_rule_as_the_docstring_says() -> None:
    rho, gamma = 0.9, 0.8

    def rule(gs: Any) -> Any:
        v = m = torch.zeros(6, dtype=torch.float64)
        for g in gs:
            v = rho * v + (1 - rho) * g**2
            m = gamma * m + g / (v.sqrt() + EPSILON)
            yield RATE * m

    config = {
        "optimizer": "rmsprop",
        "learning_rate": RATE,
        "one_minus_rho": 1 - rho,
        "one_minus_momentum": 1 - gamma,
        "epsilon": EPSILON,
    }
    assert_equal(run(config), expected(rule))


def test_rmsprop_differs_from_the_playbooks_rule_by_its_start_and_its_epsilon() -> None:
    rho = 0.9

    def playbook(epsilon: float) -> Any:
        def rule(gs: Any) -> Any:
            v = torch.ones(6, dtype=torch.float64)
            for g in gs:
                v = rho * v + (1 - rho) * g**2
                yield RATE * g / (v + epsilon).sqrt()

        return rule

    config = {"optimizer": "rmsprop", "learning_rate": RATE, "one_minus_rho": 1 - rho, "epsilon": 1e-300}
    [g] = gradients(1)
    # The first step: torch divides by sqrt(0.1 g^2), the playbook by sqrt(0.9 + 0.1 g^2).
    ours, theirs = (moves[0] - start() for moves in (run(config, 1), expected(playbook(0.0), 1)))
    assert_equal(ours / theirs, ((rho + (1 - rho) * g**2) / ((1 - rho) * g**2)).sqrt())
    # rho^t of the start is left after t steps: late steps are the playbook's.
    ours, theirs = (moves.diff(dim=0)[-10:] for moves in (run(config, 400), expected(playbook(0.0), 400)))
    assert_equal(ours, theirs)
    # Epsilon outside the square root damps a step by more than inside it: with the second moment near 1 about twice.
    damped = [
        moves.diff(dim=0)[-10:] for moves in (run(config | {"epsilon": 0.01}, 400), expected(playbook(0.01), 400))
    ]
    loss = [(1 - move / ours).mean().item() for move in damped]
    assert 1.5 < loss[0] / loss[1] < 2.5


@pytest.mark.usefixtures("double")
def test_torchs_momentum_schedule_of_nadam_would_shrink_the_first_steps() -> None:
    b1, b2 = 0.9, 0.999
    config = {"optimizer": "nadam", "learning_rate": RATE, "epsilon": 1e-300}
    parameter = torch.nn.Parameter(start())
    [parameter.grad] = gradients(1)
    torch.optim.NAdam([parameter], lr=RATE, betas=(b1, b2), eps=1e-300).step()
    scheduled, constant = parameter.detach() - start(), run(config, 1)[0] - start()
    # A first step has the size rate x (mu_2 (1 - b1) / (1 - mu_1 mu_2) + (1 - mu_1) / (1 - mu_1)); with a constant mu
    # of 0.9 that is 1.47, and with torch's, which starts near 0.45, 1.06.
    mu = [b1 * (1 - 0.5 * 0.96 ** (t * 0.004)) for t in (1, 2)]
    by_torch = mu[1] * (1 - b1) / (1 - mu[0] * mu[1]) + 1
    by_playbook = b1 * (1 - b1) / (1 - b1**2) + 1
    torch.testing.assert_close(scheduled.abs(), torch.full((6,), RATE * by_torch))
    torch.testing.assert_close(constant.abs(), torch.full((6,), RATE * by_playbook))


@pytest.mark.parametrize("name", ["adam", "nadam"])
def test_weight_decay_of_adam_and_nadam_is_decoupled(name: str) -> None:
    plain = run({"optimizer": name, "learning_rate": RATE}, 1)
    decayed = run({"optimizer": name, "learning_rate": RATE, "weight_decay": DECAY}, 1)
    assert_equal(plain[0] - decayed[0], RATE * DECAY * start())


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "rmsprop"])
def test_weight_decay_of_the_others_is_a_penalty(name: str) -> None:
    parameter = torch.nn.Parameter(start())
    optimizer = build_optimizer({"optimizer": name, "learning_rate": RATE, "weight_decay": DECAY}, [parameter])
    parameter.grad = torch.zeros(6, dtype=torch.float64)
    optimizer.step()
    again = torch.nn.Parameter(start())
    same = build_optimizer({"optimizer": name, "learning_rate": RATE}, [again])
    again.grad = DECAY * start()
    same.step()
    assert_equal(parameter.detach(), again.detach())


@pytest.mark.parametrize(
    ("name", "kind", "defaults"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0, "nesterov": False}),
        ("momentum", torch.optim.SGD, {"momentum": 0.9, "nesterov": False}),
        ("nesterov", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.99, "momentum": 0.0, "eps": 1e-8}),
        ("adam", torch.optim.Adam, {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("nadam", torch.optim.NAdam, {"betas": (0.9, 0.999), "eps": 1e-8}),
    ],
)
def test_what_is_left_out_is_the_default(name: str, kind: Any, defaults: dict[str, Any]) -> None:
    # The keys of the model are left alone.
    config = {"optimizer": name, "learning_rate": RATE, "width": 32, "dropout": 0.1}
    optimizer = build_optimizer(config, [torch.nn.Parameter(start())])
    assert isinstance(optimizer, kind)
    shown = {key: optimizer.defaults[key] for key in defaults}
    assert shown == defaults
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (RATE, 0)


def test_parameter_groups_keep_their_own_rates() -> None:
    one, other = (torch.nn.Parameter(start()) for _ in range(2))
    optimizer = build_optimizer(
        {"optimizer": "adam", "learning_rate": RATE}, [{"params": [one]}, {"params": [other], "lr": 0.5}]
    )
    assert [group["lr"] for group in optimizer.param_groups] == [RATE, 0.5]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"optimizer": "adagrad", "learning_rate": 1},
            "`optimizer` of the configuration is 'adagrad': it must be one of ['sgd', 'momentum', 'nesterov', "
            "'rmsprop', 'adam', 'nadam']. Add or correct it.",
        ),
        (
            {"learning_rate": 1},
            "`optimizer` of the configuration is None: it must be one of ['sgd', 'momentum', 'nesterov', 'rmsprop', "
            "'adam', 'nadam']. Add or correct it.",
        ),
        (
            {"optimizer": "sgd"},
            "`learning_rate` is missing in the configuration: every optimizer needs one. Add it.",
        ),
        (
            {"optimizer": "sgd", "learning_rate": 0.0},
            "`learning_rate` of the configuration is 0.0: it must be a positive number. Correct it.",
        ),
        (
            {"optimizer": "adam", "learning_rate": 0.1, "one_minus_beta1": 0.0},
            "`one_minus_beta1` of the configuration is 0.0: it must be a number above 0 and at most 1. Correct it.",
        ),
        (
            {"optimizer": "adam", "learning_rate": 0.1, "weight_decay": -1},
            "`weight_decay` of the configuration is -1: it must be a number of at least 0. Correct it.",
        ),
        (
            {"optimizer": "nesterov", "learning_rate": 0.1, "one_minus_beta1": 0.1},
            "`one_minus_beta1` is in the configuration, but nesterov has none: it takes ['learning_rate', "
            "'weight_decay', 'one_minus_momentum']. Remove it, or make it conditional on the optimizer.",
        ),
        (
            {"optimizer": "momentum", "learning_rate": 0.1, "momentum": 0.9},
            "`momentum` is in the configuration: optimizers take one_minus_momentum here. Rename it, or give the "
            "model's own hyperparameter another name.",
        ),
    ],
)
def test_bad_configurations_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build_optimizer(config, [torch.nn.Parameter(start())])
