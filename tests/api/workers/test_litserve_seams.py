"""The private corners of LitServe that we touch must still be what they were."""

from __future__ import annotations

import inspect
import threading

import litserve
import litserve.server
import pytest
from litserve.loops.base import LitLoop
from litserve.loops.loops import inference_worker
from litserve.utils import WorkerSetupStatus

from tru_vlm.api.workers.litserve_seams import OwnRoutesSpec, WorkerServer
from tru_vlm.api.workers.placement import Placement, StartError, group_devices


class Nothing(litserve.LitAPI):
    def predict(self, x, **kwargs):
        return x


def make_server(*places: Placement) -> WorkerServer:
    given = places or (Placement("demo", "cpu"),)
    apis = [Nothing(spec=OwnRoutesSpec(f"/models/{number}"), stream=True) for number in range(len(given))]
    return WorkerServer(apis, given)


@pytest.fixture
def four_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nvidia-smi listed four."""
    monkeypatch.setattr("litserve.connector.check_cuda_with_nvidia_smi", lambda: 4)
    monkeypatch.setattr("tru_vlm.api.workers.litserve_seams.check_cuda_with_nvidia_smi", lambda: 4)


def test_own_routes_of_litserve_and_fastapi_are_gone() -> None:
    paths = {getattr(route, "path", None) for route in make_server().app.router.routes}
    assert paths == {"/openapi.json"}


def test_number_of_workers_counts_devices_and_workers_per_device(four_cards: None) -> None:
    assert make_server(Placement("demo", "cpu", workers_per_device=3)).worker_devices() == {"demo": [["cpu"]] * 3}
    server = make_server(Placement("demo", "cuda", num_devices=2, workers_per_device=2))
    assert server.worker_devices() == {"demo": [["cuda:0"], ["cuda:1"], ["cuda:0"], ["cuda:1"]]}


def test_each_model_has_devices_of_its_own(four_cards: None) -> None:
    server = make_server(
        Placement("large", device_numbers=(1, 2), devices_per_worker=2),
        Placement("small", "cpu", workers_per_device=2),
        Placement("rest"),
    )
    assert server.worker_devices() == {
        "large": [["cuda:1", "cuda:2"]],
        "small": [["cpu"], ["cpu"]],
        "rest": [[f"cuda:{number}"] for number in range(4)],
    }


@pytest.mark.parametrize(
    ("accelerator", "numbers", "missing"),
    [("cuda", (0, 4), "4; this machine has 4"), ("cpu", (0,), "0; this machine has 0")],
)
def test_a_device_that_is_not_there_is_named(
    four_cards: None, accelerator: str, numbers: tuple[int, ...], missing: str
) -> None:
    with pytest.raises(StartError, match=f"MODELS: small.devices: there is no CUDA device {missing}"):
        make_server(Placement("demo", "cpu"), Placement("small", accelerator, device_numbers=numbers))


def test_methods_that_are_overridden_or_called_exist() -> None:
    for name in (
        "verify_worker_status",
        "_start_server",
        "_start_worker_monitoring",
        "_inference_workers_config_for_api",
        "_perform_graceful_shutdown",
        "run",
        "lifespan",
    ):
        assert callable(getattr(litserve.LitServer, name)), name


def test_attributes_that_are_set_are_read_by_litserve() -> None:
    source = inspect.getsource(litserve.LitServer)
    for name in (
        "monitor_internal",
        "uvicorn_graceful_timeout",
        "_shutdown_event",
        "workers_setup_status",
        "_transport",
    ):
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


def test_a_worker_may_have_several_devices(four_cards: None) -> None:
    server = make_server(Placement("demo", "cuda", devices_per_worker=2))
    assert server.worker_devices() == {"demo": [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]]}
    assert "if len(device) == 1:" in inspect.getsource(litserve.LitServer.launch_inference_worker)
    with pytest.raises(StartError):
        make_server(Placement("demo", "cpu", devices_per_worker=2))


def test_the_keys_of_worker_states_are_what_we_take_them_for() -> None:
    for launch in (litserve.LitServer.launch_inference_worker, litserve.LitServer.launch_single_inference_worker):
        source = inspect.getsource(launch)
        assert 'endpoint = lit_api.api_path.split("/")[-1]' in source
        assert 'workers_setup_status[f"{endpoint}_{worker_id}"]' in source


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ({"0_0": "ready", "1_0": "ready", "1_1": "starting"}, None),
        ({"0_0": "ready", "1_0": "error"}, "could not load the model small"),
        ({"0_0": "ready", "1_0": "starting"}, "died while it loaded the model small"),
        ({"0_0": "error", "0_1": "ready", "1_0": "ready"}, None),
    ],
)
def test_the_server_is_up_when_every_model_is(states: dict[str, str], expected: str | None) -> None:
    server = make_server(
        Placement("large", "cpu", workers_per_device=2), Placement("small", "cpu", workers_per_device=2)
    )
    server.workers_setup_status = states
    server._shutdown_event = threading.Event()
    server.inference_workers = [_Dead()]
    if expected is None:
        server.wait_until_up()
        return
    with pytest.raises(StartError, match=expected):
        server.wait_until_up()


class _Dead:
    """A process that has ended."""

    def is_alive(self) -> bool:
        return False


def test_the_loop_is_called_with_the_arguments_it_takes() -> None:
    expected = list(inspect.signature(LitLoop.__call__).parameters)
    from tru_vlm.api.workers.lit_loop import StepLoop

    assert list(inspect.signature(StepLoop.__call__).parameters) == expected
    assert "loop(" in inspect.getsource(inference_worker)


def test_a_worker_knows_its_number() -> None:
    assert 'os.environ["LITSERVE_WORKER_ID"] = str(worker_id)' in inspect.getsource(inference_worker)


def test_the_port_is_open_before_the_models_are_up() -> None:
    source = inspect.getsource(litserve.LitServer.run)
    steps = ("self.verify_worker_status()", "self._start_server(", "self._start_worker_monitoring(manager")
    places = [source.index(step) for step in steps]
    assert places == sorted(places)
    make_server().verify_worker_status()  # does not wait


def test_the_port_s_sockets_are_an_argument() -> None:
    ours, theirs = (inspect.signature(server._start_server).parameters for server in (WorkerServer, litserve.LitServer))
    assert list(ours)[:5] == ["self", "port", "num_servers", "log_level", "sockets"]
    assert list(theirs)[:5] == ["self", "port", "num_uvicorn_servers", "log_level", "sockets"]


def test_worker_states_are_known() -> None:
    assert {"READY", "ERROR", "STARTING"} <= set(vars(WorkerSetupStatus))
