"""Which commands are there? Each opens a storage, reads its studies, and hands them to the package.

Start-up is quick: what a command needs is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from playbook_plugins.cli.errors import CommandError, OneLineGroup, one_line_errors, print_note
from playbook_plugins.cli.options import Debug, Output, Title, check_output
from playbook_plugins.cli.printing import print_json, print_lines, print_table, working
from playbook_plugins.cli.storages import choose_names, list_names, load_study, open_storage, read_trials
from playbook_plugins.cli.wandb_commands import wandb_app

if TYPE_CHECKING:
    import optuna

    from playbook_plugins.analysis import Trials

app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "What the Deep Learning Tuning Playbook says about an Optuna study, while it runs or afterwards. Reads any "
        "study; never writes to its storage."
    ),
    epilog="Exit status: 0 done, 1 a flag was raised (review), 2 an error.",
)
app.add_typer(wandb_app, name="wandb")

_StorageUrl = Annotated[
    str,
    typer.Argument(
        metavar="STORAGE_URL",
        show_default=False,
        help="Where the study is: sqlite:///study.db, postgresql://user@host/database, or a journal file (.log, "
        ".journal).",
    ),
]
_StudyName = Annotated[
    str | None, typer.Option("--study", metavar="NAME", help="The study; by default the only one.", show_default=False)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def report(
    storage_url: _StorageUrl,
    study: Annotated[
        list[str] | None,
        typer.Option("--study", metavar="NAME", help="A study; may be repeated. By default the only one."),
    ] = None,
    every_study: Annotated[bool, typer.Option("--all", help="All studies of the storage.")] = False,
    output: Output = Path("playbook.html"),
    title: Title = None,
    debug: Debug = False,
) -> None:
    """Write a page: what to do first, then the plots. It opens without a network."""
    with one_line_errors(storage_url, debug=debug), open_storage(storage_url) as storage:
        if study and every_study:
            raise CommandError("--study and --all exclude each other: name some studies, or take all.")
        check_output(output)
        with working("Reading the trials"):
            if every_study:
                read = _read_all(storage, storage_url)
            else:
                names = choose_names(storage, storage_url, study or (), hint=", or take all by --all")
                loaded = [load_study(storage, name) for name in names]
                read = [(one, read_trials(one)) for one in loaded]
        with working("Writing the page"):
            page = _write_page(storage, read, output, title)
        print_lines([str(page)])


@app.command()
def review(
    storage_url: _StorageUrl,
    study: Annotated[
        list[str] | None,
        typer.Option(
            "--study",
            metavar="NAME",
            help="The study; by default the only one. Repeat it for the studies of one round, which are then judged "
            "together.",
        ),
    ] = None,
    as_json: _Json = False,
    retrain_sd: Annotated[
        float | None,
        typer.Option(
            "--retrain-sd",
            metavar="X",
            show_default=False,
            help="Standard deviation of the objective over retrains of one configuration; by default that of the "
            "retrains in the study.",
        ),
    ] = None,
    validation_examples: Annotated[
        int | None,
        typer.Option(
            "--validation-examples",
            metavar="N",
            min=1,
            show_default=False,
            help="How many examples an error rate or accuracy was measured on: says how much of the best result is "
            "luck.",
        ),
    ] = None,
    goal: Annotated[
        float | None,
        typer.Option(
            "--goal",
            metavar="G",
            show_default=False,
            help="An objective to beat: compares the steps that each batch_size needs for it.",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Go through the playbook's checklist. Exit status 1 when a check raised a flag, 0 when none did, 2 on errors."""
    with one_line_errors(storage_url, debug=debug), open_storage(storage_url) as storage:
        with working("Reading the trials"):
            names = choose_names(storage, storage_url, study or ())
            tables = [read_trials(load_study(storage, name)) for name in names]
        from playbook_plugins.analysis import Verdict
        from playbook_plugins.analysis import review as find
        from playbook_plugins.cli.reviewing import finding_data, print_findings

        with working("Reviewing the trials"):
            findings = find(
                tables[0] if len(tables) == 1 else tables,
                retrain_sd=retrain_sd,
                n_validation_examples=validation_examples,
                goal=goal,
            )
        if as_json:
            print_json([finding_data(finding) for finding in findings])
        else:
            print_findings(", ".join(names), findings)
        if any(finding.verdict is Verdict.FLAG for finding in findings):
            raise typer.Exit(1)


