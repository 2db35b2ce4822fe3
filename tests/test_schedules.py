"""Is a schedule exact at its ends, the same in torch, and does longer training keep its decay?"""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from playbook_plugins.optuna.schedules import Schedule


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    family = draw(st.sampled_from(["constant", "linear", "cosine"]))
    length = draw(st.integers(2, 400))
    warmup = draw(st.integers(0, length - 1))
    decay = None if family == "constant" else draw(st.none() | st.integers(1, length - warmup))
    return Schedule(
        base_learning_rate=draw(st.floats(1e-6, 100)),
        max_train_steps=length,
        family=family,
        warmup_steps=warmup,
        decay_steps=decay,
        final_fraction=draw(st.floats(0, 1)),
    )


def test_hand_worked_values() -> None:
    linear = Schedule(base_learning_rate=0.8, max_train_steps=12, family="linear", warmup_steps=4, decay_steps=4)
    rates = [0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0, 0]
    assert linear(np.arange(14)).tolist() == pytest.approx(rates)
    cosine = Schedule(base_learning_rate=2.0, max_train_steps=4, family="cosine", final_fraction=0.5)
    half = 0.5 * (1 + np.sqrt(0.5))
    assert cosine([0, 1, 2, 3, 4]).tolist() == pytest.approx([2, 1 + half, 1.5, 2 - half, 1])
    assert Schedule(base_learning_rate=0.3, max_train_steps=5)([0, 5, 9]).tolist() == [0.3] * 3


@settings(deadline=None)
@given(schedules())
def test_the_ends_are_exact_and_the_rate_never_jumps(schedule: Schedule) -> None:
    base, length, warmup = schedule.base_learning_rate, schedule.max_train_steps, schedule.warmup_steps
    rates = schedule(np.arange(length + 1))
    assert schedule(warmup) == base
    assert rates.max() == base
    if warmup:
        assert schedule(0) == 0
        # As the callback for Lightning sets it, but for the last digit.
        assert np.allclose(rates[:warmup], [base * step / warmup for step in range(warmup)], rtol=1e-15, atol=0)
    end = base if schedule.family == "constant" else base * schedule.final_fraction
    assert schedule(length) == schedule(length + 7) == end
    assert np.all(np.diff(rates[: warmup + 1]) >= 0)
    assert np.all(np.diff(rates[warmup:]) <= 1e-12 * base)
    assert [schedule(step) for step in range(length + 1)] == rates.tolist()
    assert isinstance(schedule(0), float)
    assert schedule(np.arange(4).reshape(2, 2)).shape == (2, 2)


@settings(deadline=None)
@given(schedules(), st.integers(1, 300))
def test_longer_training_keeps_the_decay_and_waits_at_the_peak(schedule: Schedule, n_more: int) -> None:
    longer = schedule.extended(n_more)
    assert longer.max_train_steps == schedule.max_train_steps + n_more
    decay = schedule._decay_steps if schedule.family != "constant" else 0
    # The rates of the decay, which may be all that follows warmup, are those of the shorter schedule, later.
    for before_end in range(decay + 1):
        assert longer(longer.max_train_steps - before_end) == schedule(schedule.max_train_steps - before_end)
    start = np.arange(schedule.max_train_steps - decay + 1)
    assert np.array_equal(longer(start), schedule(start))
    held = np.arange(schedule.max_train_steps - decay, longer.max_train_steps - decay)
    assert np.all(longer(held) == schedule.base_learning_rate)
    assert longer.extended(3) == schedule.extended(n_more + 3)


def test_a_cosine_may_be_stretched() -> None:
    cosine = Schedule(base_learning_rate=1.0, max_train_steps=110, family="cosine", warmup_steps=10)
    assert cosine.extended(100, stretch=True)(110) == pytest.approx(0.5)
    assert cosine.extended(100)(110) == 1.0


