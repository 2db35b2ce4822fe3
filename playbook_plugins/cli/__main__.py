"""What does ``python -m playbook_plugins.cli`` run? The `playbook` command."""

from playbook_plugins.cli.start import main

if __name__ == "__main__":
    main()
