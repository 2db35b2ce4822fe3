"""Does the throughput chart show what was measured, and is it Vega-Lite that any front end can draw?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_charts import draw, points

from playbook_plugins.analysis.throughput import Throughput
from playbook_plugins.charts.chart import Chart
from playbook_plugins.charts.palette import BLUE, GREEN, RED
from playbook_plugins.charts.throughput import throughput_chart


def doubling(rates: Any, smallest: int = 1, wait: float = 0.1, limit: Any = "data", **more: Any) -> Throughput:
    sizes = smallest * 2 ** np.arange(len(rates))
    return Throughput(
        batch_size=sizes,
        seconds_per_step=sizes * more.get("n_devices", 1) / np.asarray(rates, dtype=float),
        data_wait_share=np.full(len(rates), wait),
        peak_memory=2.0**20 * sizes,
        limit=limit,
        **more,
    )


OUT_OF_MEMORY = {"limit": "memory", "failed_batch_size": 4096}
TABLES = {
    "saturated": doubling([100, 200, 390, 700, 750, 760], **OUT_OF_MEMORY),
    "memory-bound": doubling([100, 200, 400], **OUT_OF_MEMORY),
    "twelve sizes": doubling(100 * np.minimum(2.0 ** np.arange(12), 300), **OUT_OF_MEMORY),
    "twenty-five sizes": doubling(2.0 ** np.arange(25)),
    "one size": doubling([100]),
    "one size, out of memory": doubling([100], **OUT_OF_MEMORY),
    "nothing fits": doubling([], **OUT_OF_MEMORY),
    "flat": doubling([100, 101, 100, 99]),
    "falling": doubling([100, 10, 1, 0.1]),
    "several devices": doubling([100, 200, 210], smallest=64, n_devices=8),
    "slow": doubling([1e-6, 2e-6, 2e-6]),
    "fast": doubling([1e9, 2e9, 2e12]),
    "unknown": doubling([1, 2, 3], wait=math.nan),
    "input-bound": doubling([1, 2, 3], wait=0.9),
}


@pytest.mark.parametrize("name", TABLES)
def test_it_is_valid_vega_lite_that_renders_without_a_warning(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    chart = throughput_chart(TABLES[name])
    assert "<svg" in draw(chart, capfd)
    assert chart.title == "Training throughput"
    assert chart.help.endswith(".")
    assert chart.alt.endswith(".")


@pytest.mark.parametrize("name", TABLES)
def test_every_size_has_its_mark_and_one_is_the_star(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    throughput = TABLES[name]
    svg = draw(throughput_chart(throughput), capfd)
    n_sizes = len(throughput)
    assert len(points(svg, GREEN)) == min(1, n_sizes)
    assert len(points(svg, BLUE)) == max(0, n_sizes - 1)
    assert len(points(svg, RED)) == (throughput.failed_batch_size is not None)
    for x, y in points(svg, GREEN) + points(svg, BLUE) + points(svg, RED):
        assert 0 <= x <= 460
        assert 0 <= y <= 270
    for words, shown in {
        "measured": n_sizes > 1,
        "recommended": n_sizes > 0,
        "ideal scaling": n_sizes > 1,
        "out of memory": throughput.failed_batch_size is not None,
    }.items():
        assert (f">{words}<" in svg) == shown, words


def test_both_axes_are_logarithmic(capfd: pytest.CaptureFixture[str]) -> None:
    svg = draw(throughput_chart(TABLES["memory-bound"]), capfd)
    # Three points of perfect scaling stand in equal steps, the last of them the star; the cross ten doublings on.
    (x0, y0), (x1, y1) = sorted(points(svg, BLUE))
    [(x2, y2)] = points(svg, GREEN)
    [(x3, _)] = points(svg, RED)
    assert x2 - x1 == pytest.approx(x1 - x0, abs=0.01)
    assert y2 - y1 == pytest.approx(y1 - y0, abs=0.01)
    assert y1 < y0
    assert x3 - x2 == pytest.approx(10 * (x1 - x0), abs=0.02)


def test_the_star_stands_at_the_recommended_size() -> None:
    throughput = TABLES["saturated"]
    rows = throughput_chart(throughput).spec["data"]["values"]
    assert [row["batch_size"] for row in rows if row["recommended"]] == [throughput.recommended] == [8]
    assert [row["verdict"] for row in rows] == [str(verdict) for verdict in throughput.scaling]


def ideal(chart: Chart) -> list[dict[str, float]]:
    [layer] = [layer for layer in chart.spec["layer"] if "strokeDash" in layer["mark"]]
    values: list[dict[str, float]] = layer["data"]["values"]
    return values


@pytest.mark.parametrize("name", ["saturated", "memory-bound", "flat", "falling", "several devices", "fast"])
def test_the_ideal_line_is_proportional_to_the_batch_size_and_ends_at_the_frame(name: str) -> None:
    chart = throughput_chart(TABLES[name])
    start, end = ideal(chart)
    first = chart.spec["data"]["values"][0]
    assert (start["batch_size"], start["examples_per_second"]) == (first["batch_size"], first["examples_per_second"])
    slope = end["examples_per_second"] / end["batch_size"]
    assert slope == pytest.approx(start["examples_per_second"] / start["batch_size"])
    encoding = chart.spec["layer"][-1]["encoding"]
    right, top = encoding["x"]["scale"]["domain"][1], encoding["y"]["scale"]["domain"][1]
    assert max(end["batch_size"] / right, end["examples_per_second"] / top) == pytest.approx(1)


def test_ticks_stand_at_the_sizes_that_were_tried(capfd: pytest.CaptureFixture[str]) -> None:
    chart = throughput_chart(TABLES["memory-bound"])
    assert chart.spec["layer"][-1]["encoding"]["x"]["axis"]["values"] == [1, 2, 4, 4096]
    assert ">4,096<" in draw(chart, capfd)


def test_the_axis_spans_a_decade_so_that_noise_stays_small() -> None:
    low, high = throughput_chart(TABLES["flat"]).spec["layer"][-1]["encoding"]["y"]["scale"]["domain"]
    assert high / low == pytest.approx(10)


def test_slow_rates_are_labelled_as_people_write_them(capfd: pytest.CaptureFixture[str]) -> None:
    assert ">0.05<" in draw(throughput_chart(doubling([0.05, 0.1])), capfd)
    assert ">3k<" in draw(throughput_chart(doubling([1000, 2000, 4000, 8000, 16000, 32000])), capfd)


def test_the_tooltip_has_time_memory_and_wait(capfd: pytest.CaptureFixture[str]) -> None:
    throughput = doubling([100, 200], smallest=10, n_devices=2, limit="memory", failed_batch_size=40)
    chart = throughput_chart(throughput)
    fields = {entry["title"]: entry["field"] for entry in chart.spec["layer"][-1]["encoding"]["tooltip"]}
    row = chart.spec["data"]["values"][1]
    assert {title: row[field] for title, field in fields.items()} == {
        "batch size per device": 20,
        "examples per second": "200",
        "time per step": "200 ms",
        "device time per step": "400 ms",
        "peak memory per device": "20.0 MiB",
        "waiting for data": "10%",
        "verdict": "nearly doubles",
    }
    alone = throughput_chart(TABLES["saturated"]).spec["layer"][-1]["encoding"]["tooltip"]
    assert [entry["title"] for entry in alone] == [
        "batch size",
        "examples per second",
        "time per step",
        "peak memory",
        "waiting for data",
        "verdict",
    ]
    assert ">batch size per device<" in draw(chart, capfd)


def test_the_words() -> None:
    chart = throughput_chart(TABLES["saturated"])
    assert chart.spec["title"]["subtitle"] == "Saturated at batch size 8, the recommended one."
    assert chart.alt == (
        "Examples per second against the batch size. Saturated at batch size 8, the recommended one. Batch size and "
        "throughput: 1: 100, 8: 700, 32: 760. 4,096 runs out of memory."
    )
    assert chart.help == (
        "The star is the largest batch size that is at least 10% faster, in examples per second, than half of it; "
        "where the line leaves the dashed one, a larger batch costs more time per step."
    )
    chart = throughput_chart(TABLES["nothing fits"])
    assert chart.alt == "No batch size fits into memory. 4,096 runs out of memory."
    assert chart.help == "No batch size fits; the cross is the smallest that was tried."
    assert "dashed" not in throughput_chart(TABLES["one size"]).help


@pytest.mark.parametrize("ending", ["png", "html", "json"])
def test_it_saves(ending: str, tmp_path: Path) -> None:
    path = throughput_chart(TABLES["saturated"]).save(tmp_path / f"throughput.{ending}")
    assert path.stat().st_size > 1000