@app.command("next")
def propose(storage_url: _StorageUrl, study: _StudyName = None, as_json: _Json = False, debug: Debug = False) -> None:
    """Propose the next round: bounds, fixed values, trials. For a study made by Round.create_study."""
    with one_line_errors(storage_url, debug=debug), open_storage(storage_url) as storage:
        with working("Reading the trials"):
            [name] = choose_names(storage, storage_url, [study] if study else ())
            loaded = load_study(storage, name)
            from playbook_plugins.cli.proposing import print_proposal, proposal_data, read_round
            from playbook_plugins.optuna import next_round

            round = read_round(loaded)
            trials = read_trials(loaded)
        with working("Looking for changes"):
            proposal = next_round(round, trials)
        if as_json:
            print_json(proposal_data(name, proposal))
        else:
            print_proposal(name, proposal)


@app.command()
def studies(storage_url: _StorageUrl, as_json: _Json = False, debug: Debug = False) -> None:
    """List the studies: what each was about, how it was run, and its best result."""
    with one_line_errors(storage_url, debug=debug), open_storage(storage_url) as storage:
        list_names(storage, storage_url)
        from playbook_plugins.optuna import study_sheet

        with working("Reading the studies"):
            sheet = study_sheet(storage)
        if as_json:
            print_json(sheet)
            return
        from playbook_plugins.report.phrases import number_text

        columns = {"study": 3, "notes": 5, "finished trials": 0, "best": 0, "commit": 0, "config": 2}
        rows = [
            (
                str(row["study"]),
                row["notes"] or "",
                number_text(row["n_trials"]),
                "" if row["best"] is None else number_text(row["best"]),
                (row["commit"] or "")[:8] + ("+" if row["uncommitted_changes"] else ""),
                row["config"] or "",
            )
            for row in sheet
        ]
        shown = {name: share for place, (name, share) in enumerate(columns.items()) if any(row[place] for row in rows)}
        kept = [place for place, name in enumerate(columns) if name in shown]
        print_table("Studies", shown, [[row[place] for place in kept] for row in rows])
        if any(row["uncommitted_changes"] for row in sheet):
            print_lines(["+ with changes that were not committed; --json shows them."])


@app.command()
def watch(
    storage_url: _StorageUrl,
    study: _StudyName = None,
    output: Output = Path("playbook.html"),
    title: Title = None,
    every: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="How often to look at the study.")] = 30.0,
    until: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, show_default=False, help="End when so many trials have finished."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the page again whenever more trials have finished. Ctrl-C ends it."""
    with one_line_errors(storage_url, debug=debug), open_storage(storage_url) as storage:
        check_output(output)
        [name] = choose_names(storage, storage_url, [study] if study else ())
        loaded = load_study(storage, name)
        from playbook_plugins.cli.watching import Watch
        from playbook_plugins.optuna import trials_from_study

        def write() -> Path | None:
            trials = trials_from_study(loaded)
            return _write_page(storage, [(loaded, trials)], output, title) if len(trials) else None

        Watch(loaded, storage_url, write).follow(every, until)


def _read_all(storage: optuna.storages.BaseStorage, url: str) -> list[tuple[optuna.Study, Trials]]:
    """Return all studies that a page can show, with their tables; what is left out is noted."""
    read = []
    for name in list_names(storage, url):
        try:
            study = load_study(storage, name)
            read.append((study, read_trials(study)))
        except (CommandError, ValueError) as error:
            print_note(f"{name!r} is left out: {error}", url)
    if not read:
        raise CommandError("no study of the storage can be shown.")
    return read


def _write_page(
    storage: optuna.storages.BaseStorage,
    read: Sequence[tuple[optuna.Study, Trials]],
    output: Path,
    title: str | None,
) -> Path:
    from playbook_plugins.cli.proposing import find_proposal
    from playbook_plugins.optuna import study_sheet
    from playbook_plugins.report import write_report

    tables = [trials for _, trials in read]
    proposals = [find_proposal(study, trials) for study, trials in read]
    sheet = study_sheet(storage, [study.study_name for study, _ in read])
    try:
        return write_report(tables, output, title=title, next_round=proposals, sheet=sheet).resolve()
    except OSError as error:
        # The folder may not be written to, or the disk is full.
        cause = error if error.strerror is not None else error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else error
        raise CommandError(f"{str(output)!r} cannot be written: {reason}.") from error
