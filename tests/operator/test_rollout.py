"""Which pod is touched next, as a pure function."""

from __future__ import annotations

from dataclasses import replace

from orisun_operator.rollout import Action, Pod, View, next_step, stale_peers


def _pod(ordinal: int, template: str = "new", *, ready: bool = True, streams: str = "cluster-1", **more: object) -> Pod:
    pod = Pod(ordinal, f"store-{ordinal}", f"uid-{ordinal}", template, streams, ready)
    return replace(pod, **more)  # type: ignore[arg-type]


def _view(*pods: Pod, wanted: int = 3, asked: int = 3, **more: object) -> View:
    view = View(wanted=wanted, asked=asked, pods=pods, template="new", streams="cluster-1")
    return replace(view, **more)  # type: ignore[arg-type]


def test_all_pods_of_a_new_cluster_start_at_once() -> None:
    step = next_step(_view(asked=0))
    assert (step.action, step.replicas) == (Action.SCALE, 3)


def test_nothing_is_done_when_all_is_well() -> None:
    assert next_step(_view(_pod(0), _pod(1), _pod(2))).action is Action.NOTHING


def test_outdated_pods_are_replaced_from_the_last_to_the_first() -> None:
    step = next_step(_view(_pod(0, "old"), _pod(1, "old"), _pod(2, "old")))
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 2)
    step = next_step(_view(_pod(0, "old"), _pod(1, "old"), _pod(2)))
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 1)


def test_a_rollout_waits_for_the_replaced_pod() -> None:
    step = next_step(_view(_pod(0, "old"), _pod(1, "old"), _pod(2, ready=False)))
    assert (step.action, step.stalled) == (Action.WAIT, False)


def test_a_replaced_pod_that_does_not_come_up_stalls_the_rollout() -> None:
    bad = _pod(2, ready=False, problem="container server ImagePullBackOff", unready=301.0)
    step = next_step(_view(_pod(0, "old"), _pod(1, "old"), bad))
    assert (step.action, step.stalled, step.reason) == (Action.WAIT, True, "PodsNotReady")
    assert "ImagePullBackOff" in step.message
    assert "take the last change of the spec back" in step.message


def test_the_old_image_set_back_heals_the_bad_pod_at_once() -> None:
    bad = _pod(2, "bad", ready=False, unready=1000.0)
    # whatever JetStream says about a pod that does not run
    step = next_step(_view(_pod(0), _pod(1), bad, jetstream="store-2: its NATS server does not answer"))
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 2)


def test_a_rollout_waits_for_jetstream_and_for_the_schema_and_says_so() -> None:
    pods = (_pod(0, "old"), _pod(1, "old"), _pod(2))
    step = next_step(_view(*pods, jetstream="store-0: not current"))
    assert (step.action, step.reason) == (Action.WAIT, "AwaitingJetStream")
    assert "store-0: not current" in step.message
    step = next_step(_view(*pods, schema="orders has migrations to come"))
    assert (step.action, step.reason) == (Action.WAIT, "AwaitingSchema")


def test_a_template_that_waits_replaces_nothing_and_is_told_of() -> None:
    """The StatefulSet makes pods as they were: what is not ready would be replaced for ever."""
    waiting = _view(_pod(0), _pod(1), _pod(2, ready=False), schema="orders has migrations to come", waits=True)
    assert (next_step(waiting).action, next_step(waiting).reason) == (Action.WAIT, "AwaitingPods")
    step = next_step(replace(waiting, pods=(_pod(0), _pod(1), _pod(2))))
    assert (step.action, step.reason) == (Action.WAIT, "AwaitingSchema")
    # scaling does not wait, nor does a pod that is not as the StatefulSet makes it
    assert next_step(replace(waiting, pods=(_pod(0), _pod(1), _pod(2)), wanted=4)).action is Action.SCALE
    step = next_step(replace(waiting, pods=(_pod(0), _pod(1), _pod(2, "old", ready=False))))
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 2)


def test_what_is_waited_for_too_long_calls_somebody_with_what_to_type() -> None:
    rolling = (_pod(0, "old"), _pod(1), _pod(2))
    for view, reason, command in (
        (_view(*rolling, jetstream="store-1: not current", ill=301.0), "AwaitingJetStream", "kubectl logs POD -c nats"),
        (_view(*rolling, leaving="store-3-abc", leaving_for=301.0), "RemovingPeers", "kubectl logs POD -c nats"),
        (
            _view(_pod(0), _pod(1), _pod(2, ready=False, terminating=True, overdue=301.0, unready=301.0)),
            "PodsNotEnding",
            "kubectl delete pod store-2 --grace-period=0 --force",
        ),
        (
            _view(_pod(0, terminating=True, overdue=301.0), wanted=0, asked=0),
            "PodsNotEnding",
            "kubectl delete pod store-0 --grace-period=0 --force",
        ),
    ):
        step = next_step(view)
        assert (step.action, step.reason, step.stalled) == (Action.WAIT, reason, True)
        assert command in step.message
        pods = tuple(replace(pod, overdue=0.0, unready=0.0) for pod in view.pods)
        step = next_step(replace(view, pods=pods, ill=299.0, leaving_for=299.0))
        assert (step.action, step.stalled) == (Action.WAIT, False)


