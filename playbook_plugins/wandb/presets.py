"""Which charts can any W&B project draw live of its own runs? The presets, and how they get there.

Playbook: "Automate generically useful plots".

A preset is a custom chart of W&B: a Vega-Lite specification without data, which a panel fills with the rows of its
query. `publish_presets` sends them once to an entity, a team or a user; every report of it can use them from then on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from playbook_plugins.wandb.clients import start_wandb
from playbook_plugins.wandb.preset_axis import axis_spec
from playbook_plugins.wandb.preset_best_step import best_step_spec
from playbook_plugins.wandb.preset_budget import budget_spec
from playbook_plugins.wandb.preset_curves import curves_spec
from playbook_plugins.wandb.preset_gradient_norms import gradient_norms_spec
from playbook_plugins.wandb.preset_infeasible_share import infeasible_share_spec
from playbook_plugins.wandb.preset_isolation import isolation_spec
from playbook_plugins.wandb.preset_parts import Spec
from playbook_plugins.wandb.retrying import WandbUnavailableError, with_retries

_REFERENCE = re.compile(r"\$\{(field|string):([^:}]*)(?::([^:}]*))?\}")
_N_DIGITS = 10
_ACCESSES = ("private", "public")
# How a server may word that a name is taken. The name is a hash of the content: then the chart is there already.
_IS_TAKEN = re.compile(r"already (?:exists|taken|in use)|duplicate (?:key|entry|name)", flags=re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class Preset:
    """A custom chart of W&B.

    Attributes
    ----------
    stem
        What it is called here, for instance ``"axis"``.
    display_name
        How W&B's list of charts calls it.
    help
        How to read it, in a sentence or two.
    spec
        The Vega-Lite v5 specification, with ``${field:...}`` and ``${string:...}`` in its texts; its data are named
        ``wandb``.
    is_live
        Whether a query of the config and the summary of runs feeds it; the others need a logged table.
    """

    stem: str
    display_name: str
    help: str
    spec: Mapping[str, Any]
    is_live: bool

    @property
    def name(self) -> str:
        """Its name in W&B, which changes with its content: ``playbook-axis-0123456789``."""
        return f"playbook-{self.stem}-{hashlib.sha256(self.text.encode()).hexdigest()[:_N_DIGITS]}"

    @property
    def text(self) -> str:
        """The specification as canonical JSON, in which it is published."""
        return json.dumps(self.spec, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the columns that a panel has to name, sorted."""
        return tuple(sorted({name for kind, name, _ in self._references() if kind == "field"}))

    @property
    def strings(self) -> dict[str, str]:
        """The texts that a panel may give, sorted, each with its default."""
        return dict(sorted((name, default) for kind, name, default in self._references() if kind == "string"))

    def _references(self) -> set[tuple[str, str, str]]:
        return {match.groups(default="") for match in _REFERENCE.finditer(self.text)}  # type: ignore[misc]


def publish_presets(
    entity: str, *, access: Literal["private", "public"] = "private", presets: Iterable[Preset] | None = None
) -> dict[str, str]:
    """Publish the presets to a W&B entity, so that every chart panel of it can use them.

    Their names hold a hash of their content, and nothing that was published is ever changed: publishing again makes no
    duplicates, and another version of this package publishes its own beside those of older reports.

    Parameters
    ----------
    entity
        The user or team that will own them.
    access
        ``"private"``: only the entity sees them; ``"public"``: everybody does.
    presets
        Which; by default all of `PRESETS`.

    Returns
    -------
    dict of str
        ``"entity/name"`` by stem, as ``wandb_workspaces.reports.v2.CustomChart(chart_name=...)`` takes it.

    Raises
    ------
    ValueError
        When the entity is empty, or the access something else.
    WandbUnavailableError
        When W&B does not answer, also after some tries.
    ImportError
        When wandb is missing.
    """
    if not entity or not entity.strip():
        raise ValueError(
            f"`entity` is {entity!r}: presets belong to a user or a team of W&B. Pass its name, the first part of the "
            "address of a project."
        )
    if access not in _ACCESSES:
        raise ValueError(
            f"`access` is {access!r}: it must be one of {list(_ACCESSES)}. Pass 'private' unless everybody shall see "
            "the charts."
        )
    chosen = list(PRESETS.values() if presets is None else presets)
    api = with_retries("log in to W&B", lambda: start_wandb().Api())
    for preset in chosen:
        _publish(api, entity, access, preset)
    return {preset.stem: f"{entity}/{preset.name}" for preset in chosen}


