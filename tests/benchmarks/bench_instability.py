"""How much larger a learning rate do warmup and clipping allow? The full run of examples/instability.py, from nothing.

Run it with ``python tests/benchmarks/bench_instability.py``; it takes about five minutes on two cores.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
from claims import claim

# The helpers of the tests.
sys.path.append(str(Path(__file__).parents[1]))

from example_scripts import EXAMPLES, load_example

from playbook_plugins.optuna import trials_from_study


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    example = load_example("instability")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(EXAMPLES / "instability.py"), "--output", folder], check=True)
        storage = f"sqlite:///{folder}/instability.db"
        least = {}
        for workload in example.choose_workloads(False):
            largest = {
                (remedy, seed): example.largest_stable(
                    trials_from_study(
                        optuna.load_study(study_name=f"{workload.name}, seed {seed}: {remedy}", storage=storage)
                    )
                )
                for remedy in ("no remedy", *workload.remedies)
                for seed in workload.seeds
            }
            for remedy in workload.remedies:
                ratios = [largest[remedy, seed] / largest["no remedy", seed] for seed in workload.seeds]
                least[remedy] = f"{min(ratios):.1f} times"
                print(f"{remedy}: {', '.join(f'{ratio:.2f}' for ratio in ratios)} times as large a rate, one a seed")
    claim("warmup", next(words for remedy, words in least.items() if remedy.startswith("warmup")))
    claim("clip", "; ".join(words for remedy, words in least.items() if remedy.startswith("clipping")))


if __name__ == "__main__":
    main()
