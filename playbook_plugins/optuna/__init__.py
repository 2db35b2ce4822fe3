"""Designing a round of experiments and searching it: the playbook inside Optuna.

Imports optuna, numpy and playbook_plugins.analysis; never torch, charts or another adapter.
"""

from playbook_plugins.analysis.infeasible import InfeasibleError as InfeasibleError
from playbook_plugins.optuna.baseline import Baseline as Baseline
from playbook_plugins.optuna.batch_size_comparison import BatchSizeComparison as BatchSizeComparison
from playbook_plugins.optuna.batch_size_comparison import compare_batch_sizes as compare_batch_sizes
from playbook_plugins.optuna.callbacks import trial_callback as trial_callback
from playbook_plugins.optuna.changes import Change as Change
from playbook_plugins.optuna.changes import Move as Move
from playbook_plugins.optuna.clipping_tuning import tune_clipping as tune_clipping
from playbook_plugins.optuna.exploitation import create_exploitation_study as create_exploitation_study
from playbook_plugins.optuna.exploitation import exploitation_config as exploitation_config
from playbook_plugins.optuna.exploitation import exploitation_objective as exploitation_objective
from playbook_plugins.optuna.max_train_steps import pick_max_train_steps as pick_max_train_steps
from playbook_plugins.optuna.next_round import NextRound as NextRound
from playbook_plugins.optuna.next_round import next_round as next_round
from playbook_plugins.optuna.optimizers import optimizer_space as optimizer_space
from playbook_plugins.optuna.plans import Plan as Plan
from playbook_plugins.optuna.plans import run_plan as run_plan
from playbook_plugins.optuna.protocols import ProtocolResult as ProtocolResult
from playbook_plugins.optuna.rate_sweep import learning_rate_sweep as learning_rate_sweep
from playbook_plugins.optuna.recovery import redo_lost as redo_lost
from playbook_plugins.optuna.remedies import instability_remedies as instability_remedies
from playbook_plugins.optuna.retraining import Retraining as Retraining
from playbook_plugins.optuna.retraining import retrain as retrain
from playbook_plugins.optuna.rounds import Round as Round
from playbook_plugins.optuna.sampler import HaltonSampler as HaltonSampler
from playbook_plugins.optuna.schedules import Schedule as Schedule
from playbook_plugins.optuna.second_round import second_round as second_round
from playbook_plugins.optuna.starting_point import check_start as check_start
from playbook_plugins.optuna.tracking import study_sheet as study_sheet
from playbook_plugins.optuna.tracking import track as track
from playbook_plugins.optuna.trials import kept_record as kept_record
from playbook_plugins.optuna.trials import record_trial as record_trial
from playbook_plugins.optuna.trials import trials_from_study as trials_from_study
from playbook_plugins.optuna.warmup_tuning import tune_warmup as tune_warmup
