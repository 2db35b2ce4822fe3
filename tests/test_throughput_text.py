"""Does the table of throughputs read as it should, to the letter?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis.throughput import Throughput
from playbook_plugins.analysis.throughput_text import (
    bytes_text,
    describe_throughput,
    headline,
    rate_text,
    seconds_text,
    share_text,
)

ADVICE = [
    "Gradient accumulation simulates a larger batch and brings no throughput: avoid it.",
    "Tune again whenever the batch size changes: most hyperparameters depend on it, above all those of the optimizer, "
    "the learning rate first, and of regularization.",
    "A comparison of batch sizes has to say which budget it holds fixed, steps or epochs: twice the batch size makes "
    "an epoch of half the steps.",
]


def doubling(rates: list[float], wait: float = 0.0, limit: Any = "max_batch_size", **more: Any) -> Throughput:
    sizes = 16 * 2 ** np.arange(len(rates))
    return Throughput(
        batch_size=sizes,
        seconds_per_step=sizes / np.asarray(rates, dtype=float),
        data_wait_share=np.full(len(rates), wait),
        peak_memory=np.full(len(rates), math.nan),
        limit=limit,
        **more,
    )


def test_the_whole_text() -> None:
    throughput = Throughput(
        batch_size=np.array([64, 128, 256, 512]),
        seconds_per_step=np.array([0.0125, 0.01254, 0.0128, 0.0251]),
        data_wait_share=np.array([0.02, 0.02, math.nan, 0.031]),
        peak_memory=np.array([900 * 2**20, 1.5 * 2**30, math.nan, 12 * 2**30]),
        limit="memory",
        failed_batch_size=1024,
    )
    assert describe_throughput(throughput).splitlines() == [
        "batch size  time per step  examples/s  peak memory  data wait  verdict",
        "        64        12.5 ms       5,120      900 MiB         2%  smallest size",
        "       128        12.5 ms      10,207     1.50 GiB         2%  nearly doubles",
        "       256        12.8 ms      20,000            -          -  nearly doubles, recommended",
        "       512        25.1 ms      20,398     12.0 GiB         3%  saturated",
        "     1,024              -           -            -          -  out of memory",
        "",
        "Saturated at batch size 256, the recommended one. Larger batches gain less than 10% over half their size: "
        "consider none of them, even where they fit.",
        *ADVICE,
    ]


@pytest.mark.parametrize(
    ("throughput", "sentence"),
    [
        (
            doubling([1, 2, 4], limit="memory", failed_batch_size=128),
            "Memory-bound at batch size 64, the recommended one. Throughput still grows there, but 128 runs out of "
            "memory.",
        ),
        (
            doubling([1], limit="memory", failed_batch_size=32),
            "Memory-bound at batch size 16, the recommended one. Throughput was measured at no other size, but 32 runs "
            "out of memory.",
        ),
        (
            doubling([1, 2, 4]),
            "Limited by max_batch_size at batch size 64, the recommended one. Throughput still grows there: raise "
            "max_batch_size to look further.",
        ),
        (
            doubling([1, 2, 4], limit="data", n_devices=8),
            "Limited by the training set at batch size 64 per device (512 in all), the recommended one. Throughput "
            "still grows there, but the training set holds no larger batch.",
        ),
        (
            doubling([1, 2, 2], wait=0.723),
            "Input-bound at batch size 32, the recommended one. Waiting for data takes 72% of the step: load faster "
            "(more workers, cheaper transforms, faster storage), then measure again.",
        ),
        (
            doubling([1, 2, 2], wait=0.2),
            "Saturated at batch size 32, the recommended one. Larger batches gain less than 10% over half their size: "
            "consider none of them, even where they fit; waiting for data takes 20% of the step, so look at the loader "
            "first.",
        ),
        (
            doubling([2, 2, 2], wait=math.nan),
            "Saturated at batch size 16, the recommended one. No doubling gains 10%: either the smallest size "
            "saturates the accelerator, or something beside it holds training back, such as communication or work on "
            "the host.",
        ),
        (
            doubling([], limit="memory", failed_batch_size=16),
            "No batch size fits into memory. Even 16 runs out of it: train a smaller model or shorter examples, or in "
            "a lower precision.",
        ),
    ],
)
def test_each_bottleneck_has_its_sentence_and_the_advice_follows(throughput: Throughput, sentence: str) -> None:
    lines = describe_throughput(throughput).splitlines()
    assert lines[-4:] == [sentence, *ADVICE]
    assert lines[-5] == ""
    assert sentence.startswith(headline(throughput))
    n_failed = throughput.failed_batch_size is not None
    assert len(lines) == 1 + len(throughput) + n_failed + 5


def test_columns_are_aligned_whatever_the_numbers() -> None:
    throughput = doubling([0.0123, 3e9, 2e12], wait=1.0, limit="memory", failed_batch_size=10**9)
    lines = describe_throughput(throughput).splitlines()[:5]
    # Every cell but the last ends where its header ends.
    header = lines[0]
    ends = [header.index(name) + len(name) for name in ("time per step", "peak memory", "data wait")]
    width = max(len(f"{10**9:,}"), len("batch size"))
    assert header.startswith("batch size".rjust(width))
    for line in lines[1:]:
        for end in ends:
            assert line[end - 1] != " "
            assert line[end : end + 2] == "  "


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (12.345, "12.3 s"),
        (1234.5, "1,234 s"),
        (1.0, "1.00 s"),
        (0.99951, "1.00 s"),
        (0.9994, "999 ms"),
        (0.0123456, "12.3 ms"),
        (0.00099951, "1.00 ms"),
        (5.678e-5, "56.8 µs"),
        (None, "-"),
    ],
)
def test_times(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (None, "-"),
        (0, "0 KiB"),
        (512, "0.500 KiB"),
        (1023.9 * 2**20, "1.00 GiB"),
        (1000 * 2**20, "1,000 MiB"),
        (80 * 2**30, "80.0 GiB"),
    ],
)
def test_memory(n_bytes: float | None, text: str) -> None:
    assert bytes_text(n_bytes) == text


def test_rates_and_shares() -> None:
    assert [rate_text(rate) for rate in (0.00123, 0.0123, 9.999, 99.94, 99.96, 12345.6)] == [
        "0.00123",
        "0.0123",
        "10.0",
        "99.9",
        "100",
        "12,346",
    ]
    assert [share_text(share) for share in (None, 0.0, 0.004, 1.0)] == ["-", "0%", "0%", "100%"]
