"""Does every index get exactly one finished trial, whichever workers are killed, and whenever?"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from playbook_plugins.optuna import Round, redo_lost, trials_from_study
from playbook_plugins.optuna.indices import sequence_indices

pytestmark = pytest.mark.slow

N_TRIALS = 200
N_WORKERS = 3

# A worker that kills itself at one moment of Optuna's own storage calls, or at none:
# created: right after a new trial was written, before anybody signed it;
# taken: right after a waiting trial, a retry, was taken;
# failed: right after a lost trial was told as failed, before its retry was written.
WORKER = textwrap.dedent(
    """
    import os
    import signal
    import sys
    import time
    import warnings

    import optuna
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.trial import TrialState
    from playbook_plugins.analysis import Curve, TrialRecord
    from playbook_plugins.optuna import Round

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    kind, place, over, moment, n_before = sys.argv[1:]
    left = int(n_before)

    def reached(name):
        global left
        if name == moment:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def note_state(state):
        if state is TrialState.RUNNING:
            reached("taken")
        elif state is TrialState.FAIL:
            reached("failed")

    class Database(RDBStorage):
        def _create_new_trial(self, study_id, template_trial=None):
            trial = super()._create_new_trial(study_id, template_trial)
            if template_trial is None:
                reached("created")
            return trial

        def set_trial_state_values(self, trial_id, state, values=None):
            done = super().set_trial_state_values(trial_id, state, values)
            note_state(state)
            return done

    class Journal(JournalStorage):
        def create_new_trial(self, study_id, template_trial=None):
            trial_id = super().create_new_trial(study_id, template_trial)
            if template_trial is None:
                reached("created")
            return trial_id

        def set_trial_state_values(self, trial_id, state, values=None):
            done = super().set_trial_state_values(trial_id, state, values)
            note_state(state)
            return done

    if kind == "sqlite":
        if hasattr(optuna.storages, "RetryHeartbeatStaleTrialCallback"):
            retry = {"heartbeat_stale_trial_callback": optuna.storages.RetryHeartbeatStaleTrialCallback()}
        else:
            retry = {"failed_trial_callback": optuna.storages.RetryFailedTrialCallback()}
        storage = Database(
            place, engine_kwargs={"connect_args": {"timeout": 60}}, heartbeat_interval=1, grace_period=3, **retry
        )
    else:
        # A worker that is killed while it writes leaves the lock, which the others break after this many seconds.
        storage = Journal(JournalFileBackend(place, lock_obj=JournalFileSymlinkLock(place, grace_period=5)))

    study = Round.load_study(study_name="kills", storage=storage)

    def train(config, trial):
        time.sleep(0.5)
        # However fast the machine: the round must not be over before the last kill.
        while trial.number >= 100 and not os.path.exists(over):
            time.sleep(0.05)
        curve = Curve.from_columns([0, 1], [1.0, config["rate"]])
        return TrialRecord(direction="minimize", curve=curve, max_steps=1)

    Round.from_study(study).optimize(study, train)
    """
)


def make_round() -> Round:
    return Round(
        "Which method is better?",
        scientific={"method": ["a", "b"]},
        nuisance={"rate": optuna.distributions.FloatDistribution(0.0, 1.0)},
        n_trials=N_TRIALS,
    )


def kill_twenty(start: Callable[..., subprocess.Popen[bytes]], over: Path, chance: random.Random) -> Counter[str]:
    """Kill 20 workers, then let the ones that are left finish the round; return how many died at which moment."""
    reached: Counter[str] = Counter()
    moments = ["random"] * 9 + ["created"] * 4 + ["taken"] * 3 + ["failed"] * 4
    chance.shuffle(moments)
    workers = [start() for _ in range(N_WORKERS)]
    time.sleep(2.0)
    for moment in moments:
        place_in_list = chance.randrange(N_WORKERS)
        victim = workers[place_in_list]
        if moment == "random":
            time.sleep(chance.uniform(0.0, 1.5))
            victim.kill()
            victim.wait()
            reached[moment] += 1
        else:
            if moment != "created":
                # All have begun to train, so that this one leaves a trial behind, and the next to start finds it.
                time.sleep(1.5)
            victim.kill()
            victim.wait()
            victim = start(moment, chance.randrange(3) if moment == "created" else 0)
            try:
                victim.wait(timeout=8.0)
                reached[moment] += 1
            except subprocess.TimeoutExpired:
                # Another worker was faster: no moment is left to die at, so it dies at this one.
                victim.kill()
                victim.wait()
        assert victim.returncode == -signal.SIGKILL
        workers[place_in_list] = start()
    over.touch()
    for worker in workers:
        assert worker.wait(timeout=120) == 0
    return reached


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_twenty_kills_leave_exactly_one_finished_trial_for_each_index(tmp_path: Path, kind: str) -> None:
    storage: BaseStorage
    if kind == "sqlite":
        place = f"sqlite:///{tmp_path / 'study.db'}"
        storage = RDBStorage(place, engine_kwargs={"connect_args": {"timeout": 60}})
    else:
        place = str(tmp_path / "study.log")
        storage = JournalStorage(JournalFileBackend(place))
    study = make_round().create_study(study_name="kills", storage=storage)
    over = tmp_path / "over"

    def start(moment: str = "none", n_before: int = 0) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, kind, place, str(over), moment, str(n_before)])

    reached = kill_twenty(start, over, random.Random(kind))
    # Which worker finds a lost trial first is a matter of chance; a new trial is made by each.
    assert reached["created"] > 0
    # The last worker may have left while another that was killed still counted as running.
    start().wait(timeout=120)
    assert redo_lost(study, n_indices=N_TRIALS) == []
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    trials = study.get_trials()
    indices = sequence_indices(trials)
    done = {indices[trial.number]: trial for trial in trials if trial.state is TrialState.COMPLETE}
    assert sum(trial.state is TrialState.COMPLETE for trial in trials) == N_TRIALS
    assert sorted(done, key=lambda index: -1 if index is None else index) == list(range(N_TRIALS))
    assert len(trials_from_study(study)) == N_TRIALS
    design = make_round()
    alone = design.create_study(study_name="kills")
    for index in range(N_TRIALS):
        assert done[index].params == design.suggest(alone.ask())
