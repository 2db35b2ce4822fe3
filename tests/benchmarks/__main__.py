"""Run every benchmark, and print the README's table of what they measured: ``python tests/benchmarks [NAME ...]``.

All of them take about twenty minutes on two cores; names (``bench_sampler``) select some. One that fails does not end
the others; the exit status then is 1. The table is also left in runs/benchmarks.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from claims import CLAIMS, VARIABLE, table

FOLDER = Path(__file__).parent


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(CLAIMS))
    if unknown:
        raise SystemExit(f"There is no benchmark {', '.join(unknown)}. Choose among {', '.join(CLAIMS)}.")
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        collected = Path(folder) / "claims.jsonl"
        collected.touch()
        for name in names or CLAIMS:
            print(f"\n== {name}", flush=True)
            begun = time.monotonic()
            command = [sys.executable, str(FOLDER / f"{name}.py")]
            status = subprocess.run(command, env={**os.environ, VARIABLE: str(collected)}, check=False).returncode
            print(f"== {name}: {time.monotonic() - begun:.0f} s", flush=True)
            if status:
                failed.append(name)
        made = table(collected.read_text().splitlines())
    print(f"\n{made}")
    target = Path("runs/benchmarks.md")
    target.parent.mkdir(exist_ok=True)
    target.write_text(made + "\n")
    if failed:
        print(f"\nThese benchmarks failed, their output says why: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
