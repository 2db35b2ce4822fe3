"""What the results say: the playbook's checklist as numbers and verdicts.

Imports numpy and scipy only, and nothing else of this package: no framework, no charts; and no text for display, but
for `describe_throughput`, which the probe prints where nothing else may be imported.
"""

from playbook_plugins.analysis.adoption import RetrainComparison as RetrainComparison
from playbook_plugins.analysis.adoption import TrialVariance as TrialVariance
from playbook_plugins.analysis.adoption import check_adoption as check_adoption
from playbook_plugins.analysis.adoption import collect_retrains as collect_retrains
from playbook_plugins.analysis.adoption import compare_retrains as compare_retrains
from playbook_plugins.analysis.adoption import estimate_trial_variance as estimate_trial_variance
from playbook_plugins.analysis.boundaries import check_boundaries as check_boundaries
from playbook_plugins.analysis.budget import expected_best as expected_best
from playbook_plugins.analysis.budget import median_best as median_best
from playbook_plugins.analysis.feasibility import check_feasibility as check_feasibility
from playbook_plugins.analysis.findings import Finding as Finding
from playbook_plugins.analysis.findings import Verdict as Verdict
from playbook_plugins.analysis.good_region import check_good_region as check_good_region
from playbook_plugins.analysis.gradient_norms import GradientNorms as GradientNorms
from playbook_plugins.analysis.infeasible import InfeasibleError as InfeasibleError
from playbook_plugins.analysis.isolation import Isolation as Isolation
from playbook_plugins.analysis.isolation import IsolationGroup as IsolationGroup
from playbook_plugins.analysis.isolation import check_isolation as check_isolation
from playbook_plugins.analysis.isolation import isolate as isolate
from playbook_plugins.analysis.learning_rate_limit import check_learning_rate_limit as check_learning_rate_limit
from playbook_plugins.analysis.parameters import Parameter as Parameter
from playbook_plugins.analysis.parameters import Role as Role
from playbook_plugins.analysis.records import Curve as Curve
from playbook_plugins.analysis.records import Status as Status
from playbook_plugins.analysis.records import TrialRecord as TrialRecord
from playbook_plugins.analysis.records import summary_keys as summary_keys
from playbook_plugins.analysis.review import review as review
from playbook_plugins.analysis.selection_bias import SelectionBias as SelectionBias
from playbook_plugins.analysis.selection_bias import StudyVariance as StudyVariance
from playbook_plugins.analysis.selection_bias import check_selection_bias as check_selection_bias
from playbook_plugins.analysis.selection_bias import error_rate_noise as error_rate_noise
from playbook_plugins.analysis.selection_bias import estimate_selection_bias as estimate_selection_bias
from playbook_plugins.analysis.selection_bias import estimate_study_variance as estimate_study_variance
from playbook_plugins.analysis.selection_bias import expected_selection_bias as expected_selection_bias
from playbook_plugins.analysis.sensitivity import check_sensitivity as check_sensitivity
from playbook_plugins.analysis.stability import check_stability as check_stability
from playbook_plugins.analysis.steps import check_best_steps as check_best_steps
from playbook_plugins.analysis.throughput import Bottleneck as Bottleneck
from playbook_plugins.analysis.throughput import Scaling as Scaling
from playbook_plugins.analysis.throughput import Throughput as Throughput
from playbook_plugins.analysis.throughput import check_throughput as check_throughput
from playbook_plugins.analysis.throughput_text import describe_throughput as describe_throughput
from playbook_plugins.analysis.trials import Trials as Trials
