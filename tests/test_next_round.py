from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from playbook_plugins.analysis import Curve, InfeasibleError, TrialRecord, Trials, Verdict
from playbook_plugins.analysis.good_region import check_good_region
from playbook_plugins.optuna import Round, optimizer_space, trials_from_study
from playbook_plugins.optuna.changes import Change, Move
from playbook_plugins.optuna.next_round import NextRound, next_round

# Small rounds, to be quick: the advice to run more trials is tested elsewhere.
pytestmark = pytest.mark.filterwarnings("ignore:`n_trials` is:UserWarning")

RATE = FloatDistribution(1e-4, 1e-1, log=True)
UNIT = FloatDistribution(0, 1)


def run(design: Round, error: Any, direction: Any = "minimize") -> Trials:
    """Run a round whose error is a function of the configuration; None diverges."""

    def train(config: dict[str, Any], trial: optuna.Trial) -> TrialRecord:
        value = error(config)
        if value is None:
            raise InfeasibleError("diverged")
        if direction == "maximize":
            value = -value
        start = 1e3 if direction == "minimize" else -1e3
        return TrialRecord(direction=direction, curve=Curve.from_columns([0, 10], [start, value]), max_steps=10)

    study = design.create_study(study_name="s", direction=direction)
    design.optimize(study, train)
    return trials_from_study(study)


def make_round(n_trials: int = 60, **changes: Any) -> Round:
    arguments: dict[str, Any] = {"scientific": {}, "nuisance": {"learning_rate": RATE, "x": UNIT}, "seed": 0}
    return Round("How low does the error get?", n_trials=n_trials, **arguments | changes)


def decades(rate: float) -> float:
    return math.log10(rate)


def changes_of(proposal: NextRound, move: Move) -> dict[str, Change]:
    return {change.subject: change for change in proposal.changes if change.move is move}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_flagged_bound_is_widened(direction: str) -> None:
    design = make_round()
    trials = run(design, lambda config: (decades(config["learning_rate"]) + 0.5) ** 2 + config["x"] * 0.1, direction)
    proposal = next_round(design, trials)
    change = changes_of(proposal, Move.WIDEN)["learning_rate, upper"]
    # Three decades by one decade.
    assert (change.before, change.after) == (0.1, 1.0)
    assert change.finding.check == "boundary"
    assert change.finding.verdict is Verdict.FLAG
    assert float(change.finding.numbers["p"] or 0) <= float(change.finding.numbers["allowed_p"] or 0)
    assert proposal.round.nuisance["learning_rate"] == FloatDistribution(1e-4, 1.0, log=True)
    # Nothing is applied by itself, and the wider range draws new points, more of them.
    assert design.nuisance["learning_rate"] == RATE
    assert proposal.round.seed == 1
    more = changes_of(proposal, Move.MORE_TRIALS)["n_trials"]
    assert (more.before, more.after, proposal.n_more) == (60, 80, 80)
    assert more.finding.numbers["chance_of_improvement"] == proposal.chance_of_improvement == 80 / 140


def test_a_bound_at_the_end_of_its_domain_says_so() -> None:
    design = make_round(nuisance={"learning_rate": RATE, "one_minus_momentum": FloatDistribution(1e-3, 1, log=True)})
    trials = run(
        design,
        lambda config: (
            (decades(config["learning_rate"]) + 2.5) ** 2 + (decades(config["one_minus_momentum"]) - 0.3) ** 2
        ),
    )
    proposal = next_round(design, trials)
    change = changes_of(proposal, Move.KEEP)["one_minus_momentum, upper"]
    assert (change.before, change.after) == (1.0, 1.0)
    assert proposal.round.nuisance["one_minus_momentum"] == design.nuisance["one_minus_momentum"]
    assert not changes_of(proposal, Move.WIDEN)


