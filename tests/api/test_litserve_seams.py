"""The private corners of LitServe that we touch must still be what they were."""

from __future__ import annotations

import inspect

import litserve
import litserve.server
import pytest
from litserve.loops.base import LitLoop
from litserve.loops.loops import inference_worker
from litserve.utils import WorkerSetupStatus

from tru_vlm.api.litserve_seams import OwnRoutesSpec, StartError, WorkerServer, group_devices


class Nothing(litserve.LitAPI):
    def predict(self, x, **kwargs):
        return x


def make_server(**kwargs) -> WorkerServer:
    return WorkerServer(Nothing(spec=OwnRoutesSpec("/predict"), stream=True), accelerator="cpu", devices=1, **kwargs)


def test_own_routes_of_litserve_and_fastapi_are_gone() -> None:
    paths = {getattr(route, "path", None) for route in make_server().app.router.routes}
    assert paths == {"/openapi.json"}


def test_number_of_workers_counts_devices_and_workers_per_device() -> None:
    assert make_server(workers_per_device=3).num_workers() == 3


def test_methods_that_are_overridden_or_called_exist() -> None:
    for name in ("verify_worker_status", "_start_server", "_inference_workers_config_for_api", "run", "lifespan"):
        assert callable(getattr(litserve.LitServer, name)), name


def test_attributes_that_are_set_are_read_by_litserve() -> None:
    source = inspect.getsource(litserve.LitServer)
    for name in ("monitor_internal", "uvicorn_graceful_timeout", "_shutdown_event", "workers_setup_status"):
        assert f"self.{name}" in source, name


def test_no_package_makes_litserve_mount_a_route_of_its_own() -> None:
    assert inspect.getsource(litserve.server).count("if _MCP_AVAILABLE:") == 2
    assert litserve.server._MCP_AVAILABLE is False


@pytest.mark.parametrize(
    ("devices", "size", "expected"),
    [
        ([["cuda:0"], ["cuda:1"]], 1, [["cuda:0"], ["cuda:1"]]),
        (["cpu"], 1, ["cpu"]),
        ([["cuda:0"], ["cuda:1"]], 2, [["cuda:0", "cuda:1"]]),
        ([[f"cuda:{n}"] for n in range(4)], 2, [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]]),
    ],
)
def test_devices_are_shared_out(devices: list, size: int, expected: list) -> None:
    assert group_devices(devices, size) == expected


@pytest.mark.parametrize(
    "devices", [["cpu"], [["cuda:0"]], [["cuda:0"], ["cuda:1"], ["cuda:2"]], [["mps:0"], ["mps:1"]]]
)
def test_devices_that_cannot_be_shared_out_stop_the_start(devices: list) -> None:
    with pytest.raises(StartError, match=r"VLLM_TENSOR_PARALLEL_SIZE=2: .* Set DEVICES to a multiple"):
        group_devices(devices, 2)


def test_the_number_of_workers_counts_groups_of_devices() -> None:
    server = make_server()
    server.devices = group_devices([[f"cuda:{n}"] for n in range(4)], 2)
    assert server.num_workers() == 2
    assert "if len(device) == 1:" in inspect.getsource(litserve.LitServer.launch_inference_worker)
    with pytest.raises(StartError):
        make_server(devices_per_worker=2)


def test_the_loop_is_called_with_the_arguments_it_takes() -> None:
    expected = list(inspect.signature(LitLoop.__call__).parameters)
    from tru_vlm.api.lit_loop import StepLoop

    assert list(inspect.signature(StepLoop.__call__).parameters) == expected
    assert "loop(" in inspect.getsource(inference_worker)


def test_worker_states_are_known() -> None:
    assert {"READY", "ERROR", "STARTING"} <= set(vars(WorkerSetupStatus))
