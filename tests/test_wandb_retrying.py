from __future__ import annotations

import random
import re
from typing import Any

import pytest
import requests
import wandb
from wandb.errors import AuthenticationError, CommError
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_server import DEFAULT_ENTITY, LoopbackServer

from playbook_plugins.wandb import WandbUnavailableError
from playbook_plugins.wandb.retrying import describe, is_passing, retry_after, with_retries


class Clock:
    """A clock that only waiting moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


class Flaky:
    """Fails so many times, then answers."""

    def __init__(self, errors: list[Exception], clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.errors, self.clock, self.seconds, self.n_calls = errors, clock, seconds, 0

    def __call__(self) -> str:
        self.n_calls += 1
        if self.clock is not None:
            self.clock.now += self.seconds
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def http_error(status: int, headers: dict[str, str] | None = None) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    response.headers.update(headers or {})
    return requests.HTTPError(f"{status} for url", response=response)


def api_error(status: int, message: str = "said the server") -> WandbApiFailedError:
    from wandb.proto.wandb_api_pb2 import ApiErrorResponse

    return WandbApiFailedError(message, ApiErrorResponse(message=message, http_status=status))


def retry(call: Any, clock: Clock, seed: int = 0, **options: Any) -> str:
    options = {"clock": clock, "sleep": clock.sleep, "generator": random.Random(seed), **options}
    return with_retries("read the runs of team/p", call, **options)


PASSING = [
    *(http_error(status) for status in (429, 500, 502, 503, 504)),
    *(api_error(status) for status in (429, 503)),
    CommError("wrapped", api_error(503)),
    CommError("Timed out while retrying: HTTP 503: unavailable"),
    WandbApiFailedError("Failed to execute API request: the service process is busy and did not respond in time."),
    WandbApiFailedError("POST https://api.wandb.ai/graphql giving up after 2 attempt(s): EOF"),
    WandbApiFailedError("dial tcp 127.0.0.1:9: connect: connection refused"),
    requests.ConnectionError("reset"),
    requests.ReadTimeout("read"),
    ConnectionResetError("reset"),
    TimeoutError("Timed out finishing run."),
]
LASTING = [
    *(http_error(status) for status in (400, 401, 403, 404, 409)),
    *(api_error(status) for status in (401, 403, 404)),
    CommError("wrapped", api_error(403)),
    CommError("permission denied"),
    AuthenticationError("the API key is wrong"),
    WandbApiFailedError("project not found"),
    ValueError("connection refused is what the user wrote"),
    KeyError("x"),
    WandbUnavailableError("timed out"),
]


def name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:60]


@pytest.mark.parametrize("error", PASSING, ids=name)
def test_what_may_pass_is_tried_again(error: Exception) -> None:
    clock = Clock()
    call = Flaky([error, error])
    assert is_passing(error)
    assert retry(call, clock) == "answer"
    assert call.n_calls == 3


@pytest.mark.parametrize("error", LASTING, ids=name)
def test_what_lasts_is_raised_at_once(error: Exception) -> None:
    clock = Clock()
    call = Flaky([error])
    with pytest.raises(type(error)) as caught:
        retry(call, clock)
    assert caught.value is error
    assert call.n_calls == 1
    assert clock.waits == []


@pytest.mark.parametrize(("status", "expected"), [(503, True), (401, False)])
def test_a_cause_of_a_cause_is_found(status: int, expected: bool) -> None:
    # As the client raises it when it checks the key.
    error = AuthenticationError("Failed to verify credentials")
    error.__cause__ = api_error(status)
    assert is_passing(error) is expected


def test_waits_grow_with_jitter() -> None:
    clock = Clock()
    retry(Flaky([http_error(503)] * 7), clock, n_attempts=8, seconds=1000)
    assert len(clock.waits) == 7
    for wait, longest in zip(clock.waits, (1, 2, 4, 8, 16, 20, 20), strict=True):
        assert longest / 2 <= wait <= longest
    other = Clock()
    retry(Flaky([http_error(503)] * 7), other, seed=1, n_attempts=8, seconds=1000)
    assert other.waits != clock.waits


def test_the_server_may_ask_for_a_longer_wait() -> None:
    clock = Clock()
    error = http_error(429, {"Retry-After": "7"})
    assert retry_after(error) == 7
    retry(Flaky([error]), clock)
    assert clock.waits == [7]
    assert retry_after(http_error(429, {"Retry-After": "Sun, 22 Nov 2026 10:00:00 GMT"})) is None
    assert retry_after(http_error(503)) is None
    # A wait of zero does not undo the pause.
    clock = Clock()
    retry(Flaky([http_error(429, {"Retry-After": "0"})]), clock)
    assert clock.waits[0] >= 0.5


def test_the_last_error_says_all() -> None:
    clock = Clock()
    key = "0123456789abcdef" * 3
    call = Flaky([api_error(503, f"no answer\nfor {key}")] * 9, clock, seconds=2.0)
    with pytest.raises(WandbUnavailableError) as caught:
        retry(call, clock, n_attempts=3, generator=random.Random(0))
    waits = sum(clock.waits)
    assert str(caught.value) == (
        f"could not read the runs of team/p: W&B did not answer. It was asked 3 times in {6 + waits:.0f} s; the last "
        "time: WandbApiFailedError: no answer for ***. Run this again when W&B answers (https://status.wandb.com), or "
        "set WANDB_HTTP_TIMEOUT to more seconds where the network is slow."
    )
    assert isinstance(caught.value.__cause__, WandbApiFailedError)
    assert isinstance(caught.value, RuntimeError)
    assert call.n_calls == 3


def test_the_whole_time_is_bounded() -> None:
    clock = Clock()
    call = Flaky([TimeoutError("read")] * 99, clock, seconds=40.0)
    with pytest.raises(WandbUnavailableError, match=r"It was asked 3 times"):
        retry(call, clock, seconds=90.0, n_attempts=99)
    assert clock.now - 100 < 90 + 40
    # A wait that would end after the time is not begun.
    clock = Clock()
    with pytest.raises(WandbUnavailableError, match=r"It was asked 1 time in 0 s"):
        retry(Flaky([http_error(429, {"Retry-After": "3600"})]), clock)
    assert clock.waits == []


def test_nothing_that_may_be_a_key_is_shown() -> None:
    key = "ab12" * 10
    for secret in (key, f"local-{key}", f"wandb_v1_{key}"):
        assert describe(RuntimeError(f"Authorization: Basic {secret}, refused")) == (
            "RuntimeError: Authorization: Basic ***, refused"
        )
    assert len(describe(RuntimeError("word " * 500))) < 350


# Against the real client


@pytest.mark.parametrize("kind", [503, 429, "drop", "hang"])
def test_the_clients_own_retries_do_not_multiply(kind: int | str, wandb_server: LoopbackServer) -> None:
    api = wandb.Api(timeout=2)
    wandb_server.fail(kind, times=None)
    clock = Clock()
    with pytest.raises(WandbUnavailableError, match=re.escape("read the runs of team/p")) as caught:
        retry(lambda: list(api.runs(f"{DEFAULT_ENTITY}/p")), clock, n_attempts=2)
    n_asked = wandb_server.count("Runs")
    assert 2 <= n_asked <= 8
    assert wandb_server.api_key not in str(caught.value)


def test_a_passing_failure_is_not_noticed(wandb_server: LoopbackServer) -> None:
    wandb_server.plant_run(DEFAULT_ENTITY, "p", name="a")
    wandb_server.fail(503, times=1, operation="Runs")
    api = wandb.Api(timeout=20)
    clock = Clock()
    assert len(with_retries("read", lambda: list(api.runs(f"{DEFAULT_ENTITY}/p")), sleep=clock.sleep)) == 1
    # The client's side process got over it.
    assert clock.waits == []
    assert wandb_server.count("Runs") == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_asked_for_once(status: int, wandb_server: LoopbackServer) -> None:
    api = wandb.Api(timeout=20)
    wandb_server.fail(status, times=None, operation="Runs")
    with pytest.raises(WandbApiFailedError):
        retry(lambda: list(api.runs(f"{DEFAULT_ENTITY}/p")), Clock())
    assert wandb_server.count("Runs") == 1
