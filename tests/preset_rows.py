"""How does W&B's front end turn a preset and the rows of a query into a chart? The same in Python, for the tests."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import vl_convert

from playbook_plugins.analysis import Trials
from playbook_plugins.charts.scales import objective_scale
from playbook_plugins.wandb.presets import Preset

FIELDS = {"y": "playbook_objective", "status": "playbook_status", "trial": "trial"}
STEP_FIELDS = {"best_step": "playbook_best_step", "max_steps": "playbook_max_steps"}

_PROBE = re.compile(r'aria-label="\u27e6(.*?)\u27e7"')
_REFERENCE = re.compile(r"\$\{.*?\}")


def rows_of(trials: Trials) -> list[dict[str, Any]]:
    """Return what a query knows of the runs of a study; a hyperparameter that a trial lacks is no key of its run."""
    rows = []
    for row in range(len(trials)):
        rows.append(
            {
                "id": f"run{row}",
                "name": f"{trials.name}-{trials.number[row]}",
                "trial": int(trials.number[row]),
                "playbook_objective": float(trials.objective[row]),
                "playbook_status": str(trials.status[row]),
                "playbook_best_step": int(trials.best_step[row]),
                "playbook_max_steps": int(trials.max_steps[row]),
                **trials.config(row),
            }
        )
    return rows


def strings_of(trials: Trials, parameter: str | None = None) -> dict[str, str]:
    """Return the texts that a report gives to a panel of a study."""
    scale = "log" if objective_scale(trials).log else "linear"
    texts = {"direction": trials.direction, "y_scale": scale}
    if parameter is not None:
        texts |= {"title": parameter, "x_title": parameter}
        subject = trials.parameter(parameter)
        if subject.is_numeric:
            bounds = {"low": repr(float(subject.low)), "high": repr(float(subject.high))}
            texts |= {"scale": "log" if subject.log else "linear", **bounds}
    return texts


def fill(
    preset: Preset,
    fields: Mapping[str, str],
    strings: Mapping[str, str] | None = None,
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    width: int = 460,
    height: int = 270,
) -> dict[str, Any]:
    """Return the specification that the panel draws, with the rows inside."""
    spec: dict[str, Any] = _map(json.loads(preset.text), lambda text: _inject(text, fields, strings or {}))
    assert "${" not in json.dumps(spec)
    _mend_scales(spec)
    spec |= {"autosize": {"type": "fit", "contains": "padding"}, "width": width, "height": height}
    spec["datasets"] = {"wandb": [{key: _plain(value) for key, value in row.items()} for row in rows]}
    return spec


def render(spec: Mapping[str, Any], *, version: str = "5.21") -> str:
    svg: str = vl_convert.vegalite_to_svg(dict(spec), vl_version=version, show_warnings=True)
    return svg


def computed(
    spec: Mapping[str, Any], layer: str, names: Sequence[str], *, version: str = "5.21"
) -> list[dict[str, Any]]:
    """Return fields of the rows that a layer draws, in full precision."""
    return computed_in(spec, {layer: names}, version=version)[layer]


def computed_in(
    spec: Mapping[str, Any], wanted: Mapping[str, Sequence[str]], *, version: str = "5.21"
) -> dict[str, list[dict[str, Any]]]:
    """Return fields of the rows that some layers draw, by the layer's name: in the descriptions of their marks."""
    found = [layer["name"] for layer in spec["layer"] if layer.get("name") in wanted]
    assert sorted(found) == sorted(wanted), f"of {list(wanted)} there are {found}"
    layers = [
        # The other layers stay, because Vega-Lite merges what layers have in common.
        _probe(layer, wanted[layer["name"]]) if layer.get("name") in wanted else layer
        for layer in spec["layer"]
    ]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in wanted}
    for line in _PROBE.findall(render({**spec, "layer": layers}, version=version)):
        name, *texts = html.unescape(line).split("\u241f")
        rows[name].append({key: _read(text) for key, text in zip(wanted[name], texts, strict=True)})
    return rows


def _probe(layer: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    words = "".join(f" + '\u241f' + datum['{name}']" for name in names)
    probe = {"calculate": f"'\u27e6{layer['name']}'{words} + '\u27e7'", "as": "probe"}
    return {
        **layer,
        "transform": [*layer.get("transform", []), probe],
        "mark": {"type": "point"},
        "encoding": {"description": {"field": "probe", "type": "nominal"}, "x": {"value": 0}, "y": {"value": 0}},
    }


def _read(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return {"null": None, "undefined": None, "true": True, "false": False}.get(text, text)


def _inject(text: str, fields: Mapping[str, str], strings: Mapping[str, str]) -> str:
    for reference in dict.fromkeys(_REFERENCE.findall(text)):
        kind, name, *rest = reference[2:-1].split(":")
        value = fields.get(name, "").replace(".", "\\.") if kind == "field" else strings.get(name) or (rest or [""])[0]
        text = text.replace(reference, value)
    return text


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, list):
        return [_map(one, change) for one in value]
    if value is None:
        return {}
    if isinstance(value, dict):
        return {key: _map(one, change) for key, one in value.items()}
    return change(value) if isinstance(value, str) else value


def _mend_scales(value: Any) -> None:
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        if key == "scale" and not one:
            value[key] = None
        elif isinstance(one, dict | list):
            _mend_scales(one)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value
