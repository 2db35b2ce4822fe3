"""How does the throughput grow with the batch size, and where does that end? Both on logarithmic axes.

Playbook: "Determining the feasible batch sizes and estimating training throughput": while the accelerators are not
saturated, the throughput doubles with the batch size, or nearly so.
"""

from __future__ import annotations

from typing import Any

from playbook_plugins.analysis.throughput import Throughput
from playbook_plugins.analysis.throughput_text import bytes_text, headline, rate_text, seconds_text, share_text
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.legend import mark_legend
from playbook_plugins.charts.palette import BLUE, CROSS, GREEN, GREY, RED, STAR
from playbook_plugins.charts.scales import log_ticks
from playbook_plugins.charts.theme import HEIGHT, SCHEMA, WIDTH, config

MEASURED, IDEAL, RECOMMENDED, FAILED = "measured", "ideal scaling", "recommended", "out of memory"
_DASHES = "M-1.2,-.12L-.2,-.12L-.2,.12L-1.2,.12ZM.2,-.12L1.2,-.12L1.2,.12L.2,.12Z"
# In the order of the legend: colour, shape.
_LOOKS = {MEASURED: (BLUE, "circle"), RECOMMENDED: (GREEN, STAR), IDEAL: (GREY, _DASHES), FAILED: (RED, CROSS)}
# Room beyond the outermost sizes and throughputs, as factors.
_SIDE = 2**0.4
_BELOW, _ABOVE = 1.4, 2.5
# Less than a decade would blow noise up to mountains.
_LEAST_SPAN = 10.0
# As people write rates: 0.05, 20, 3k; the format alone would write 50m.
_RATE_LABEL = "format(datum.value, datum.value < 1 ? '~g' : '~s')"
# A size that failed has no throughput: its cross stands just above the axis of sizes.
_CROSS_HEIGHT = 14


def throughput_chart(throughput: Throughput) -> Chart:
    """Draw the examples per second against the batch size, with the line of ideal scaling.

    The dashed line is a throughput proportional to the batch size, from the smallest size on to the frame.
    A star marks the recommended size; a cross on a red rule the size that ran out of memory.

    Parameters
    ----------
    throughput
        The measurements; one row or none is enough.

    Returns
    -------
    Chart
        The measured points are the chart's own data, one row a batch size, with its verdict.
    """
    rows = [_row(row) for row in throughput.rows()]
    sizes = [row["batch_size"] for row in rows]
    failed = throughput.failed_batch_size
    ends = sizes if failed is None else [*sizes, failed]
    x: dict[str, Any] = {
        "field": "batch_size",
        "type": "quantitative",
        "scale": {"type": "log", "base": 2, "domain": [min(ends) / _SIDE, max(ends) * _SIDE], "nice": False},
        "axis": {
            "title": "batch size" if throughput.n_devices == 1 else "batch size per device",
            "values": ends,
            "format": ",d",
            "labelOverlap": True,
        },
    }
    y = _y(rows)
    occurs = {MEASURED: len(rows) > 1, RECOMMENDED: bool(rows), IDEAL: len(rows) > 1, FAILED: failed is not None}
    legend = mark_legend({kind: look for kind, look in _LOOKS.items() if occurs[kind]})
    words = _tooltip(throughput)
    layers: list[dict[str, Any]] = []
    if failed is not None:
        layers += _failed_layers(failed, x, legend)
    if len(rows) > 1:
        layers.append(
            {
                "data": {"values": _ideal_points(rows, x["scale"]["domain"][1], y["scale"]["domain"][1])},
                "mark": {"type": "line", "color": GREY, "strokeDash": [5, 4], "strokeWidth": 1.5, "aria": False},
                "encoding": {"x": x, "y": y},
            }
        )
        layers.append(
            {"mark": {"type": "line", "strokeWidth": 1.8, "opacity": 0.9}, "encoding": {"x": x, "y": y}},
        )
    for kind, chosen, size in ((MEASURED, "!datum.recommended", 46), (RECOMMENDED, "datum.recommended", 230)):
        layers.append(
            {
                "transform": [{"filter": chosen}, {"calculate": f"'{kind}'", "as": "mark"}],
                "mark": {"type": "point", "size": size, "opacity": 1},
                "encoding": legend | {"x": x, "y": y, "tooltip": words},
            }
        )
    spec = {
        "$schema": SCHEMA,
        "title": {"text": "Training throughput", "subtitle": headline(throughput)},
        "width": WIDTH,
        "height": HEIGHT,
        "config": config(),
        "data": {"values": rows},
        "layer": layers,
    }
    return Chart(spec=spec, title="Training throughput", help=_help(throughput), alt=_alt(throughput))


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table with its tooltip's words; the digits beyond the sixth are noise."""
    return {
        "batch_size": row["batch_size"],
        "examples_per_second": float(f"{row['examples_per_second']:.6g}"),
        "rate": rate_text(row["examples_per_second"]),
        "time": seconds_text(row["seconds_per_step"]),
        "cost": seconds_text(row["device_seconds_per_step"]),
        "memory": bytes_text(row["peak_memory"]),
        "wait": share_text(row["data_wait_share"]),
        "verdict": row["verdict"],
        "recommended": row["recommended"],
    }