def test_the_users_limits_hold() -> None:
    design = make_round()
    trials = run(design, lambda config: (decades(config["learning_rate"]) + 0.5) ** 2)
    proposal = next_round(design, trials, limits={"learning_rate": (1e-6, 0.2)})
    assert changes_of(proposal, Move.WIDEN)["learning_rate, upper"].after == 0.2
    proposal = next_round(design, trials, limits={"learning_rate": (1e-6, 0.1)})
    assert changes_of(proposal, Move.KEEP)["learning_rate, upper"].after == 0.1


def test_a_stability_edge_is_sent_to_warmup_and_clipping() -> None:
    design = make_round()
    trials = run(
        design,
        lambda config: None if config["learning_rate"] > 0.02 else -decades(config["learning_rate"]) + config["x"],
    )
    proposal = next_round(design, trials)
    change = changes_of(proposal, Move.STABILIZE)["learning_rate, upper"]
    assert change.before == change.after == 0.1
    assert change.finding.check == "stability edge"
    assert proposal.round.nuisance["learning_rate"] == RATE


def test_without_a_feasible_trial_the_code_is_to_be_mended() -> None:
    design = make_round(n_trials=12)
    proposal = next_round(design, run(design, lambda config: None))
    assert proposal.round is design
    [change] = proposal.changes
    assert (change.move, change.subject, change.finding.check) == (Move.MEND, "study", "feasibility")
    assert (proposal.n_more, proposal.chance_of_improvement) == (0, 0.0)


def test_a_flagged_branch_widens_in_its_own_branch() -> None:
    design = make_round(
        80,
        scientific={"optimizer": ["adam", "nesterov"]},
        nuisance={"x": UNIT},
        conditional={"optimizer": {"adam": {"learning_rate": RATE}, "nesterov": {"learning_rate": RATE}}},
    )

    def error(config: dict[str, Any]) -> float:
        best = -0.5 if config["optimizer"] == "adam" else -2.5
        return (decades(config["learning_rate"]) - best) ** 2 + (config["x"] - 0.5) ** 2

    proposal = next_round(design, run(design, error))
    assert list(changes_of(proposal, Move.WIDEN)) == ["adam.learning_rate, upper"]
    branches = proposal.round.conditional["optimizer"]
    assert branches["adam"]["learning_rate"] == FloatDistribution(1e-4, 1.0, log=True)
    assert branches["nesterov"]["learning_rate"].low >= RATE.low
    assert branches["nesterov"]["learning_rate"].high <= RATE.high
    assert proposal.round.scientific == design.scientific


def test_a_scientific_range_is_never_moved() -> None:
    design = make_round(scientific={"learning_rate": RATE}, nuisance={"x": UNIT})
    proposal = next_round(design, run(design, lambda config: (decades(config["learning_rate"]) + 0.5) ** 2))
    assert "learning_rate, upper" in changes_of(proposal, Move.KEEP)
    assert proposal.round.scientific == design.scientific


def test_an_insensitive_hyperparameter_is_fixed_with_its_caveat() -> None:
    design = make_round(
        100, nuisance={"learning_rate": RATE, "x": UNIT, "width": IntDistribution(8, 512, log=True)}, fixed={"b": 64}
    )
    trials = run(design, lambda config: (decades(config["learning_rate"]) + 2.5) ** 2 + 8 * (config["x"] - 0.5) ** 2)
    proposal = next_round(design, trials)
    change = changes_of(proposal, Move.FIX)["width"]
    best = trials.config(int(trials.ranking()[0]))["width"]
    assert (change.before, change.after) == (IntDistribution(8, 512, log=True), best)
    assert change.finding.error_rate == 0.05
    assert proposal.round.fixed == {"b": 64, "width": best}
    assert set(proposal.round.nuisance) == {"learning_rate", "x"}
    assert proposal.round.caveats[1].startswith(f"width was {best!r} in every trial")