def test_a_rollout_waits_while_another_pod_does_not_serve() -> None:
    step = next_step(_view(_pod(0, "old"), _pod(1, "old", ready=False), _pod(2)))
    # the one that does not serve goes first, which costs nothing
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 1)
    step = next_step(_view(_pod(0, "old"), _pod(1, ready=False), _pod(2)))
    assert step.action is Action.WAIT


def test_no_pod_is_touched_while_one_ends_or_is_missing() -> None:
    step = next_step(_view(_pod(0, "old"), _pod(1, "old"), _pod(2, "old", terminating=True)))
    assert (step.action, step.reason) == (Action.WAIT, "AwaitingPods")
    step = next_step(_view(_pod(0, "old"), _pod(1, "old")))
    assert (step.action, step.reason) == (Action.WAIT, "AwaitingPods")


def test_on_delete_waits_for_a_person() -> None:
    step = next_step(_view(_pod(0, "old"), _pod(1), _pod(2, "old"), on_delete=True))
    assert (step.action, step.reason) == (Action.NOTHING, "AwaitingDeletion")
    assert "store-0, store-2" in step.message


def test_another_rendering_of_the_same_spec_reaches_only_pods_that_do_not_serve() -> None:
    pods = [_pod(n, revision="r1") for n in range(3)]
    assert next_step(_view(*pods, revision="r2")).action is Action.NOTHING
    # a moment proves nothing
    pods[1] = _pod(1, ready=False, revision="r1", unready=5.0)
    assert next_step(_view(*pods, revision="r2")).action is Action.WAIT
    pods[1] = _pod(1, ready=False, revision="r1", unready=60.0)
    step = next_step(_view(*pods, revision="r2"))
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 1)
    pods[1] = _pod(1, ready=False, revision="r2")
    assert next_step(_view(*pods, revision="r2")).action is Action.WAIT


def test_a_nats_server_that_has_stopped_writing_is_made_anew_but_not_again_and_again() -> None:
    ill = {"jetstream": "store-1: write error", "ailing": ("store-1",), "stopped": ("store-1",), "ill": 31.0}
    three = [_pod(n) for n in range(3)]
    step = next_step(_view(*three, **ill))
    assert (step.action, step.reason, step.pod and step.pod.ordinal) == (Action.REPLACE, "RestartingNats", 1)
    # before a rollout, which would wait for it for ever, and before the cluster grows
    outdated = [replace(pod, template="old") for pod in three]
    step = next_step(_view(*outdated, **ill))
    assert (step.reason, step.pod and step.pod.ordinal) == ("RestartingNats", 1)
    assert next_step(_view(*three, **ill, wanted=5)).reason == "RestartingNats"
    # two of three: one at a time, the next when the first is current again
    two = ill | {"ailing": ("store-0", "store-2"), "stopped": ("store-0", "store-2")}
    step = next_step(_view(*three, **two))
    assert (step.reason, step.pod and step.pod.ordinal) == ("RestartingNats", 2)
    assert next_step(_view(*three, **two | {"stopped": ("store-0",)})).action is Action.NOTHING
    assert next_step(_view(*three, **ill | {"ailing": ("store-0",), "stopped": ("store-0",)})).action is Action.REPLACE
    # an hour later once more
    assert next_step(_view(*three, **ill, restarted={"store-1": 3600.0})).reason == "RestartingNats"
    step = next_step(_view(*three, **two, restarted={"store-2": 60.0}))
    assert (step.reason, step.pod and step.pod.ordinal) == ("RestartingNats", 0)

    for why, view in {
        "it catches up": _view(*three, **ill | {"stopped": ()}),
        "a moment proves nothing": _view(*three, **ill | {"ill": 29.0}),
        "that was done, and has not helped": _view(*three, **ill, restarted={"store-1": 3599.0}),
        "a person deletes pods": _view(*three, **ill, on_delete=True),
        "JetStream begins anew": _view(*[replace(pod, streams="cluster-0") for pod in three], **ill),
        "it is the only one": _view(_pod(1), wanted=1, asked=1, **ill),
        "the new one would have to wait": _view(*three, **ill, schema="the Secret login is missing"),
        "a newer template waits": _view(*three, **ill, waits=True),
        "another one is away": _view(*three[:2], _pod(2, ready=False), **ill),
        "another one ends": _view(*three[:2], _pod(2, terminating=True), **ill),
        "a pod is made": _view(*three[:2], **ill),
    }.items():
        assert next_step(view).action is not Action.REPLACE, why