def _y(rows: list[dict[str, Any]]) -> dict[str, Any]:
    rates = [row["examples_per_second"] for row in rows]
    low, high = (min(rates) / _BELOW, max(rates) * _ABOVE) if rates else (1.0, _LEAST_SPAN)
    widen = max(1.0, _LEAST_SPAN / (high / low)) ** 0.5
    low, high = low / widen, high * widen
    axis: dict[str, Any] = {"title": "examples per second (higher is better)"}
    axis |= {"values": log_ticks(low, high), "labelExpr": _RATE_LABEL} if rates else {"labels": False, "grid": False}
    return {
        "field": "examples_per_second",
        "type": "quantitative",
        "scale": {"type": "log", "domain": [low, high], "nice": False},
        "axis": axis,
    }


def _tooltip(throughput: Throughput) -> list[dict[str, Any]]:
    per_device = "" if throughput.n_devices == 1 else " per device"
    cost = [] if throughput.n_devices == 1 else [{"field": "cost", "title": "device time per step", "type": "nominal"}]
    return [
        {"field": "batch_size", "title": f"batch size{per_device}", "type": "quantitative", "format": ",d"},
        {"field": "rate", "title": "examples per second", "type": "nominal"},
        {"field": "time", "title": "time per step", "type": "nominal"},
        *cost,
        {"field": "memory", "title": f"peak memory{per_device}", "type": "nominal"},
        {"field": "wait", "title": "waiting for data", "type": "nominal"},
        {"field": "verdict", "title": "verdict", "type": "nominal"},
    ]


def _ideal_points(rows: list[dict[str, Any]], right: float, top: float) -> list[dict[str, float]]:
    """Return both ends of the line of ideal scaling, the second where it leaves the frame."""
    size, rate = rows[0]["batch_size"], rows[0]["examples_per_second"]
    reach = min(right / size, top / rate)
    return [{"batch_size": size * factor, "examples_per_second": rate * factor} for factor in (1, reach)]


def _failed_layers(failed: int, x: dict[str, Any], legend: dict[str, Any]) -> list[dict[str, Any]]:
    values = {"values": [{"batch_size": failed, "mark": FAILED}]}
    words = [
        {"field": "batch_size", "title": "batch size", "type": "quantitative", "format": ",d"},
        {"field": "mark", "title": "verdict", "type": "nominal"},
    ]
    return [
        {
            "data": values,
            "mark": {"type": "rule", "color": RED, "strokeWidth": 1.5, "opacity": 0.35, "aria": False},
            "encoding": {"x": x},
        },
        {
            "data": values,
            "mark": {"type": "point", "size": 90, "opacity": 1},
            "encoding": legend | {"x": x, "y": {"value": {"expr": f"height - {_CROSS_HEIGHT}"}}, "tooltip": words},
        },
    ]


def _help(throughput: Throughput) -> str:
    if not len(throughput):
        return "No batch size fits; the cross is the smallest that was tried."
    text = "The star is the largest batch size that is at least 10% faster, in examples per second, than half of it"
    if len(throughput) > 1:
        text += "; where the line leaves the dashed one, a larger batch costs more time per step"
    return f"{text}."


def _alt(throughput: Throughput) -> str:
    text = headline(throughput)
    row = throughput.recommended_row
    if row is not None:
        rates, sizes = throughput.examples_per_second, throughput.batch_size
        measured = [f"{sizes[at]:,}: {rate_text(rates[at])}" for at in sorted({0, row, len(throughput) - 1})]
        text = f"Examples per second against the batch size. {text} Batch size and throughput: {', '.join(measured)}."
    if throughput.failed_batch_size is not None:
        text += f" {throughput.failed_batch_size:,} runs out of memory."
    return text