def test_a_branch_keeps_a_hyperparameter_and_fixes_as_a_range_of_one_value() -> None:
    space = {"learning_rate": RATE, "epsilon": FloatDistribution(1e-10, 1e-1, log=True)}
    design = make_round(
        120,
        scientific={"optimizer": ["adam", "nadam"]},
        nuisance={},
        conditional={"optimizer": {"adam": space, "nadam": space}},
    )
    trials = run(design, lambda config: (decades(config["learning_rate"]) + 2.5) ** 2)
    proposal = next_round(design, trials)
    assert set(changes_of(proposal, Move.FIX)) == {"adam.epsilon", "nadam.epsilon"}
    epsilon = proposal.round.conditional["optimizer"]["adam"]["epsilon"]
    assert epsilon.low == epsilon.high == changes_of(proposal, Move.FIX)["adam.epsilon"].after
    assert not proposal.round.fixed
    # The proposal can be run, and the fixed value reaches training.
    study = proposal.round.create_study(study_name="next")
    assert proposal.round.suggest(study.ask())["epsilon"] > 0
    # What is fixed does not count as searched: the branch's last hyperparameter stays, were it insensitive too.
    flat = np.random.default_rng(0)
    longer = Round.from_json(proposal.round.to_json())
    longer.n_trials = 400
    again = next_round(longer, run(longer, lambda config: float(flat.random())))
    assert not changes_of(again, Move.FIX)


def test_a_flat_study_keeps_its_most_important_hyperparameter() -> None:
    design = make_round(200, nuisance={"learning_rate": RATE, "x": UNIT})
    generator = np.random.default_rng(0)
    proposal = next_round(design, run(design, lambda config: float(generator.random())))
    assert list(changes_of(proposal, Move.FIX)) == ["x"]
    assert "learning_rate" in proposal.round.nuisance


def test_a_range_narrows_where_no_good_trial_lies_and_keeps_them_all() -> None:
    design = make_round(100)
    trials = run(design, lambda config: (decades(config["learning_rate"]) + 2.5) ** 2 + 5 * (config["x"] - 0.5) ** 2)
    proposal = next_round(design, trials)
    narrowed = changes_of(proposal, Move.NARROW)
    assert {"learning_rate, lower", "learning_rate, upper"} <= set(narrowed)
    # A quarter of three decades, rounded outwards.
    assert proposal.round.nuisance["learning_rate"] == FloatDistribution(5.6e-4, 0.018, log=True)
    best = trials.ranking()[: math.ceil(0.2 * len(trials))]
    for row in best:
        config = trials.config(int(row))
        for name, space in proposal.round.nuisance.items():
            assert space.low <= config[name] <= space.high
    assert narrowed["learning_rate, upper"].finding.check == "good region"
    assert proposal.round.n_trials == 100


def test_the_best_trials_of_every_scientific_value_stay() -> None:
    design = make_round(120, scientific={"optimizer": ["adam", "nesterov"]})

    def error(config: dict[str, Any]) -> float:
        # The loser is best at the far end of the range, the winner in the middle.
        best = 0.5 if config["optimizer"] == "adam" else 0.85
        loss = 5.0 * (config["optimizer"] == "nesterov")
        return loss + 10 * (config["x"] - best) ** 2 + 0.1 * (decades(config["learning_rate"]) + 2.5) ** 2

    trials = run(design, error)
    found = {finding.subject: finding for finding in check_good_region(trials)}
    assert found["x, upper"].numbers["k_outer"] == 0
    assert found["x, upper"].verdict is not Verdict.FLAG
    assert next_round(design, trials).round.nuisance["x"].high >= 1.0


def test_too_few_trials_ask_for_more_in_the_same_study() -> None:
    design = make_round(6)
    trials = run(design, lambda config: (decades(config["learning_rate"]) + 2.5) ** 2)
    proposal = next_round(design, trials)
    [change] = proposal.changes
    assert (change.move, change.before, change.after) == (Move.MORE_TRIALS, 6, 12)
    assert (proposal.n_more, proposal.chance_of_improvement) == (6, 0.5)
    # The same sequence goes on: the longer round continues the study of the shorter one.
    storage = optuna.storages.InMemoryStorage()
    design.create_study(study_name="s", storage=storage)
    proposal.round.create_study(study_name="s", storage=storage, load_if_exists=True)


