"""When W&B does not answer, what is worth another try, and how is it told that none helped?

The client's own side process already retries dropped connections, 429 (after the time that the server asks for) and
5xx, for as long as ``wandb.Api(timeout=)`` lets one request last. What reaches this module has outlasted that, so
that attempts here are few.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

_T = TypeVar("_T")

# Seconds.
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 20.0
_KEY = re.compile(r"(?:\blocal-|\bwandb_v\d+_)?[0-9A-Za-z_]{40,}")
# How the side process words what has no HTTP status.
_PASSING = re.compile(
    r"did not respond in time|timed? ?out|giving up after|connection (?:refused|reset|aborted)|broken pipe|\bEOF\b"
    r"|deadline exceeded|no such host|temporary failure|HTTP (?:429|5\d\d)\b|network is unreachable",
    flags=re.IGNORECASE,
)


class WandbUnavailableError(RuntimeError):
    """W&B did not answer, however often it was asked: nothing is wrong with what was asked, so try again later."""


def with_retries(
    what: str,
    call: Callable[[], _T],
    *,
    seconds: float = 90.0,
    n_attempts: int = 4,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
    generator: random.Random | None = None,
) -> _T:
    """Call W&B, and call it again where the failure may pass.

    Parameters
    ----------
    what
        What is being done, for the error, after "could not": "read the runs of team/project".
    call
        Does it, from the beginning each time; what it does twice must do no harm.
    seconds
        No attempt begins later than this after the first. An attempt that has begun may last as long as its own
        timeout.
    n_attempts
        At most so many calls in all, at least 1.
    clock, sleep, generator
        The time in seconds, waiting for seconds, and the source of the jitter; for tests.

    Returns
    -------
    object
        What ``call`` returned.

    Raises
    ------
    WandbUnavailableError
        When HTTP 429 or 5xx, a dropped connection or a read timeout came each time.
    Exception
        Any other error of ``call``, at once and as it is.
    """
    draw = random.Random() if generator is None else generator
    start = clock()
    wait = _FIRST_WAIT
    attempt = 1
    while True:
        try:
            return call()
        except Exception as error:
            if not is_passing(error):
                raise
            # Half of the wait is random, so that workers that failed together do not come back together.
            pause = wait * (0.5 + 0.5 * draw.random())
            asked = retry_after(error)
            pause = pause if asked is None else max(pause, asked)
            if attempt >= n_attempts or clock() - start + pause > seconds:
                raise WandbUnavailableError(
                    f"could not {what}: W&B did not answer. It was asked {attempt} time{'s' * (attempt > 1)} in "
                    f"{clock() - start:.0f} s; the last time: {describe(error)}. Run this again when W&B answers "
                    "(https://status.wandb.com), or set WANDB_HTTP_TIMEOUT to more seconds where the network is slow."
                ) from error
        sleep(pause)
        wait = min(2 * wait, _LONGEST_WAIT)
        attempt += 1


def is_passing(error: BaseException) -> bool:
    """Return whether a failure may pass: HTTP 429 and 5xx, dropped connections, timeouts; not 401, 403 or 404."""
    if isinstance(error, WandbUnavailableError):
        return False
    causes = list(_causes(error))
    for cause in causes:
        status = _status(cause)
        if status:
            return status == 429 or status >= 500
    if any(isinstance(cause, ConnectionError | TimeoutError) for cause in causes):
        return True
    # By name: neither wandb nor requests is imported here.
    names = {cls.__name__ for cause in causes for cls in type(cause).__mro__}
    if names & {"Timeout", "ConnectionError", "ProtocolError", "ChunkedEncodingError"}:
        return True
    return bool(names & {"WandbApiFailedError", "CommError"}) and any(_PASSING.search(str(cause)) for cause in causes)


def retry_after(error: BaseException) -> float | None:
    """Return how many seconds the server asked to wait, None where it did not."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        try:
            return max(0.0, float(headers["Retry-After"]))
        except (KeyError, TypeError, ValueError):
            # A date is as good as no wish: the pause grows anyway.
            continue
    return None


def describe(error: BaseException) -> str:
    """Return an error in one line, without anything that could be an API key."""
    text = _KEY.sub("***", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:300]}"


def _status(error: BaseException) -> int:
    """Return the HTTP status of an error of wandb or requests; 0 where it has none."""
    response: Any = getattr(error, "response", None)
    status = getattr(response, "http_status", None) or getattr(response, "status_code", None)
    return status if isinstance(status, int) else 0


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what is behind it; wandb keeps the cause of some under ``exc``."""
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        cause = queue.pop(0)
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            queue += [getattr(cause, "exc", None), cause.__cause__, cause.__context__]
