"""Is the page one file that says what the study says, and nothing that the study smuggled in?"""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_trials import two_optimizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from playbook_plugins.analysis import Finding, Parameter, Role, Status, Trials, Verdict
from playbook_plugins.analysis.review import review
from playbook_plugins.charts import axis_plot, isolation_plot, training_curves
from playbook_plugins.report import word, write_report
from playbook_plugins.report.interaction import page_spec

SCRIPT = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data = ""
        self.headings: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        kind = dict(attrs).get("type")
        if tag == "h2":
            self.headings.append("")
        self._inside = "data" if kind == "application/json" else tag if tag in ("script", "style", "h2") else "text"

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "h2"):
            self._inside = "text"

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data += data
        elif self._inside == "h2":
            self.headings[-1] += data
        elif self._inside == "text":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def nasty_study(names: list[str]) -> Trials:
    number = Parameter(name=names[0], kind="float", low=0.0, high=1.0)
    choice = Parameter(name=names[1], kind="categorical", choices=(names[2], names[3]), role=Role.SCIENTIFIC)
    return Trials.from_columns(
        names[0],
        [number, choice],
        {names[0]: [0.1, 0.5, 0.9, 0.7], names[1]: [names[2], names[3], names[2], names[3]]},
        [1.0, 2.0, np.nan, 1.5],
        objective_name=names[1],
        reason=["", "", names[2], ""],
        goal=names[3],
        caveats=(names[2],),
        fixed={names[3]: names[0]},
    )


def nasty_findings(names: list[str]) -> list[Finding]:
    return [
        Finding(check=names[0], subject=names[1], verdict=verdict, numbers={names[2]: names[3]}, section=names[0])
        for verdict in Verdict
    ]


def test_the_page_says_findings_first_then_the_plots_in_the_playbooks_order(tmp_path: Path) -> None:
    trials = two_optimizers()
    path = write_report(trials, tmp_path / "page.html")
    page = Page(path)
    assert path == tmp_path / "page.html"
    text = page.text
    assert page.headings == [
        "Findings",
        "Is the search space right?",
        "Were enough points sampled?",
        "How did the best trials train?",
        "What does the scientific hyperparameter change?",
        "Which hyperparameters must be tuned together?",
        "The best trials",
        "What limits these conclusions",
    ]
    for finding in review(trials):
        words = word(finding)
        assert words.headline in text
        assert words.sentence in text
        assert words.action in text
    assert trials.goal in text
    assert trials.caveats[0] in text
    assert "batch_size" in text
    best = trials.ranking()[0]
    assert f"(trial {trials.number[best]})" in text
    assert "8 infeasible: diverged at step 60: the loss was NaN" in text


def test_every_chart_has_its_place_its_data_and_its_words(tmp_path: Path) -> None:
    trials = two_optimizers()
    page = Page(write_report(trials, tmp_path / "page.html"))
    plots = [attributes for attributes in page.all("div") if attributes.get("class") == "plot"]
    study = json.loads(page.data)["studies"][0]
    # An axis plot for each hyperparameter, where the infeasible trials gather, the tuning curve, the curves of the best
    # and of all, the best steps, an isolation plot of the scientific hyperparameter, and the interactions.
    assert len(plots) == len(trials.parameters) + 7
    assert [attributes["id"] for attributes in plots] == [chart["id"] for chart in study["charts"]]
    assert all(attributes["role"] == "img" and (attributes["aria-label"] or "").endswith(".") for attributes in plots)
    assert len(study["rows"]) == 48
    assert len(study["curves"]["trials"]) == 48
    # The rows of the trials travel once.
    shared = [place for place, chart in enumerate(study["charts"]) if chart["data"] is None]
    # The axis plots, the best steps and the isolation plot; the others' points are no trials.
    assert shared == [0, 1, 2, 3, 4, 9, 10]


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = Page(write_report(two_optimizers(), tmp_path / "page.html"))
    for tag, attributes in page.elements:
        assert not {"src", "srcset", "background", "action"} & attributes.keys(), tag
        assert tag not in ("link", "iframe", "object", "embed", "img")
        if "href" in attributes:
            assert re.match(r"#|https://github\.com/google-research/tuning_playbook", attributes["href"] or "")
    policy = next(attributes["content"] for attributes in page.all("meta") if "http-equiv" in attributes)
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "'unsafe-inline' 'unsafe-eval'" not in policy
    assert policy.count("sha256-") == 2


