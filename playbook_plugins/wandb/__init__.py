"""Keeping rounds of experiments in Weights & Biases, and reading them back: the playbook inside W&B.

May import report, charts and analysis; never playbook_plugins.lightning, nor playbook_plugins.optuna but for the sweep
that Optuna draws (`sweep_sampler`). Nothing here imports wandb before it is used.
"""

from playbook_plugins.wandb.log_trial import log_trial as log_trial
from playbook_plugins.wandb.offline import trials_from_offline as trials_from_offline
from playbook_plugins.wandb.presets import publish_presets as publish_presets
from playbook_plugins.wandb.reports import publish_report as publish_report
from playbook_plugins.wandb.reports import report_template as report_template
from playbook_plugins.wandb.retrying import WandbUnavailableError as WandbUnavailableError
from playbook_plugins.wandb.runs import trials_from_runs as trials_from_runs
from playbook_plugins.wandb.sweeps import halton_sweep as halton_sweep
