from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hmsa_pipeline.pipeline.runtime.stop_signal import StopSignal


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted(number: signal.Signals) -> None:
    with StopSignal() as stopping:
        assert not stopping.requested
        signal.raise_signal(number)
        assert stopping.requested


def test_the_second_ctrl_c_stops_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), StopSignal():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)


def test_a_cluster_that_repeats_itself_only_asks() -> None:
    with StopSignal() as stopping:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(number)
        assert stopping.requested


def test_afterwards_signals_are_what_they_were() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopSignal():
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
