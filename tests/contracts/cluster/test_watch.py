"""Watches: nothing is missed between a list and its watch; and how one learns that something was (P37 stands on it)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from kubernetes import watch
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from tests.contracts.cluster.conftest import ClusterFixture
from tests.contracts.cluster.manifests import config_map
from tests.contracts.cluster.targets import call
from tests.support.wait import DEFAULT_TIMEOUT


class Stream:
    """Lines of a watch, read by a separate thread."""

    def __init__(self, cluster: ClusterFixture, plural: str = "configmaps", **query: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.ended = threading.Event()
        settings = cluster.client.configuration
        words = "&".join(f"{k}={v}" for k, v in {"watch": "true", **query}.items())
        headers = {"Accept": "application/json", "Authorization": settings.auth_settings()["BearerToken"]["value"]}
        url = f"{settings.host}{cluster.path(plural)}?{words}"
        self._response = cluster.client.rest_client.request("GET", url, headers=headers)
        assert self._response.status == 200
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        buffer = b""
        # Closing from this side ends the response in the middle of a chunk.
        with contextlib.suppress(HTTPError):
            for chunk in self._response.response.stream(amt=None):
                buffer += chunk
                *lines, buffer = buffer.split(b"\n")
                self.events += [orjson.loads(line) for line in lines if line]
        self.ended.set()

    def changes(self) -> list[tuple[str, str]]:
        return [(e["type"], e["object"]["metadata"].get("name", "")) for e in list(self.events)]

    def close(self) -> None:
        # One that the server has ended has no socket any more.
        with contextlib.suppress(RuntimeError):
            self._response.response.shutdown()
        self._thread.join(timeout=20)
        assert self.ended.is_set()


@pytest.fixture
def streams() -> Iterator[Callable[..., Stream]]:
    opened: list[Stream] = []

    def start(cluster: ClusterFixture, **query: Any) -> Stream:
        opened.append(
            Stream(cluster, **{"timeoutSeconds": 60, "fieldSelector": "metadata.name!=kube-root-ca.crt", **query})
        )
        return opened[-1]

    yield start
    for stream in opened:
        stream.close()


def _version(cluster: ClusterFixture) -> str:
    config_maps = cluster.raw("GET", cluster.path("configmaps"))[1]
    return str(config_maps["metadata"]["resourceVersion"])


def test_a_watch_continues_from_the_version_of_the_list(
    cluster: ClusterFixture, streams: Callable[..., Stream]
) -> None:
    cluster.create("configmaps", config_map("before"))
    version = _version(cluster)
    cluster.create("configmaps", config_map("one"))
    stream = streams(cluster, resourceVersion=version)
    cluster.patch("configmaps", "one", {"data": {"a": "2"}})
    cluster.delete("configmaps", "one")
    expected = [("ADDED", "one"), ("MODIFIED", "one"), ("DELETED", "one")]
    cluster.eventually(lambda: stream.changes() == expected, "three events")
    versions = [int(e["object"]["metadata"]["resourceVersion"]) for e in stream.events]
    assert versions == sorted(versions)
    assert versions[0] > int(version)


def test_a_watch_without_a_version_starts_with_existing_objects(
    cluster: ClusterFixture, streams: Callable[..., Stream]
) -> None:
    cluster.create("configmaps", config_map("one"))
    stream = streams(cluster)
    cluster.eventually(lambda: ("ADDED", "one") in stream.changes(), "the present state")


def test_a_watch_ends_at_its_timeout(cluster: ClusterFixture, streams: Callable[..., Stream]) -> None:
    stream = streams(cluster, resourceVersion=_version(cluster), timeoutSeconds=1)
    assert stream.ended.wait(DEFAULT_TIMEOUT)
    assert stream.events == []


def test_a_selector_turns_changes_into_additions_and_deletions(
    cluster: ClusterFixture, streams: Callable[..., Stream]
) -> None:
    cluster.create("configmaps", config_map("one", labels={"tier": "front"}))
    stream = streams(cluster, resourceVersion=_version(cluster), labelSelector="tier=back")
    cluster.patch("configmaps", "one", {"metadata": {"labels": {"tier": "back"}}})
    cluster.patch("configmaps", "one", {"data": {"a": "2"}})
    cluster.patch("configmaps", "one", {"metadata": {"labels": {"tier": "front"}}})
    expected = [("ADDED", "one"), ("MODIFIED", "one"), ("DELETED", "one")]
    cluster.eventually(lambda: stream.changes() == expected, "coming, changing, going")


def test_initial_events_end_with_a_bookmark(cluster: ClusterFixture, streams: Callable[..., Stream]) -> None:
    cluster.create("configmaps", config_map("one"))
    stream = streams(cluster, sendInitialEvents="true", resourceVersionMatch="NotOlderThan", allowWatchBookmarks="true")

    def marked() -> bool:
        return any(
            e["type"] == "BOOKMARK"
            and e["object"]["metadata"].get("annotations", {}).get("k8s.io/initial-events-end") == "true"
            for e in list(stream.events)
        )

    cluster.eventually(marked, "the bookmark")
    assert stream.changes()[0] == ("ADDED", "one")


def test_a_version_that_is_too_old_is_gone(sandbox: ClusterFixture, fault: Any, streams: Callable[..., Stream]) -> None:
    version = _version(sandbox)
    sandbox.create("configmaps", config_map("one"))
    fault("gone", count=1)
    stream = streams(sandbox, resourceVersion=version)
    assert stream.ended.wait(DEFAULT_TIMEOUT)
    (event,) = stream.events
    assert event["type"] == "ERROR"
    status = event["object"]
    assert (status["kind"], status["code"], status["reason"]) == ("Status", 410, "Expired")
    assert status["message"].startswith("too old resource version")


def test_the_client_recovers_from_410_by_listing(sandbox: ClusterFixture, fault: Any) -> None:
    version = _version(sandbox)
    sandbox.create("configmaps", config_map("one"))
    fault("gone", count=1)
    stream = watch.Watch()
    with pytest.raises(ApiException) as refused:
        list(
            stream.stream(
                sandbox.core.list_namespaced_config_map, sandbox.namespace, resource_version=version, timeout_seconds=3
            )
        )
    assert refused.value.status == 410
    fresh = sandbox.core.list_namespaced_config_map(sandbox.namespace)
    assert "one" in {item.metadata.name for item in fresh.items}
    sandbox.create("configmaps", config_map("two"))
    events = watch.Watch().stream(
        sandbox.core.list_namespaced_config_map,
        sandbox.namespace,
        resource_version=fresh.metadata.resource_version,
        timeout_seconds=1,
    )
    assert [(e["type"], e["object"].metadata.name) for e in events] == [("ADDED", "two")]


def test_no_change_is_lost_when_a_watch_ends_silently(
    sandbox: ClusterFixture, fault: Any, streams: Callable[..., Stream]
) -> None:
    version = _version(sandbox)
    stream = streams(sandbox, resourceVersion=version, timeoutSeconds=30)
    sandbox.create("configmaps", config_map("one"))
    sandbox.eventually(lambda: stream.changes() == [("ADDED", "one")], "the first event")
    fault("watch_close", count=1)
    assert stream.ended.wait(DEFAULT_TIMEOUT)
    assert stream.changes() == [("ADDED", "one")]
    sandbox.create("configmaps", config_map("two"))
    resumed = streams(sandbox, resourceVersion=stream.events[-1]["object"]["metadata"]["resourceVersion"])
    sandbox.eventually(lambda: resumed.changes() == [("ADDED", "two")], "what was missed")


def test_a_stalled_watch_delivers_nothing_until_the_fault_ends(
    sandbox: ClusterFixture, fault: Any, clear: Any, streams: Callable[..., Stream]
) -> None:
    stream = streams(sandbox, resourceVersion=_version(sandbox))
    fault("watch_stall")
    sandbox.create("configmaps", config_map("one"))
    listed = f"{sandbox.target.sandbox}/sandbox/faults"
    sandbox.eventually(lambda: call(listed)[1]["faults"][0]["hits"] == 1, "the watch is stalled")
    assert stream.events == []
    clear()
    sandbox.eventually(lambda: stream.changes() == [("ADDED", "one")], "the event after the stall")


def test_only_the_watched_namespace_is_closed(sandbox: ClusterFixture, streams: Callable[..., Stream]) -> None:
    stream = streams(sandbox, resourceVersion=_version(sandbox))
    status, _ = call(
        f"{sandbox.target.sandbox}/sandbox/faults", "POST", {"fault": "watch_close", "namespace": "other-*"}
    )
    assert status == 201
    sandbox.create("configmaps", config_map("one"))
    sandbox.eventually(lambda: stream.changes() == [("ADDED", "one")], "the event in spite of the fault elsewhere")
