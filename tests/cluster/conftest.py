"""A Ray cluster of three nodes on this machine: the head with the gateway, and two with room for a server each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from fleet import NUM_SERVERS, OBJECT_STORE_BYTES, TIMEOUT, Fleet, wait_until
from support import ROOT, free_port

from demo_model.generator import ClipSpec, Event, encode

# Those that start Ray run by themselves: `make test-ray`.
collect_ignore = [] if os.environ.get("TRU_TEST_RAY") == "1" else ["test_ray_cluster.py"]

# What Ray does to those that are slow, which on a busy machine everybody is.
PATIENCE = {
    # Actors would be killed for the memory of what else runs on this machine.
    "RAY_memory_monitor_refresh_ms": "0",
    # A server that does not tell its load within 0.1 s loses its questions to another.
    "RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    "RAY_SERVE_MAX_QUEUE_LENGTH_RESPONSE_DEADLINE_S": "10",
    # A proxy that has not started within 5 s, or does not answer within 10 s, is killed.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(TIMEOUT),
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": str(TIMEOUT),
}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Clips by the number of their events."""
    folder = tmp_path_factory.mktemp("clips")
    red, blue = Event("red", "circle", "moves left"), Event("blue", "square", "grows")
    one = ClipSpec(events=(red,), duration_seconds=4.0)
    two = ClipSpec(events=(red, blue), switch_seconds=5.0, duration_seconds=10.0)
    return {"one": encode(one, folder / "one.mp4"), "two": encode(two, folder / "two.mp4")}


@pytest.fixture(scope="session")
def elastic_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The running application on the demo model, with one server that is idle."""
    os.environ["PYTHONPATH"] = str(ROOT)  # for the nodes, which are processes of this machine
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    os.environ |= PATIENCE
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    from tru_vlm.cluster.application import ClusterOptions, build

    storage = tmp_path_factory.mktemp("shared") / "storage"
    port = free_port()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "resources": {"head": 1},
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        },
    )
    fleet = Fleet(f"http://127.0.0.1:{port}", storage, cluster)
    try:
        for _ in range(NUM_SERVERS):
            fleet.add_node()
        ray.init(address=cluster.address, log_to_driver=False)
        with contextlib.suppress(TimeoutError):  # after a minute it goes on to start, and is waited for below
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        options = ClusterOptions(
            min_servers=1,
            max_servers=NUM_SERVERS,
            target_requests=1,
            look_back_seconds=11,
            upscale_delay_seconds=0,
            downscale_delay_seconds=0,
            cpus_per_server=1,
            server_resources={"server": 1},
            gateway_resources={"head": 0.1},
            health_seconds=1,
            settings={
                "STORAGE_DIR": str(storage),
                "ALLOW_PRIVATE_URLS": "true",
                "FETCH_TIMEOUT_SECONDS": "600",
                "DECODE_PROCESSES": "1",
                "DRAIN_SECONDS": "5",
                "JOB_CONCURRENCY": "1",
                "MAX_NEW_TOKENS": "30000",
            },
        )
        serve.run(build(options), name="tru", route_prefix="/")
        wait_until(lambda: _answers(fleet.base), "the gateway answers")
        yield fleet
    finally:
        with contextlib.suppress(Exception):
            fleet.close()
        ray.shutdown()
        cluster.shutdown()
    wait_until(lambda: not fleet.ports(), "no process of a server is left")


@pytest.fixture(scope="session")
def fleet(elastic_fleet: Fleet) -> Fleet:
    """The same with all its servers."""
    elastic_fleet.hold()
    return elastic_fleet


def _answers(base: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(f"{base}/v1/health/ready", timeout=60).ok
    return False
