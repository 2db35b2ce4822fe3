"""What do the results look like? One function a question, each returning a `Chart`: a plain Vega-Lite v5 dict.

Imports analysis/ and nothing else of this package; charts take the table of trials or another result of
analysis/, never a study. Rendering needs vl-convert, which is imported at first use.
"""

from playbook_plugins.charts.all_curves import all_training_curves as all_training_curves
from playbook_plugins.charts.axes import axis_plot as axis_plot
from playbook_plugins.charts.chart import Chart as Chart
from playbook_plugins.charts.curves import training_curves as training_curves
from playbook_plugins.charts.feasibility import infeasible_share_chart as infeasible_share_chart
from playbook_plugins.charts.gradient_norm_histogram import gradient_norm_histogram as gradient_norm_histogram
from playbook_plugins.charts.gradient_norms import gradient_norm_chart as gradient_norm_chart
from playbook_plugins.charts.interactions import interaction_chart as interaction_chart
from playbook_plugins.charts.isolation import isolation_plot as isolation_plot
from playbook_plugins.charts.learning_rate_sweep import learning_rate_sweep_chart as learning_rate_sweep_chart
from playbook_plugins.charts.retrains import retrain_chart as retrain_chart
from playbook_plugins.charts.run_comparison import run_comparison_chart as run_comparison_chart
from playbook_plugins.charts.steps import best_step_chart as best_step_chart
from playbook_plugins.charts.steps_to_target import steps_to_target_chart as steps_to_target_chart
from playbook_plugins.charts.throughput import throughput_chart as throughput_chart
from playbook_plugins.charts.tuning_curve import tuning_curve as tuning_curve
from playbook_plugins.charts.warmup_sweep import warmup_sweep_chart as warmup_sweep_chart