def test_a_chart_on_the_page_can_mark_one_trial_and_the_original_stays() -> None:
    trials = two_optimizers()
    for chart in (axis_plot(trials, "optimizer"), isolation_plot(trials, "optimizer"), training_curves(trials)):
        before = json.dumps(chart.spec)
        spec = page_spec(chart.spec, legend=False)
        assert json.dumps(chart.spec) == before
        assert spec["params"] == [{"name": "picked", "value": None}]
        assert not {"title", "config", "data"} & spec.keys()
        added = spec["layer"][: len(spec["layer"]) - len(chart.spec["layer"])]
        assert added
        assert all(layer["transform"][-1] == {"filter": "datum.trial === picked"} for layer in added)
        assert '"legend": {' not in json.dumps(spec["layer"])


def test_several_studies_stand_on_one_page(tmp_path: Path) -> None:
    first, second = two_optimizers(), two_optimizers(16, seed=1, name="a second study")
    page = Page(write_report([first, second], tmp_path / "page.html", findings=[[], review(second)]))
    assert "a second study" in page.headings
    assert [attributes["id"] for attributes in page.all("article")] == ["study-0", "study-1"]
    assert "No check raised a flag. At this number of trials that does not prove that nothing is wrong" in page.text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_page_of_odd_studies_is_written(tmp_path: Path) -> None:
    parameter = Parameter(name="x", kind="float", low=0.0, high=1.0)
    bad = Trials.from_columns("all infeasible", [parameter], {"x": [0.1, 0.2]}, [np.nan, np.nan])
    alone = Trials.from_columns("one trial", [parameter], {"x": [0.1]}, [1.0])
    bare = Trials.from_columns("no hyperparameter", [], {}, [1.0, 2.0])
    running = Trials.from_columns("running", [parameter], {"x": [0.1]}, [np.nan], status=[Status.RUNNING])
    page = Page(write_report([bad, alone, bare, running], tmp_path / "page.html"))
    assert "none: no feasible trial" in page.text
    assert "2 (100%)" in page.text
    assert "The study has no hyperparameter to plot." in page.text
    assert "No feasible trial has a training curve." in page.text


