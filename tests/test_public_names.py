"""The public names: to add one is a decision, to rename one breaks users."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType

import pytest

PUBLIC = {
    "playbook_plugins.analysis": {
        "Bottleneck",
        "Budget",
        "CriticalBatchSize",
        "Curve",
        "FewestSteps",
        "Finding",
        "GradientNoiseScale",
        "GradientNorms",
        "InfeasibleError",
        "Interactions",
        "check_interactions",
        "interactions",
        "Isolation",
        "IsolationGroup",
        "Parameter",
        "Refusal",
        "RetrainComparison",
        "Role",
        "Scaling",
        "ScalingRegime",
        "SelectionBias",
        "Status",
        "StepsToTarget",
        "StudyVariance",
        "Throughput",
        "TrialRecord",
        "TrialVariance",
        "Trials",
        "TuningBox",
        "TuningCurve",
        "Verdict",
        "chance_of_improvement",
        "check_adoption",
        "check_best_steps",
        "check_max_train_steps",
        "check_trial_stability",
        "MaxTrainSteps",
        "SweepRefusal",
        "pick_max_train_steps",
        "check_boundaries",
        "check_budget",
        "check_critical_batch_size",
        "check_curves",
        "check_evaluation_sample",
        "check_feasibility",
        "check_good_region",
        "check_isolation",
        "check_learning_rate_limit",
        "check_sample_classes",
        "check_selection_bias",
        "check_sensitivity",
        "check_stability",
        "check_throughput",
        "collect_retrains",
        "compare_retrains",
        "critical_batch_size",
        "describe_throughput",
        "diagnose_curve",
        "error_rate_noise",
        "estimate_selection_bias",
        "estimate_study_variance",
        "estimate_trial_variance",
        "expected_best",
        "expected_selection_bias",
        "fewest_steps",
        "gradient_noise_scale",
        "held_budget",
        "isolate",
        "median_best",
        "order_trend",
        "quantile_best",
        "review",
        "step_noise",
        "steps_to_target",
        "summary_keys",
        "tuning_curve",
    },
    "playbook_plugins.charts": {
        "Chart",
        "all_training_curves",
        "axis_plot",
        "best_step_chart",
        "interaction_chart",
        "learning_rate_sweep_chart",
        "retrain_chart",
        "steps_to_target_chart",
        "warmup_sweep_chart",
        "infeasible_share_chart",
        "tuning_curve",
        "gradient_norm_chart",
        "gradient_norm_histogram",
        "isolation_plot",
        "throughput_chart",
        "training_curves",
    },
    "playbook_plugins.cli": {"main"},
    "playbook_plugins.report": {"VERDICTS", "Quiet", "Wording", "word", "word_quiet", "write_report"},
    "playbook_plugins.optuna": {
        "Baseline",
        "Change",
        "Move",
        "NextRound",
        "create_exploitation_study",
        "exploitation_config",
        "exploitation_objective",
        "next_round",
        "HaltonSampler",
        "InfeasibleError",
        "Round",
        "optimizer_space",
        "record_trial",
        "redo_lost",
        "trial_callback",
        "study_sheet",
        "track",
        "trials_from_study",
    },
    "playbook_plugins.lightning": {
        "BatchNormSync",
        "BatchSizeProbe",
        "BestCheckpoints",
        "ClassCounts",
        "FixedExamples",
        "GhostBatchNorm1d",
        "GhostBatchNorm2d",
        "GhostBatchNorm3d",
        "HostParity",
        "InfeasibleError",
        "InstabilityProbe",
        "LearningRateWarmup",
        "PercentileGradientClipping",
        "PeriodicEvaluation",
        "ResumableDataLoader",
        "TrialRecorder",
        "WeightEMA",
        "build_optimizer",
        "convert_to_ghost_batch_norm",
        "exact_validation_loader",
        "load_best",
        "load_fixed_examples",
        "playbook_callbacks",
        "probe_batch_sizes",
        "probe_instability",
        "seed_hosts",
        "select_checkpoint",
    },
}

# Arguments that others rely on, in order.
SIGNATURES = {
    "analysis.review": ["trials"],
    "analysis.isolate": ["trials", "parameter"],
    "charts.axis_plot": ["trials", "parameter"],
    "charts.isolation_plot": ["trials", "parameter"],
    "charts.training_curves": ["trials"],
    "charts.throughput_chart": ["throughput"],
    "analysis.check_throughput": ["throughput"],
    "report.write_report": ["trials", "path"],
    "optuna.HaltonSampler": ["seed", "search_space", "scientific"],
    "optuna.optimizer_space": ["name", "n_trials"],
    "optuna.record_trial": ["trial", "record"],
    "optuna.trials_from_study": ["study"],
    "optuna.redo_lost": ["study", "older_than"],
    "optuna.Round": ["goal", "scientific", "nuisance", "fixed", "conditional", "n_trials"],
    "lightning.LearningRateWarmup": ["warmup_steps", "extend_max_steps"],
    "lightning.PercentileGradientClipping": ["percentile", "threshold", "window", "min_steps"],
    "lightning.PeriodicEvaluation": ["every_n_steps"],
    "lightning.WeightEMA": ["decay", "half_life"],
    "lightning.BestCheckpoints": ["monitor", "mode", "save_top_k", "dirpath"],
    "lightning.TrialRecorder": ["monitor", "mode"],
    "lightning.build_optimizer": ["config", "parameters"],
    "lightning.BatchSizeProbe": ["max_batch_size", "start"],
    "lightning.probe_batch_sizes": ["model", "data"],
    "lightning.probe_instability": ["model", "data"],
    "lightning.playbook_callbacks": ["monitor", "mode", "max_steps", "warmup_steps"],
    "lightning.exact_validation_loader": ["dataset", "batch_size"],
    "lightning.convert_to_ghost_batch_norm": ["model", "virtual_batch_size"],
    "lightning.load_best": ["model", "folder"],
    "lightning.select_checkpoint": ["folder", "metric", "mode"],
}


def public_names(module: ModuleType) -> set[str]:
    return {name for name, value in vars(module).items() if not name.startswith("_") and not inspect.ismodule(value)}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_public_names_are_these(name: str) -> None:
    assert public_names(importlib.import_module(name)) == PUBLIC[name]


@pytest.mark.parametrize("path", SIGNATURES)
def test_the_arguments_keep_their_names_and_order(path: str) -> None:
    module, _, name = path.partition(".")
    signature = inspect.signature(getattr(importlib.import_module(f"playbook_plugins.{module}"), name))
    assert list(signature.parameters)[: len(SIGNATURES[path])] == SIGNATURES[path]


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for public in PUBLIC[name]:
        assert getattr(module, public).__doc__, public