def _publish(api: Any, entity: str, access: str, preset: Preset) -> None:
    try:
        with_retries(
            f"publish the chart {entity}/{preset.name}",
            lambda: api.create_custom_chart(
                entity=entity,
                name=preset.name,
                display_name=preset.display_name,
                spec_type="vega2",
                access=access,
                spec=preset.text,
            ),
        )
    except Exception as error:
        if isinstance(error, WandbUnavailableError) or not _IS_TAKEN.search(str(error)):
            raise


def _presets() -> Iterable[Preset]:
    trials = "Each mark is a trial, stars the best three, crosses infeasible ones, triangles those worse than the axis"
    yield _live(
        "axis",
        "axis plot",
        f"{trials} shows. When the best trials crowd against a dashed bound, better values may lie beyond it.",
        axis_spec(numeric=True),
    )
    yield _live("axis_categories", "axis plot of categories", f"{trials} shows.", axis_spec(numeric=False))
    isolated = (
        "Stars are the best trial of each {}, with everything else optimized away; bars, where {}s differ in size, "
    )
    isolated += "compare fairly, at the estimated median of the best of m trials each, m being the smallest size. "
    isolated += "Every run counts, also those that repeat a configuration."
    yield _live("isolation", "isolation plot", isolated.format("bucket", "bucket"), isolation_spec(numeric=True))
    yield _live(
        "isolation_categories",
        "isolation plot of categories",
        isolated.format("value", "value"),
        isolation_spec(numeric=False),
    )
    yield _live(
        "best_step",
        "best steps",
        "Where in training the better half of the trials were at their best. Mostly in the first 10%: train shorter, "
        "or see whether the trials overfit; mostly in the last 25%, and not because the learning rate decays: train "
        "longer.",
        best_step_spec(),
    )
    share = "The share of infeasible trials, with its 95% interval, and dashed that of all trials."
    yield _live(
        "infeasible_share",
        "infeasible share",
        f"{share} Where intervals at one end lie above it, move that bound, or make training more stable there.",
        infeasible_share_spec(numeric=True),
    )
    yield _live(
        "infeasible_share_categories",
        "infeasible share of categories",
        f"{share} A value whose whole interval lies above it is infeasible more often than the others.",
        infeasible_share_spec(numeric=False),
    )
    yield _fed(
        "curves",
        "training curves",
        "Stars mark the best step; solid lines are validation, dashed training, thick ones the best trial's. "
        "Validation that worsens while training improves hints at overfitting.",
        curves_spec(),
    )
    yield _fed(
        "gradient_norms",
        "gradient norms",
        "Each dot is the median norm between two evaluations, triangles lie above the threshold in force. Outliers are "
        "what clipping cuts; if more than half of the updates are clipped, the playbook lowers the learning rate "
        "instead.",
        gradient_norms_spec(),
    )
    yield _fed(
        "budget",
        "best of n trials",
        "What the best of n trials of such a random search is likely to reach: where the line is steep at its right, "
        "more trials are likely to help. It is dashed where it rests on a few best trials; what is worse than the axis "
        "shows is cut.",
        budget_spec(),
    )


def _live(stem: str, words: str, help: str, spec: Spec) -> Preset:
    return Preset(stem=stem, display_name=f"Playbook: {words}", help=help, spec=spec, is_live=True)


def _fed(stem: str, words: str, help: str, spec: Spec) -> Preset:
    return Preset(stem=stem, display_name=f"Playbook: {words}", help=help, spec=spec, is_live=False)


PRESETS: Mapping[str, Preset] = MappingProxyType({preset.stem: preset for preset in _presets()})
