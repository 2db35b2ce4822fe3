"""How long does an import take? The median of fresh processes, beside an import of nothing and of Optuna.

Run it with ``python tests/benchmarks/bench_import.py``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from claims import claim

N_TIMES = 7


def main() -> None:
    print(f"Seconds of a fresh process, median of {N_TIMES}")
    sampler = "from playbook_plugins.optuna import HaltonSampler"
    statements = ("pass", "import playbook_plugins", "import playbook_plugins.analysis", "import optuna", sampler)
    times: dict[str, list[float]] = {statement: [] for statement in statements}
    for _ in range(N_TIMES):
        # In turn, so that a busy moment of the machine meets all of them.
        for statement in statements:
            times[statement].append(seconds(statement))
    medians = {statement: statistics.median(values) for statement, values in times.items()}
    for statement, median in medians.items():
        print(f"{statement:<52} {median:.3f}")
    added, optuna = (
        f"{medians[later] - medians[sooner]:.2f} s"
        for later, sooner in ((sampler, "import optuna"), ("import optuna", "pass"))
    )
    claim("import", added, f"{optuna}, `import optuna` itself")


def seconds(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
