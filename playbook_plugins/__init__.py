"""The Deep Learning Tuning Playbook as plugins for the experiment managers that people already use.

One round of experiments travels in a circle, and the packages are its stations::

    goal, scientific / nuisance / fixed        optuna/     Round, HaltonSampler
      -> trials that train well                lightning/  callbacks
      -> a record of each trial                analysis/   TrialRecord, Trials  (the one shared type)
      -> findings                              analysis/   review()
      -> pictures                              charts/     Vega-Lite
      -> a page                                report/
      -> the next round                        optuna/

The playbook: Godbole, Dahl, Gilmer, Shallue, Nado, "Deep Learning Tuning Playbook", 2023.
Importing this package imports no framework; each station imports its own at first use.
"""

__version__ = "0.1.0"
