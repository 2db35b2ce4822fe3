"""What is a chart here? A plain Vega-Lite v5 dict with its words, which displays itself and saves itself.

Playbook: "Automate generically useful plots": "The more effort it is to generate plots, the less likely we are to
look at them as much as we should".
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from playbook_plugins.charts.files import write_atomically

VEGALITE_MIME = "application/vnd.vegalite.v5+json"
# The newest v5 that every supported vl-convert carries.
VEGALITE_VERSION = "5.21"


@dataclass(frozen=True, kw_only=True, eq=False)
class Chart:
    """A chart: a Vega-Lite v5 specification with its data inside.

    Attributes
    ----------
    spec
        The specification, a plain dict that holds finite numbers only; a single view or a ``layer``.
    title
        What the chart shows, in a few words.
    help
        How to read it, in a sentence or two.
    alt
        What a reader who cannot see it should know: the text alternative, with the numbers that matter.
    """

    spec: dict[str, Any]
    title: str
    help: str
    alt: str

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the chart to a file; a file that was there before is replaced whole or not at all.

        Parameters
        ----------
        path
            Ends in ``.html`` (self-contained, opens without a network), ``.png``, ``.svg`` or ``.json``.

        Returns
        -------
        Path
            Where the chart was written.

        Raises
        ------
        ValueError
            When the path ends otherwise.
        ImportError
            When vl-convert is missing; ``.json`` needs none.
        """
        target = Path(path)
        text = json.dumps(self.spec, allow_nan=False)
        match target.suffix.lower():
            case ".json":
                content = text.encode()
            case ".html":
                content = import_vl_convert().vegalite_to_html(text, vl_version=VEGALITE_VERSION, bundle=True).encode()
            case ".svg":
                content = import_vl_convert().vegalite_to_svg(text, vl_version=VEGALITE_VERSION).encode()
            case ".png":
                content = import_vl_convert().vegalite_to_png(text, vl_version=VEGALITE_VERSION, scale=2)
            case _:
                raise ValueError(
                    f"`path` is {str(target)!r}: a chart is saved as .html, .png, .svg or .json. Give the path one of "
                    "these endings."
                )
        return write_atomically(target, content)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """Return the chart for notebooks: Vega-Lite v5, and a picture for front ends that cannot draw it."""
        bundle: dict[str, Any] = {VEGALITE_MIME: self.spec, "text/plain": f"Chart({self.title!r})"}
        try:
            text = json.dumps(self.spec, allow_nan=False)
            picture = import_vl_convert().vegalite_to_png(text, vl_version=VEGALITE_VERSION, scale=2)
        except ImportError:
            # The picture is for front ends without Vega-Lite only; most have it.
            return bundle
        bundle["image/png"] = base64.b64encode(picture).decode()
        return bundle


def import_vl_convert() -> ModuleType:
    """Return vl-convert, which renders Vega-Lite without a browser or a network.

    Raises
    ------
    ImportError
        When it is missing, with the command that installs it.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise ImportError(
            "vl-convert-python renders charts and is not installed. Run: pip install 'playbook-plugins[report]'"
        ) from error
    return vl_convert
