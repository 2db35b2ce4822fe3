"""How long does an import take? The median of five fresh processes, beside an import of nothing.

Run it with ``python tests/benchmarks/bench_import.py``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def main() -> None:
    print("Seconds of a fresh process, median of 5")
    for statement in ("pass", "import playbook_plugins", "import playbook_plugins.analysis"):
        print(f"{statement:<34} {statistics.median(seconds(statement) for _ in range(5)):.3f}")


def seconds(statement: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
