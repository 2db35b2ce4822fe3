"""Training a trial well and recording what happened: the playbook inside Lightning.

Imports torch, whichever Lightning is installed, numpy and playbook_plugins.analysis; never optuna, charts or another
adapter. Every callback works in the Trainers of both packages, `pytorch_lightning` and `lightning.pytorch`.
"""

from playbook_plugins.analysis.infeasible import InfeasibleError as InfeasibleError
from playbook_plugins.lightning.batch_norm import BatchNormSync as BatchNormSync
from playbook_plugins.lightning.checkpoint_index import load_best as load_best
from playbook_plugins.lightning.checkpoint_index import select_checkpoint as select_checkpoint
from playbook_plugins.lightning.checkpoints import BestCheckpoints as BestCheckpoints
from playbook_plugins.lightning.clipping import PercentileGradientClipping as PercentileGradientClipping
from playbook_plugins.lightning.evaluation import PeriodicEvaluation as PeriodicEvaluation
from playbook_plugins.lightning.instability import InstabilityProbe as InstabilityProbe
from playbook_plugins.lightning.instability import probe_instability as probe_instability
from playbook_plugins.lightning.optimizers import build_optimizer as build_optimizer
from playbook_plugins.lightning.recorder import TrialRecorder as TrialRecorder
from playbook_plugins.lightning.warmup import LearningRateWarmup as LearningRateWarmup
from playbook_plugins.lightning.weight_ema import WeightEMA as WeightEMA
