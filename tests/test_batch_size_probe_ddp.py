from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning_toys import PACKAGES


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_two_processes_agree_and_train_on_as_without_the_probe(package: Any, tmp_path: Path) -> None:
    script = Path(__file__).parent / "probe_ranks_script.py"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    subprocess.run(
        [sys.executable, *command, str(Path(__file__).parent), str(tmp_path), package.__name__],
        check=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for told in ranks:
        for case in ("whole", "memory"):
            assert told[case]["message"] == ""
            assert told[case]["changed"] == [[]]
            for part in ("losses", "weights", "buffers"):
                assert told[case][part] == told["without"][part], part
        assert told["synchronized"]["message"].startswith(
            "`model` has SyncBatchNorm layers, and BatchSizeProbe does not"
        )
    # Each rank reports the same numbers, those of the slowest.
    for case in ("whole", "memory"):
        assert ranks[0][case]["results"] == ranks[1][case]["results"]
    for result in ranks[0]["whole"]["results"]:
        assert (result["batch_size"], result["limit"], result["n_devices"]) == ([2, 4, 8, 16, 32], "max_batch_size", 2)
    for result in ranks[0]["memory"]["results"]:
        assert (result["batch_size"], result["limit"], result["failed_batch_size"]) == ([2, 4, 8], "memory", 16)
    # The ranks train on examples of their own.
    assert ranks[0]["whole"]["losses"] != ranks[1]["whole"]["losses"]
    # Another error of one rank ends the probe on all of them.
    assert ranks[1]["error"]["message"] == "'out of memory on rank 1'"
    assert ranks[0]["error"]["message"] == (
        "BatchSizeProbe has ended: a training step failed on another rank, see its error."
    )
