"""How is the page of a study written? One HTML file that needs no network, replaced whole or not at all.

Playbook: "Extracting insight from experimental results"; "The more effort it is to generate plots, the less likely we
are to look at them as much as we should" ("Automate generically useful plots").

The page carries the Vega libraries once, and the trials of each study once. Whatever comes from a study is text: the
template escapes it, and a content security policy lets the page run its own two scripts only, and load nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from playbook_plugins import __version__
from playbook_plugins.analysis import Finding, Trials
from playbook_plugins.charts.chart import import_vl_convert
from playbook_plugins.charts.files import write_atomically
from playbook_plugins.charts.theme import config
from playbook_plugins.report.chapters import list_figures, place_figures
from playbook_plugins.report.inputs import findings_of, proposals_of, refuse_more
from playbook_plugins.report.markdown import render_markdown
from playbook_plugins.report.procedure import Procedure, describe_procedure, draw_procedure, name_of, stages_of
from playbook_plugins.report.proposal import ProposedRound
from playbook_plugins.report.sheet import describe_sheet
from playbook_plugins.report.study import describe_study, draw_study
from playbook_plugins.report.wording import PLAYBOOK

if TYPE_CHECKING:
    import jinja2

_HERE = Path(__file__).parent
_MAX_TEXT = 2000
Format: TypeAlias = Literal["html", "markdown"]
_ENDINGS: dict[str, tuple[str, ...]] = {"html": (".html", ".htm"), "markdown": (".md",)}


def write_report(
    trials: Trials | Sequence[Trials] | Procedure,
    path: str | os.PathLike[str],
    *,
    findings: Sequence[Finding] | Sequence[Sequence[Finding]] | None = None,
    title: str | None = None,
    next_round: ProposedRound | Sequence[ProposedRound | None] | None = None,
    sheet: Sequence[Mapping[str, Any]] = (),
    format: Format = "html",
) -> Path:
    """Write the page of one study, of the studies of one round, or of a procedure.

    Parameters
    ----------
    trials
        One table of trials, or several, each with at least one trial; or what a procedure of
        `playbook_plugins.optuna` returned, such as `learning_rate_sweep`: the page begins with its findings, what it
        recommends and its runs side by side, and then shows each stage.
    path
        Where to write; ends in ``.html`` or ``.htm``, or in ``.md`` for Markdown. A file that was there before is
        replaced whole or not at all.
    findings
        The findings to show, in the order in which they are to be read: a list for one table, a list of lists for
        several. By default what `playbook_plugins.analysis.review.review` finds; a procedure brings its own.
    title
        The page's title; by default the name of the study, or of the studies.
    next_round
        What `playbook_plugins.optuna.next_round` proposes, for one table; or one proposal (or None) a table.
    sheet
        The rows of `playbook_plugins.optuna.study_sheet`: shown as a table, and the source of the commit and the
        command line with which the best trials can be run again.
    format
        ``"html"``, or ``"markdown"`` for a pull request or a notebook: the same words and tables without the plots.

    Returns
    -------
    Path
        Where the page was written.

    Raises
    ------
    ValueError
        When there is no table or one has no trial, the findings or proposals do not fit the tables or are given with a
        procedure, or the path does not end as the format does.
    FileNotFoundError, NotADirectoryError, PermissionError
        When the folder does not exist or cannot be written to.
    ImportError
        When the extra ``report`` is not installed.
    """
    target = Path(path)
    render = render_report if format == "html" else _render_markdown
    if isinstance(trials, Procedure):
        refuse_more(findings, next_round)
        tables = list(stages_of(trials).values())
        _check(tables, target, format)
        none = [None] * len(tables)
        return _write(target, render(tables, none, title or name_of(trials), none, sheet, trials))
    tables = [trials] if isinstance(trials, Trials) else list(trials)
    _check(tables, target, format)
    is_one = isinstance(trials, Trials)
    proposals = proposals_of(tables, is_one, next_round)
    return _write(target, render(tables, findings_of(tables, is_one, findings), title, proposals, sheet))


def render_report(
    tables: Sequence[Trials],
    findings: Sequence[Sequence[Finding] | None],
    title: str | None = None,
    proposals: Sequence[ProposedRound | None] | None = None,
    sheet: Sequence[Mapping[str, Any]] = (),
    procedure: Procedure | None = None,
) -> str:
    """Return the page as text.

    Parameters
    ----------
    tables
        The studies, each with at least one trial.
    findings
        One list a study; None where they are those of the procedure.
    title, sheet
        As `write_report`.
    proposals
        One a study, or None.
    procedure
        Whose stages the studies are, if they are.
    """
    environment = _environment()
    described = _describe(tables, findings, proposals, sheet)
    drawn = [
        draw_study(table, found, f"study-{place}")
        for place, (table, found) in enumerate(zip(tables, findings, strict=True))
    ]
    whole: dict[str, Any] | None = None
    if procedure is not None:
        figures = list_figures(draw_procedure(procedure))
        # The script draws them with those of the first stage.
        place_figures(figures, "procedure", drawn[0][1]["charts"])
        whole = describe_procedure(procedure) | {"figures": figures}
    data = {
        "configs": {"light": _page_config(dark=False), "dark": _page_config(dark=True)},
        "studies": [data for _, data in drawn],
    }
    libraries, script = _libraries(), (_HERE / "page.js").read_text(encoding="utf-8")
    markup = _markup_type()
    return environment.get_template("template.html").render(
        title=title or ", ".join(table.name for table in tables),
        procedure=whole,
        studies=[words | plots for words, (plots, _) in zip(described, drawn, strict=True)],
        sheet=describe_sheet(sheet),
        style=markup((_HERE / "page.css").read_text(encoding="utf-8")),
        libraries=markup(libraries),
        script=markup(script),
        hashes=markup(" ".join(f"'sha256-{_hash(text)}'" for text in (libraries, script))),
        data=markup(_script_json(data)),
        playbook=PLAYBOOK,
        version=__version__,
    )


def _describe(
    tables: Sequence[Trials],
    findings: Sequence[Sequence[Finding] | None],
    proposals: Sequence[ProposedRound | None] | None,
    sheet: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    runs = {row.get("study"): row for row in sheet}
    return [
        describe_study(table, found, proposal=proposal, run=runs.get(table.name))
        for table, found, proposal in zip(tables, findings, proposals or [None] * len(tables), strict=True)
    ]


def _render_markdown(
    tables: Sequence[Trials],
    findings: Sequence[Sequence[Finding] | None],
    title: str | None,
    proposals: Sequence[ProposedRound | None],
    sheet: Sequence[Mapping[str, Any]],
    procedure: Procedure | None = None,
) -> str:
    studies = _describe(tables, findings, proposals, sheet)
    whole = None if procedure is None else describe_procedure(procedure)
    return render_markdown(title or ", ".join(table.name for table in tables), studies, __version__, whole)


def _check(tables: Sequence[Trials], target: Path, format: Format) -> None:
    if not tables:
        raise ValueError("`trials` is empty: a page needs at least one study. Pass one table of trials, or several.")
    for table in tables:
        if not len(table):
            raise ValueError(
                f"`trials` of the study {table.name!r} has no trial: a page needs at least one. Run the study first."
            )
    if format not in _ENDINGS:
        raise ValueError(f"`format` is {format!r}: it must be one of {list(_ENDINGS)}. Leave it out for a page.")
    if target.suffix.lower() not in _ENDINGS[format]:
        what = "a page" if format == "html" else "Markdown"
        raise ValueError(
            f"`path` is {str(target)!r}: {what} is written as {_ENDINGS[format][0]}. Give the path that ending."
        )
    if not target.parent.is_dir():
        reason = "is not a folder" if target.parent.exists() else "does not exist"
        kind = NotADirectoryError if target.parent.exists() else FileNotFoundError
        raise kind(
            f"`path` is {str(target)!r}: the folder {str(target.parent)!r} {reason}. Make it, or pass another path."
        )
    if target.is_dir():
        raise IsADirectoryError(f"`path` is {str(target)!r}: that is a folder. Pass the path of a file inside it.")


def _write(target: Path, page: str) -> Path:
    try:
        return write_atomically(target, page.encode())
    except PermissionError as error:
        raise PermissionError(
            f"`path` is {str(target)!r}: the folder {str(target.parent)!r} cannot be written to. Pass another path."
        ) from error


def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            "jinja2 writes pages and is not installed. Run: pip install 'playbook-plugins[report]'"
        ) from error
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain_text,
    )


def _markup_type() -> Any:
    from markupsafe import Markup

    return Markup


def _plain_text(value: Any) -> Any:
    """Return text that HTML can hold: no control characters or lone surrogates, of a length that can be read."""
    if not isinstance(value, str) or isinstance(value, _markup_type()):
        return value
    text = value if len(value) <= _MAX_TEXT else value[: _MAX_TEXT - 1] + "…"
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") else "\ufffd" for char in text
    )


@functools.cache
def _libraries() -> str:
    """Return Vega, Vega-Lite and vega-embed as one script, which defines `vegaEmbed`."""
    # The newest Vega-Lite is the one that fits the Vega in the bundle; it reads v5 specifications as v5 does.
    bundle: str = import_vl_convert().javascript_bundle()
    return bundle.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _page_config(*, dark: bool) -> dict[str, Any]:
    return config(dark=dark) | {"background": None, "aria": False}


def _script_json(data: Any) -> str:
    """Return JSON that cannot end the script element that holds it."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
