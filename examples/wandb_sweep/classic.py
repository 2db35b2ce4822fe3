"""The same search without W&B's scheduler: this script asks for the trials itself, and each becomes a run.

For W&B servers that refuse the scheduler, and wherever the search is to be kept in an Optuna storage. Start it again to
go on where it stopped; start it several times at once, and they share the work: no two draw the same point.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from train import train

from playbook_plugins.optuna import HaltonSampler, record_trial, redo_lost, trials_from_study
from playbook_plugins.wandb import log_trial

# In order of importance, as the first dimensions of the sequence cover best.
SEARCH_SPACE = {
    "learning_rate": FloatDistribution(0.001, 30.0, log=True),
    "one_minus_momentum": FloatDistribution(0.01, 1.0, log=True),
    "activation": CategoricalDistribution(["relu", "tanh"]),
}
SCIENTIFIC = {"activation": ["relu", "tanh"]}
FIXED = {"width": 32}


def run_trial(study: optuna.Study, project: str, entity: str | None) -> None:
    """Draw the next point, train it, and tell both W&B and the study."""
    trial = study.ask(SEARCH_SPACE)
    config = {**trial.params, **FIXED}
    record = train(config)
    objective = record_trial(trial, record)
    # The table has the search space, which goes with the run.
    table = trials_from_study(study)
    log_trial(record, config, study=table, number=trial.number, project=project, entity=entity)
    study.tell(trial, objective)
    print(f"trial {trial.number}: {record.status} {objective:.3f} {config}", flush=True)


def main() -> None:
    """Run trials until there are enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16, help="number of trials in all (default: 16)")
    parser.add_argument("--study", default="digits-classic", help="the study's name, and the group of its runs")
    parser.add_argument("--storage", help="Optuna storage URL (default: an SQLite file in runs/)")
    parser.add_argument("--project", default="playbook-sweep")
    parser.add_argument("--entity", help="team or user (default: that of the login)")
    parser.add_argument(
        "--redo-lost", action="store_true", help="first draw the trials of killed scripts again; only with no other one"
    )
    arguments = parser.parse_args()

    if arguments.storage is None:
        Path("runs").mkdir(exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=arguments.study,
        storage=arguments.storage or "sqlite:///runs/wandb_sweep.db",
        direction="minimize",
        sampler=HaltonSampler(search_space=SEARCH_SPACE, scientific=SCIENTIFIC),
        load_if_exists=True,
    )
    if arguments.redo_lost:
        redo_lost(study, older_than=datetime.timedelta(0))
    # Scripts that look at the same moment may run a trial more each.
    while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING))) < arguments.trials:
        run_trial(study, arguments.project, arguments.entity)
    trials = trials_from_study(study)
    if len(trials.ranking()):
        best = trials.ranking()[0]
        print(f"best: trial {trials.number[best]} {trials.objective[best]:.3f} {trials.config(best)}")


if __name__ == "__main__":
    main()
