"""Counting, and the bounded memory of queries."""

from __future__ import annotations

import pytest

from orisun_server.core.criteria import criterion
from orisun_server.observation import Histogram, QueryLog, Tracing, Watch
from orisun_server.observation.tracing import Origin, traceparent_of


def test_a_histogram_counts_each_value_once() -> None:
    histogram = Histogram((1.0, 5.0))
    for value in (0.5, 1.0, 1.1, 5.0, 9.0):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.count == 5
    assert histogram.sum == pytest.approx(16.6)


def test_calls_are_counted_by_how_they_ended() -> None:
    watch = Watch()
    rpc = watch.metrics.rpc("orisun.EventStore/Ping")
    with watch.call(rpc, None):
        assert rpc.running == 1
    with watch.call(rpc, None) as call:
        call.failed("NOT_FOUND")
    with pytest.raises(KeyError), watch.call(rpc, None):
        raise KeyError
    assert (rpc.ok, dict(rpc.other), rpc.running) == (1, {"NOT_FOUND": 1, "CANCELLED": 1}, 0)
    assert rpc.seconds.count == 3


def test_queries_are_remembered_by_their_keys_in_bounded_number() -> None:
    log = QueryLog(0.5, ignored="admin", most=3)
    for number in range(10):
        log.note("orders", "page", [(criterion([(f"key{number}", "secret")]), False)], 0.1)
    log.note("orders", "page", [(criterion([("key9", "another")]), False)], 0.3)
    log.note("orders", "page", [(criterion([("fast", "x")]), True), ((), False)], 0.1)
    log.note("admin", "page", [(criterion([("own", "x")]), False)], 9.0)
    entries = log.entries()
    assert [entry.shape.keys for entry in entries] == [("key9",), ("key8",), ("key7",)] or len(entries) == 3
    assert entries[0].shape.keys == ("key9",)
    assert (entries[0].count, entries[0].slow) == (2, 0)
    assert entries[0].create_index == {
        "boundary": "orders",
        "name": "key9",
        "fields": [{"json_key": "key9", "value_type": "TEXT"}],
    }
    assert log.unindexed == {"orders": 11}
    log.note("orders", "page", [(criterion([("k" * 1_000_000, "x")]), False)], 0.1)
    assert max(len(key) for entry in log.entries() for key in entry.shape.keys) == 255


def test_a_flood_of_odd_criteria_pushes_out_nothing_that_matters() -> None:
    log = QueryLog(0.5, most=20)
    for _ in range(3):
        log.note("orders", "page", [(criterion([("useful", "x")]), False)], 0.1)
    log.note("payments", "page", [(criterion([("other", "x")]), False)], 0.1)
    for number in range(50):
        log.note("orders", "page", [(criterion([(f"odd{number}-{n}", "x")]), False) for n in range(100)], 0.1)
    keys = [entry.shape.keys for entry in log.entries()]
    assert {("useful",), ("other",)} < set(keys)
    assert len(keys) == 21
    assert log.unindexed["orders"] == 5_003
    log.note("slow", "page", [(criterion([(f"k{n}", "x")]), False) for n in range(100)], 1.0)
    assert len([entry for entry in log.entries() if entry.shape.boundary == "slow"]) == 10


def test_an_indexed_query_counts_only_when_it_is_slow() -> None:
    log = QueryLog(0.5)
    log.note("orders", "latest", [(criterion([("a", "1")]), True)], 0.7)
    (entry,) = log.entries()
    assert (entry.indexed, entry.slow) == (True, 1)
    assert log.entries(unindexed=True) == []


def test_tracing_that_is_off_makes_nothing() -> None:
    tracing = Tracing()
    assert not tracing.active
    assert tracing.begin_call("a/b", (("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"),)) is None
    assert tracing.origins("orders", ["a", "b"]) == {}


def test_of_a_traced_call_some_events_are_remembered() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracing = Tracing()
    told: list[Origin] = []
    tracing.on_origin(told.append)
    span = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("a call")
    tracing.remember("orders", (str(number) for number in range(1_000)), span)
    tracing.remember("orders", ("x" * 255 + str(number) for number in range(1_000)), span)
    assert [len(origin.event_ids) for origin in told] == [100, 38]
    assert all(sum(map(len, origin.event_ids)) <= 10_000 for origin in told)
    assert tracing.origins("payments", ["7"]) == {}
    assert tracing.origins("orders", ["7", "999"]) == {"7": traceparent_of(span)}
    assert tracing.origins("orders", ["7"]) == {}
    for number in range(200):
        tracing.remember("orders", (f"{number}-{one}" for one in range(100)), span)
    assert tracing.origins("orders", ["8"]) == {}
    assert len(tracing.origins("orders", (f"{number}-{one}" for number in range(200) for one in range(100)))) == 10_000


def test_what_clients_ask_to_trace_is_bounded_apart_from_what_the_server_begins() -> None:
    from opentelemetry.sdk.trace import TracerProvider

    tracing = Tracing(traces_per_second=0.001, client_traces_per_second=3)
    tracing.tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")
    sampled = (("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"),)
    asked = [tracing.begin_call("a/b", sampled) for _ in range(200)]
    assert 3 <= sum(span is not None for span in asked) < 20
    assert [tracing.begin_call("a/b", ()) is not None for _ in range(3)] == [True, False, False]
    none = Tracing(client_traces_per_second=0)
    none.tracer = tracing.tracer
    assert none.begin_call("a/b", sampled) is None