def test_growing_and_shrinking_go_one_ordinal_at_a_time_gated() -> None:
    three = tuple(_pod(n) for n in range(3))
    step = next_step(_view(*three, wanted=5))
    assert (step.action, step.replicas) == (Action.SCALE, 4)
    step = next_step(_view(*three, _pod(3), wanted=5, asked=4, jetstream="store-3: not current"))
    assert step.action is Action.WAIT
    step = next_step(_view(*three, _pod(3, ready=False), wanted=5, asked=4))
    assert step.action is Action.WAIT
    step = next_step(_view(*three, _pod(3), _pod(4), wanted=3, asked=5))
    assert (step.action, step.replicas) == (Action.SCALE, 4)
    # the one scaled away has not ended
    step = next_step(_view(*three, _pod(3), _pod(4, terminating=True), wanted=3, asked=4))
    assert step.action is Action.WAIT


def test_growing_that_does_not_succeed_can_be_taken_back() -> None:
    stuck = _pod(3, ready=False, problem="not scheduled: no room", unready=1000.0)
    view = _view(_pod(0), _pod(1), _pod(2), stuck, wanted=5, asked=4, jetstream="store-3: no answer")
    assert next_step(view).stalled
    step = next_step(replace(view, wanted=3))
    assert (step.action, step.replicas) == (Action.SCALE, 3)
    # another one that does not serve is waited for
    view = _view(_pod(0), _pod(1, ready=False), _pod(2), _pod(3), wanted=3, asked=4)
    assert next_step(view).action is Action.WAIT


def test_shrinking_without_postgres_waits_for_each_member_to_leave() -> None:
    """No server serves then, while all NATS servers vote."""
    pods = [_pod(n, ready=False) for n in range(9)]
    step = next_step(_view(*pods, wanted=3, asked=9))
    assert (step.action, step.replicas) == (Action.SCALE, 8)
    step = next_step(_view(*pods[:8], wanted=3, asked=8, leaving="store-8-abc"))
    assert step.action is Action.WAIT
    step = next_step(_view(*pods[:8], wanted=3, asked=8))
    assert (step.action, step.replicas) == (Action.SCALE, 7)


def test_a_member_that_is_gone_leaves_before_anything_else_is_done() -> None:
    step = next_step(_view(_pod(0), _pod(1), _pod(2), leaving="store-3-abc"))
    assert (step.action, step.reason) == (Action.WAIT, "RemovingPeers")


def test_one_to_three_starts_the_new_ones_first_and_then_replaces_the_first() -> None:
    single = _pod(0, "old", streams="single-1")
    step = next_step(_view(single, asked=1))
    assert (step.action, step.replicas) == (Action.SCALE, 3)
    step = next_step(_view(single, _pod(1, ready=False), _pod(2)))
    assert step.action is Action.WAIT
    # the new ones have no quorum to speak of before the last is there: it is not waited for
    step = next_step(_view(single, _pod(1), _pod(2), jetstream="no leader"))
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 0)


def test_three_to_one_replaces_the_one_that_stays_before_the_others_go() -> None:
    old = tuple(_pod(n, "old", streams="cluster-1") for n in range(3))
    view = replace(_view(*old, wanted=1), streams="single-2")
    step = next_step(view)
    assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, 0)
    step = next_step(replace(view, pods=(_pod(0, ready=False, streams="single-2"), *old[1:])))
    assert step.action is Action.WAIT
    step = next_step(replace(view, pods=(_pod(0, streams="single-2"), *old[1:])))
    assert (step.action, step.replicas) == (Action.SCALE, 1)


def test_hibernation_stops_all_and_waking_starts_all() -> None:
    three = tuple(_pod(n) for n in range(3))
    step = next_step(_view(*three, wanted=0))
    assert (step.action, step.replicas) == (Action.SCALE, 0)
    assert next_step(_view(*three, wanted=0, asked=0)).action is Action.WAIT
    assert next_step(_view(wanted=0, asked=0)).reason == "Hibernated"
    assert next_step(_view(asked=0)).replicas == 3


def test_a_cluster_that_never_came_up_is_mended_by_another_image() -> None:
    bad = [_pod(n, "bad", ready=False) for n in range(3)]
    for ordinal in (2, 1, 0):
        step = next_step(_view(*bad))
        assert (step.action, step.pod and step.pod.ordinal) == (Action.REPLACE, ordinal)
        bad[ordinal] = _pod(ordinal)
    assert next_step(_view(*bad)).action is Action.NOTHING


def test_members_that_no_pod_will_be_again_are_stale() -> None:
    pods = [_pod(0), _pod(1), _pod(2)]
    peers = ["store-0-aaa", "store-1-bbb", "store-2-ccc", "store-3-ddd", "store-2-old", "another-3-x"]
    names = {0: "store-0-aaa", 2: "store-2-ccc"}
    # pod 1 does not answer: it may come back under its name
    assert stale_peers("store", peers, names, pods, 3) == ["store-3-ddd", "store-2-old"]
    # the pod that was scaled away is still ending
    assert stale_peers("store", peers, names, [*pods, _pod(3, terminating=True)], 3) == ["store-2-old"]