@settings(deadline=None)
@given(schedules(), st.integers(0, 50))
def test_warmup_is_prepended(schedule: Schedule, n_steps: int) -> None:
    warmed = schedule.with_warmup(n_steps)
    after = np.arange(schedule.max_train_steps - schedule.warmup_steps + 1)
    assert np.allclose(warmed(after + n_steps), schedule(after + schedule.warmup_steps), rtol=1e-12, atol=1e-15)
    assert warmed.max_train_steps - schedule.max_train_steps == n_steps - schedule.warmup_steps


@settings(deadline=None)
@given(schedules())
def test_torch_takes_the_same_rates(schedule: Schedule) -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    base = schedule.base_learning_rate
    groups: list[dict[str, Any]] = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.5 * base}]
    optimizer = torch.optim.SGD(groups, lr=base)
    scheduler = schedule.to_torch(optimizer)
    rates = []
    for _ in range(schedule.max_train_steps + 2):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = schedule(np.arange(schedule.max_train_steps + 2))
    assert [pair[0] for pair in rates] == expected.tolist()
    assert [pair[1] for pair in rates] == pytest.approx((0.5 * expected).tolist())


def test_the_torch_scheduler_goes_on_from_its_state() -> None:
    schedule = Schedule(base_learning_rate=0.1, max_train_steps=20, family="cosine", warmup_steps=5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = pickle.loads(pickle.dumps(schedule)).to_torch(optimizer)
    for _ in range(8):
        optimizer.step()
        scheduler.step()
    states = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    again = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    resumed = schedule.to_torch(again)
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    again.step()
    resumed.step()
    assert again.param_groups[0]["lr"] == schedule(9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"base_learning_rate": 0.0},
            "`base_learning_rate` is 0.0: a learning rate must be positive and finite. Pass the peak of the schedule, "
            "for instance 0.1.",
        ),
        (
            {"max_train_steps": 0},
            "`max_train_steps` is 0: training has at least 1 optimizer step. Pass the number of steps, warmup "
            "included.",
        ),
        (
            {"family": "sqrt"},
            "`family` is 'sqrt': no schedule of this name is known. Pass one of ['constant', 'linear', 'cosine'].",
        ),
        (
            {"warmup_steps": 101},
            "`warmup_steps` is 101: it must be at least 0 and below max_train_steps = 100, which includes it. Warm up "
            "for fewer steps, or train longer.",
        ),
        (
            {"final_fraction": 1.5},
            "`final_fraction` is 1.5: it is a share of the base rate and must lie between 0 and 1. Pass 0 to decay to "
            "nothing.",
        ),
        (
            {"decay_steps": 10},
            "`decay_steps` is 10, but a constant schedule has no decay. Leave it out, or pass family='linear' or "
            "family='cosine'.",
        ),
        (
            {"family": "linear", "warmup_steps": 40, "decay_steps": 61},
            "`decay_steps` is 61: it must lie between 1 and 60, the steps after warmup. Leave it out to decay over all "
            "of them.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Schedule(**{"base_learning_rate": 0.1, "max_train_steps": 100, **arguments})


def test_wrong_calls_are_refused() -> None:
    schedule = Schedule(base_learning_rate=0.1, max_train_steps=100, family="linear")
    message = "`step` is -2: steps are counted from 0. Pass a step of training."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        schedule([3, -2])
    message = (
        "`n_more_steps` is 0: a schedule can only be made longer. Pass the number of additional optimizer steps, at "
        "least 1."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        schedule.extended(0)
    message = (
        "`stretch` is True, but the schedule is linear: only a cosine decay may be stretched. Leave it out to train "
        "the additional steps at the base rate."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        schedule.extended(5, stretch=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    message = (
        "`optimizer` has the learning rates [0.5], but the schedule's base rate is 0.1: it multiplies what the "
        "optimizer holds. Build the optimizer with lr=0.1."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        schedule.to_torch(optimizer)
