"""What does the terminal offer? The `playbook` command, for any Optuna study, while it runs or afterwards.

May import anything of this package, but only where a command needs it: `playbook --help` loads no framework.
"""

from playbook_plugins.cli.start import main as main
