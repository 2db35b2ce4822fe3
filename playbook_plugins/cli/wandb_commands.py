"""Which commands are there for Weights & Biases? Read a project's runs into a page, publish a report, publish presets.

Playbook: "Automate generically useful plots". Start-up is quick: what a command needs is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from playbook_plugins.cli.errors import CommandError, OneLineGroup, one_line_errors
from playbook_plugins.cli.options import Debug, Output, Title, check_output
from playbook_plugins.cli.printing import print_lines, working

if TYPE_CHECKING:
    import optuna

    from playbook_plugins.analysis import Trials

wandb_app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    help="The playbook's report, charts and reading of runs in Weights & Biases. Needs an account only where it "
    "publishes or reads from the server.",
)

_Project = Annotated[
    str, typer.Argument(metavar="ENTITY/PROJECT", show_default=False, help="The project in Weights & Biases.")
]
_Study = Annotated[
    str | None,
    typer.Option("--study", metavar="NAME", show_default=False, help="The study; by default the only one."),
]
_Sweep = Annotated[
    str | None, typer.Option("--sweep", metavar="ID", show_default=False, help="Only the runs of this sweep.")
]
_Objective = Annotated[
    str | None,
    typer.Option(
        "--objective",
        metavar="KEY",
        show_default=False,
        help="The summary key to compare by, for runs that were not logged by this package.",
    ),
]
_Direction = Annotated[
    str | None,
    typer.Option("--direction", metavar="minimize|maximize", show_default=False, help="In which it gets better."),
]


@wandb_app.command("report")
def report(
    source: Annotated[
        str,
        typer.Argument(
            metavar="ENTITY/PROJECT|FOLDER",
            show_default=False,
            help="A project in Weights & Biases, or a folder with offline runs, which needs no account.",
        ),
    ],
    study: _Study = None,
    sweep: _Sweep = None,
    objective: _Objective = None,
    direction: _Direction = None,
    output: Output = Path("playbook.html"),
    title: Title = None,
    debug: Debug = False,
) -> None:
    """Write the page of the runs of a project, or of offline runs. It opens without a network."""
    with one_line_errors("", debug=debug):
        check_output(output)
        with working("Reading the runs"):
            trials = _read_runs(source, _Asked(study, sweep, objective, direction))
        from playbook_plugins.report import write_report

        with working("Writing the page"):
            page = write_report(trials, output, title=title)
        print_lines([str(page.resolve())])


@wandb_app.command("publish")
def publish(
    project: _Project,
    storage: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STORAGE_URL",
            show_default=False,
            help="The Optuna storage of the study; by default the project's own runs are read.",
        ),
    ] = None,
    study: _Study = None,
    sweep: _Sweep = None,
    objective: _Objective = None,
    direction: _Direction = None,
    runs: Annotated[
        bool, typer.Option("--runs", help="With --from: also log each trial that has no run in the project yet.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Charts over the runs themselves, which follow new ones; at most 500 runs.")
    ] = False,
    final: Annotated[bool, typer.Option("--final", help="Publish for everybody; by default it is a draft.")] = False,
    title: Title = None,
    debug: Debug = False,
) -> None:
    """Publish the report in Weights & Biases, or update the one that was published before."""
    with one_line_errors(storage or "", debug=debug):
        entity, name = _split(project)
        asked = _Asked(study, sweep, objective, direction)
        if runs and storage is None:
            raise CommandError("--runs logs the trials of an Optuna study: name its storage by --from.")
        if storage is not None and (sweep or objective or direction):
            raise CommandError("--sweep, --objective and --direction are for runs that are read: leave --from out.")
        with _open_trials(storage, project, asked) as (loaded, trials, more):
            if loaded is not None and runs:
                from playbook_plugins.report.phrases import count_text

                with working("Logging the trials"):
                    print_lines([f"{count_text(_log_missing(loaded, entity, name), 'trial')} logged as runs"])
            from playbook_plugins.wandb import publish_report

            with working("Publishing the report"):
                url = publish_report(
                    trials, entity=entity, project=name, draft=not final, title=title, live=live, **more
                )
            print_lines([url])


@wandb_app.command("presets")
def presets(
    entity: Annotated[str, typer.Argument(metavar="ENTITY", show_default=False, help="A user or a team.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody; by default for the entity only.")] = False,
    debug: Debug = False,
) -> None:
    """Publish the playbook's charts as presets, to choose in any workspace of the entity."""
    with one_line_errors("", debug=debug):
        from playbook_plugins.wandb import publish_presets

        with working("Publishing the presets"):
            published = publish_presets(entity, access="public" if public else "private")
        print_lines(list(published.values()))


@dataclass(frozen=True)
class _Asked:
    """Which runs are meant, and how they are compared."""

    study: str | None
    sweep: str | None
    objective: str | None
    direction: str | None


@contextmanager
def _open_trials(
    storage: str | None, project: str, asked: _Asked
) -> Iterator[tuple[optuna.Study | None, Trials, dict[str, Any]]]:
    """Give an Optuna study, its trials and what else the report shows of it; or None, the project's runs and nothing.

    The study's storage is open as long as the context lasts.
    """
    if storage is None:
        with working("Reading the runs"):
            trials = _read_runs(project, asked)
        yield None, trials, {}
        return
    from playbook_plugins.cli.proposing import find_proposal
    from playbook_plugins.cli.storages import choose_names, load_study, open_storage, read_trials
    from playbook_plugins.optuna import study_sheet

    with open_storage(storage) as opened:
        with working("Reading the trials"):
            names = choose_names(opened, storage, [asked.study] if asked.study else ())
            study = load_study(opened, names[0])
            trials = read_trials(study)
            more = {"next_round": find_proposal(study, trials), "sheet": study_sheet(opened, names)}
        yield study, trials, more


def _read_runs(source: str, asked: _Asked) -> Trials:
    if asked.direction not in (None, "minimize", "maximize"):
        raise CommandError(f"--direction {asked.direction!r} is none: give minimize or maximize.")
    chosen: dict[str, Any] = {"study": asked.study, "direction": asked.direction}
    if asked.objective is not None:
        chosen["objective"] = asked.objective
    if Path(source).is_dir():
        if asked.sweep is not None:
            raise CommandError("--sweep needs the server: offline runs know no sweep. Leave it out.")
        from playbook_plugins.wandb import trials_from_offline

        return trials_from_offline(source, **chosen)
    entity, name = _split(source)
    from playbook_plugins.wandb import trials_from_runs

    return trials_from_runs(entity, name, sweep=asked.sweep, **chosen)


def _split(project: str) -> tuple[str, str]:
    entity, slash, name = project.partition("/")
    if not (entity and slash and name) or "/" in name:
        raise CommandError(f"{project!r} is no project, nor a folder here. Give ENTITY/PROJECT, as in the URL.")
    return entity, name


def _log_missing(study: optuna.Study, entity: str, project: str) -> int:
    """Log each finished trial that has no run yet, and return how many there were."""
    from playbook_plugins.optuna.callbacks import hand_over
    from playbook_plugins.optuna.trials import final_trials
    from playbook_plugins.wandb import log_trial
    from playbook_plugins.wandb.runs import numbers_of_runs

    known = numbers_of_runs(entity, project, study.study_name)
    missing = [trial for trial in final_trials(study) if trial.state.is_finished() and trial.number not in known]
    return sum(hand_over(study, trial, log_trial, entity=entity, project=project) for trial in missing)
