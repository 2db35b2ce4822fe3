"""What do the benchmarks measure, beside which peer? The rows of the README's table, and one place to hand them in.

``python tests/benchmarks`` (``make bench``) runs every benchmark of this folder and prints one table in the README's
form, of what they handed in during that run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

# Where the claims of a run of all benchmarks are collected; a benchmark that runs by itself only prints.
VARIABLE = "PLAYBOOK_CLAIMS"

# By the name of the benchmark: its claims in the README's words, in the README's order.
CLAIMS: dict[str, dict[str, str]] = {
    "bench_sampler": {
        "evenness": (
            "Evenness of the worst pair of hyperparameters: centred discrepancy over that of random points, for 4 to "
            "32 hyperparameters and 16 to 128 trials, mean of 20 seeds (lower is better)"
        ),
        "scientific": (
            "Evenness of one nuisance within each of 5 scientific values, 30 trials in all: centred discrepancy, worst "
            "value, mean of 20 seeds"
        ),
        "ask": "Median ask after 10,000 trials in memory, 20 hyperparameters",
    },
    "bench_search": {
        "best": (
            "Best of 16, 32 or 64 points on four closed-form objectives and on the nearest of 512 real trials of "
            "ConvNeXt: share of 30 seeds in which ours is the better one"
        ),
        "best, real": "The same, of 64 on the real trials: top-1 error, mean of 30 seeds with a 95% interval",
    },
    "bench_scale": {
        "trial": "One trial on PostgreSQL from ask to tell, while 0, 100 and 1,000 other trials run",
        "speed": "Instant trials a second by 16 workers on PostgreSQL",
        "duplicates": "Different points among 2,000 that these 16 workers drew",
        "cluster": "What 10,000 workers with trials of ten minutes ask of a server, and read from it in one trial",
    },
    "bench_clipping": {
        "clipping": (
            "Gradient clipping, share of a training step: MLP of 20 tensors; network of 25 million parameters with "
            "batches of 128 and of 512"
        ),
    },
    "bench_weight_ema": {
        "averaging": (
            "Averaging the weights at a half-life of 693 steps, cost per step: MLP of 20 tensors; network of 25 "
            "million parameters"
        ),
    },
    "bench_batch_norm": {
        "batch norm": (
            "Batch-norm statistics of 2 processes, 50 layers of 512 channels: what pooling costs per evaluation, and "
            "the training step, which no longer broadcasts them"
        ),
    },
    "bench_review": {
        "review": (
            "Review of 1,000 trials with 8 hyperparameters and curves of 200 evaluations; of 100,000 trials without "
            "curves"
        ),
    },
    "bench_report": {
        "page": "Page of 1,000 trials with curves; of 10,000 with curves; of 100,000 without",
    },
    "bench_import": {
        "import": "What importing `HaltonSampler` adds to importing Optuna",
    },
    "bench_instability": {
        "warmup": "Largest stable learning rate of a transformer: with warmup over without, the least of 3 seeds",
        "clip": "The same with clipping at the 90th percentile; at the 75th",
    },
}


def claim(key: str, here: str, peer: str = "") -> None:
    """Hand in one row: what was measured here, and of the peer in the same run ("" where there is none)."""
    if not any(key in claims for claims in CLAIMS.values()):
        raise ValueError(f"`key` is {key!r}, which is no row of the README's table. Add it to CLAIMS first.")
    collected = os.environ.get(VARIABLE)
    if collected is not None:
        with Path(collected).open("a") as file:
            file.write(json.dumps({"key": key, "here": here, "peer": peer}) + "\n")


def table(lines: Iterable[str]) -> str:
    """Return what was handed in, one JSON object a line, as the README's table; a row without a measurement says so."""
    measured = {row["key"]: (row["here"], row["peer"]) for row in map(json.loads, lines)}
    rows = ["| What | Here | Peer | Printed by |", "| --- | --- | --- | --- |"]
    for name, claims in CLAIMS.items():
        for key, what in claims.items():
            here, peer = measured.get(key, ("not measured", ""))
            rows.append(f"| {what} | {here} | {peer} | `{name}.py` |")
    return "\n".join(rows)


def span(values: Iterable[float], form: str) -> str:
    """Return the smallest and the largest of the values, "0.17 to 0.42"; one where they read the same."""
    ordered = sorted(values)
    low, high = format(ordered[0], form), format(ordered[-1], form)
    return low if low == high else f"{low} to {high}"
