"""How does a throughput table read on a terminal? Aligned columns, and what to do about them in plain sentences.

Playbook: "Determining the feasible batch sizes and estimating training throughput", "Choosing the batch size to
minimize training time" and "Changing the batch size requires re-tuning most hyperparameters". Words stand here and not
in report/, because whoever measures prints them where only analysis/ may be imported.
"""

from __future__ import annotations

import math

from playbook_plugins.analysis.throughput import WAIT_COSTS, Bottleneck, Throughput

_HEADERS = ("batch size", "time per step", "examples/s", "peak memory", "data wait", "verdict")
_UNKNOWN = "-"
_ADVICE = (
    "Gradient accumulation simulates a larger batch and brings no throughput: avoid it.",
    "Tune again whenever the batch size changes: most hyperparameters depend on it, above all those of the optimizer, "
    "the learning rate first, and of regularization.",
    "A comparison of batch sizes has to say which budget it holds fixed, steps or epochs: twice the batch size makes "
    "an epoch of half the steps.",
)


def describe_throughput(throughput: Throughput) -> str:
    """Return the table as text: a line a batch size, then the bottleneck, the recommended size and the advice.

    Parameters
    ----------
    throughput
        The measurements.

    Returns
    -------
    str
        Lines without a newline at the end; the verdicts and the recommendation are those of `Throughput`.
    """
    lines = [_HEADERS]
    for row in throughput.rows():
        lines.append(
            (
                f"{row['batch_size']:,}",
                seconds_text(row["seconds_per_step"]),
                rate_text(row["examples_per_second"]),
                bytes_text(row["peak_memory"]),
                share_text(row["data_wait_share"]),
                row["verdict"] + (", recommended" if row["recommended"] else ""),
            )
        )
    if throughput.failed_batch_size is not None:
        failed = f"{throughput.failed_batch_size:,}"
        lines.append((failed, _UNKNOWN, _UNKNOWN, _UNKNOWN, _UNKNOWN, "out of memory"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join([*(cell.rjust(width) for cell, width in zip(line[:-1], widths, strict=False)), line[-1]])
        for line in lines
    ]
    sentences = (f"{headline(throughput)} {_bottleneck(throughput)}", *_ADVICE)
    return "\n".join([*table, "", *sentences])


def headline(throughput: Throughput) -> str:
    """Return the bottleneck and the recommended batch size in one short sentence."""
    size = throughput.recommended
    if size is None:
        return "No batch size fits into memory."
    bottleneck = throughput.bottleneck
    at = f"{size:,}"
    if throughput.n_devices > 1:
        at += f" per device ({size * throughput.n_devices:,} in all)"
    name = f"{bottleneck[0].upper()}{bottleneck[1:]}"
    return f"{name} at batch size {at}, the recommended one."


def seconds_text(seconds: float | None) -> str:
    """Return a time in s, ms or µs with three significant digits; "-" where it is None."""
    if seconds is None:
        return _UNKNOWN
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        # 0.9996 s would be written as 1,000 ms.
        if seconds >= 0.9995 * scale:
            return f"{rate_text(seconds / scale)} {unit}"
    return f"{rate_text(seconds / 1e-6)} µs"


def bytes_text(n_bytes: float | None) -> str:
    """Return an amount of memory in GiB, MiB or KiB with three significant digits; "-" where it is None."""
    if n_bytes is None:
        return _UNKNOWN
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if n_bytes >= 0.9995 * 2**power:
            return f"{rate_text(n_bytes / 2**power)} {unit}"
    return f"{rate_text(n_bytes / 2**10)} KiB"


def rate_text(rate: float) -> str:
    """Return examples per second with three significant digits, or with all digits before the decimal point."""
    if rate >= 99.95:
        return f"{rate:,.0f}"
    return f"{rate:#.3g}" if rate >= 0.01 else f"{rate:.3g}"


def share_text(share: float | None) -> str:
    """Return a share as whole per cent; "-" where it is None."""
    return _UNKNOWN if share is None else f"{share:.0%}"


def _bottleneck(throughput: Throughput) -> str:
    size, wait_share = throughput.recommended, throughput.wait_share
    failed = f"{throughput.failed_batch_size:,}" if throughput.failed_batch_size is not None else ""
    if size is None:
        return f"Even {failed} runs out of it: train a smaller model or shorter examples, or in a lower precision."
    match throughput.bottleneck:
        case Bottleneck.INPUT:
            return (
                f"Waiting for data takes {share_text(wait_share)} of the step: load faster (more workers, cheaper "
                "transforms, faster storage), then measure again."
            )
        case Bottleneck.SATURATED:
            text = "Larger batches gain less than 10% over half their size: consider none of them, even where they fit"
            if size == throughput.batch_size[0]:
                text = (
                    "No doubling gains 10%: either the smallest size saturates the accelerator, or something beside it "
                    "holds training back, such as communication or work on the host"
                )
        case Bottleneck.MEMORY:
            text = f"Throughput {_still_grows(throughput)}, but {failed} runs out of memory"
        case Bottleneck.MAX_BATCH_SIZE:
            text = f"Throughput {_still_grows(throughput)}: raise max_batch_size to look further"
        case Bottleneck.DATA:
            text = f"Throughput {_still_grows(throughput)}, but the training set holds no larger batch"
    if not math.isnan(wait_share) and wait_share >= WAIT_COSTS:
        text += f"; waiting for data takes {share_text(wait_share)} of the step, so look at the loader first"
    return f"{text}."


def _still_grows(throughput: Throughput) -> str:
    return "still grows there" if len(throughput) > 1 else "was measured at no other size"
