"""Training a trial well and recording what happened: the playbook inside Lightning.

Imports torch, whichever Lightning is installed, numpy and playbook_plugins.analysis; never optuna, charts or another
adapter. Every callback works in the Trainers of both packages, `pytorch_lightning` and `lightning.pytorch`.
"""

from playbook_plugins.analysis.infeasible import InfeasibleError as InfeasibleError
from playbook_plugins.lightning.batch_norm import BatchNormSync as BatchNormSync
from playbook_plugins.lightning.batch_size_probe import BatchSizeProbe as BatchSizeProbe
from playbook_plugins.lightning.checkpoint_index import load_best as load_best
from playbook_plugins.lightning.checkpoint_index import select_checkpoint as select_checkpoint
from playbook_plugins.lightning.checkpoints import BestCheckpoints as BestCheckpoints
from playbook_plugins.lightning.class_counts import ClassCounts as ClassCounts
from playbook_plugins.lightning.clipping import PercentileGradientClipping as PercentileGradientClipping
from playbook_plugins.lightning.evaluation import PeriodicEvaluation as PeriodicEvaluation
from playbook_plugins.lightning.exact_validation import exact_validation_loader as exact_validation_loader
from playbook_plugins.lightning.fixed_examples import FixedExamples as FixedExamples
from playbook_plugins.lightning.fixed_examples import load_fixed_examples as load_fixed_examples
from playbook_plugins.lightning.ghost_batch_norm import GhostBatchNorm1d as GhostBatchNorm1d
from playbook_plugins.lightning.ghost_batch_norm import GhostBatchNorm2d as GhostBatchNorm2d
from playbook_plugins.lightning.ghost_batch_norm import GhostBatchNorm3d as GhostBatchNorm3d
from playbook_plugins.lightning.ghost_batch_norm import convert_to_ghost_batch_norm as convert_to_ghost_batch_norm
from playbook_plugins.lightning.host_parity import HostParity as HostParity
from playbook_plugins.lightning.host_seeds import seed_hosts as seed_hosts
from playbook_plugins.lightning.instability import InstabilityProbe as InstabilityProbe
from playbook_plugins.lightning.instability import probe_instability as probe_instability
from playbook_plugins.lightning.optimizers import build_optimizer as build_optimizer
from playbook_plugins.lightning.probe_function import probe_batch_sizes as probe_batch_sizes
from playbook_plugins.lightning.recommended import playbook_callbacks as playbook_callbacks
from playbook_plugins.lightning.recorder import TrialRecorder as TrialRecorder
from playbook_plugins.lightning.resumable_loader import ResumableDataLoader as ResumableDataLoader
from playbook_plugins.lightning.warmup import LearningRateWarmup as LearningRateWarmup
from playbook_plugins.lightning.weight_ema import WeightEMA as WeightEMA