def test_what_a_study_holds_comes_out_as_text(tmp_path: Path) -> None:
    plain = nasty_study(["a", "b", "c", "d"])
    names = [SCRIPT, '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }}😀\x00\x1b", "'<!--<script>"]
    nasty = nasty_study(names)
    expected = Page(write_report(plain, tmp_path / "plain.html", findings=nasty_findings(["a", "b", "c", "d"])))
    page = Page(write_report(nasty, tmp_path / "nasty.html", findings=nasty_findings(names)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in expected.elements]
    assert SCRIPT in page.text
    assert "{{ 7 * 7 }}😀\ufffd\ufffd" in page.text
    assert json.loads(page.data)["studies"][0]["parameters"][0]["name"] == SCRIPT
    assert "</script><script>alert" not in (tmp_path / "nasty.html").read_text(encoding="utf-8")


_NAME = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text(alphabet="<>/&'\"{}%!-script=\\ \n\x00\u2028", min_size=1, max_size=40),
    st.just("x" * 10_000),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(_NAME, min_size=4, max_size=4, unique=True))
def test_no_name_injects_an_element(names: list[str], tmp_path: Path) -> None:
    ordinary = ["a", "b", "c", "d"]
    expected = Page(write_report(nasty_study(ordinary), tmp_path / "a.html", findings=nasty_findings(ordinary)))
    page = Page(write_report(nasty_study(names), tmp_path / "b.html", findings=nasty_findings(names)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in expected.elements]
    assert [sorted(attributes) for _, attributes in page.elements] == [
        sorted(attributes) for _, attributes in expected.elements
    ]


def test_a_thousand_trials_with_curves_stay_below_3_mb(tmp_path: Path) -> None:
    path = write_report(two_optimizers(1000, n_evaluations=100), tmp_path / "page.html")
    assert path.stat().st_size <= 3_000_000


def test_writing_twice_gives_the_same_page(tmp_path: Path) -> None:
    first = write_report(two_optimizers(), tmp_path / "first.html").read_bytes()
    assert write_report(two_optimizers(), tmp_path / "second.html").read_bytes() == first


def test_the_old_page_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    path.write_text("the old page", encoding="utf-8")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(two_optimizers(8), path)
    assert path.read_text(encoding="utf-8") == "the old page"
    assert [entry.name for entry in tmp_path.iterdir()] == ["page.html"]


def test_the_page_can_be_read_by_whoever_may_read_new_files(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    path = write_report(two_optimizers(8), tmp_path / "page.html")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(ordinary.stat().st_mode)


def test_errors_name_the_argument_its_value_the_rule_and_the_remedy(tmp_path: Path) -> None:
    trials = two_optimizers()
    page = tmp_path / "page.html"

    def refuses(error: type[Exception], message: str, *args: Any, **more: Any) -> None:
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            write_report(*args, **more)
        assert not page.exists()

    refuses(
        ValueError,
        "`trials` of the study 'digits: adam or nesterov' has no trial: a page needs at least one. "
        "Run the study first.",
        trials.select([]),
        page,
    )
    refuses(
        ValueError,
        "`trials` is empty: a page needs at least one study. Pass one table of trials, or several.",
        [],
        page,
    )
    target = tmp_path / "page.pdf"
    refuses(ValueError, f"`path` is '{target}': a page is written as .html. Give the path that ending.", trials, target)
    target = tmp_path / "nowhere" / "page.html"
    refuses(
        FileNotFoundError,
        f"`path` is '{target}': the folder '{target.parent}' does not exist. Make it, or pass another path.",
        trials,
        target,
    )
    refuses(
        ValueError,
        "`findings` does not fit the 2 tables of `trials`: it must be a list of findings for one table, and a list of "
        "such lists, one a table, for several. Leave it out to review the trials here.",
        [trials, trials],
        page,
        findings=[review(trials)],
    )


def test_an_unwritable_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.html"
    real = Path.open

    def refuse(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        # A superuser may write to every folder, so that taking the permission away would show nothing.
        if self.parent == tmp_path and "x" in mode:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    message = f"`path` is '{path}': the folder '{tmp_path}' cannot be written to. Pass another path."
    with pytest.raises(PermissionError, match=f"^{re.escape(message)}$"):
        write_report(two_optimizers(8), path)


def test_without_jinja2_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    message = "jinja2 writes pages and is not installed. Run: pip install 'playbook-plugins[report]'"
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        write_report(two_optimizers(8), tmp_path / "page.html")


def test_the_gradient_norms_of_the_best_trial_are_shown_where_they_were_recorded(tmp_path: Path) -> None:
    trials = two_optimizers()
    assert "of the best trial" not in Page(write_report(trials, tmp_path / "page.html")).text
    curves = tuple(
        dataclasses.replace(one, gradient_norm=np.exp(-one.step / 300), gradient_norm_max=np.ones(len(one)))
        for one in trials.curves
        if one is not None
    )
    page = Page(write_report(dataclasses.replace(trials, curves=curves), tmp_path / "page.html"))
    assert "of the best trial" in page.text
    study = json.loads(page.data)["studies"][0]
    [chart] = [chart for chart in study["charts"] if "norm" in json.dumps(chart["spec"])]
    # Its rows are evaluations, not the study's trials.
    assert chart["data"]