def test_a_settled_round_stays_as_it_is() -> None:
    design = make_round(40)
    generator = np.random.default_rng(3)

    def error(config: dict[str, Any]) -> float:
        noise = 0.5 * float(generator.standard_normal())
        return 0.5 * (decades(config["learning_rate"]) + 2.5) ** 2 + 4 * (config["x"] - 0.5) ** 2 + noise

    trials = run(design, error)
    proposal = next_round(design, trials)
    assert proposal.changes == ()
    assert proposal.round is design
    assert (proposal.n_more, proposal.chance_of_improvement) == (0, 0.0)
    again = next_round(design, trials, goal="How low, asked again?")
    assert again.round.goal == "How low, asked again?"
    assert again.round.nuisance == design.nuisance


def test_a_flagged_side_that_mostly_diverges_is_not_widened() -> None:
    design = make_round()
    trials = run(
        design, lambda config: None if config["x"] > 0.3 else config["x"] + (decades(config["learning_rate"]) + 2) ** 2
    )
    proposal = next_round(design, trials)
    assert "x, upper" in changes_of(proposal, Move.STABILIZE)
    assert "x, upper" not in changes_of(proposal, Move.WIDEN)
    # The other side is a question of its own, but a share does not become negative.
    assert proposal.round.nuisance["x"] == UNIT


def test_rounds_travel_to_an_optimum_far_outside() -> None:
    design = make_round(40)
    for _ in range(4):
        trials = run(design, lambda config: (decades(config["learning_rate"]) - 1.5) ** 2 + (config["x"] - 0.5) ** 2)
        design = next_round(design, trials).round
    assert design.nuisance["learning_rate"].low < 10**1.5 < design.nuisance["learning_rate"].high


def test_trials_of_another_round_are_refused() -> None:
    design = make_round(4)
    other = make_round(4, nuisance={"depth": IntDistribution(1, 4)})
    message = (
        "`trials` is the table of 's', which lacks the hyperparameters ['learning_rate', 'x'] of the round: the "
        "proposal rests on the round's own trials. Pass trials_from_study(study) of the round's study."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        next_round(design, run(other, lambda config: 1.0))
    message = (
        "`trials` is the table of 's', which has no finished trial: there is nothing to learn from yet. Run the round "
        "first."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        next_round(design, trials_from_study(design.create_study(study_name="s")))
    message = (
        "`limits` names ['width']: the round searches no such hyperparameter. Give limits for some of "
        "['learning_rate', 'x'], by the names in the study."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        next_round(design, run(design, lambda config: 1.0), limits={"width": (1, 2)})


def test_the_boundaries_of_a_real_space_widen_and_run_again() -> None:
    design = make_round(30, nuisance=dict(optimizer_space("adam", 30)), scientific={"act": ["relu", "gelu"]})
    trials = run(design, lambda config: (decades(config["learning_rate"]) - 0.5) ** 2)
    proposal = next_round(design, trials)
    assert "learning_rate, upper" in changes_of(proposal, Move.WIDEN)
    rebuilt = Round.from_json(proposal.round.to_json())
    assert rebuilt.to_json() == proposal.round.to_json()
    assert len(run(proposal.round, lambda config: config["learning_rate"])) == proposal.round.n_trials


def test_a_categorical_nuisance_stays() -> None:
    design = make_round(40, nuisance={"learning_rate": RATE, "act": CategoricalDistribution(["relu", "gelu"])})
    trials = run(design, lambda config: (decades(config["learning_rate"]) + 0.5) ** 2)
    assert next_round(design, trials).round.nuisance["act"] == CategoricalDistribution(["relu", "gelu"])
