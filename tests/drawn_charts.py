"""What every chart must be: valid Vega-Lite v5, one view, finite numbers, drawn without a warning."""

from __future__ import annotations

import json
import re
from pathlib import Path

import altair
import jsonschema
import pytest
import vl_convert

from playbook_plugins.charts import Chart

_SCHEMA = Path(altair.__file__).parent / "vegalite" / "v5" / "schema" / "vega-lite-schema.json"
_VALIDATOR = jsonschema.Draft7Validator(json.loads(_SCHEMA.read_text(encoding="utf-8")))


def draw(chart: Chart, capfd: pytest.CaptureFixture[str]) -> str:
    """Return the chart as SVG, after its specification was checked and Vega-Lite said nothing against it."""
    json.dumps(chart.spec, allow_nan=False)
    assert [error.message for error in _VALIDATOR.iter_errors(chart.spec)] == []
    assert "layer" in chart.spec
    assert not {"hconcat", "vconcat", "concat", "facet", "repeat", "params"} & chart.spec.keys()
    capfd.readouterr()
    svg: str = vl_convert.vegalite_to_svg(chart.spec, vl_version="5.21", show_warnings=True)
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert "NaN" not in svg
    assert chart.title
    assert chart.help.endswith(".")
    assert chart.alt.endswith(".")
    return svg


def points(svg: str, colour: str, *, of: str = "fill") -> list[tuple[float, float]]:
    """Return where the marks of a fill or stroke colour stand; symbols of the legend carry no description."""
    found = re.findall(
        rf'aria-roledescription="point"[^>]*transform="translate\(([-\d.]+),([-\d.]+)\)"[^>]*{of}="{colour}"', svg
    )
    return [(float(x), float(y)) for x, y in found]
