"""MODELS, MODEL_ALIASES and DEFAULT_MODEL: what they give, and that a wrong one is told with its name and field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tru_vlm.api.workers.placement import Placement, StartError, check_shared_cards, num_cpu_workers
from tru_vlm.served_models import ENTRY_FIELDS, ServedModel, ServedModels, served_models
from tru_vlm.settings import Settings, SettingsError, load_settings

TWO = {"full": {}, "small": {"quantization": "int4"}}


def models_of(models: Any = None, aliases: Any = None, **more: Any) -> ServedModels:
    given = {"models": models, "model_aliases": aliases}
    texts = {name: v if isinstance(v, str) else json.dumps(v) for name, v in given.items() if v is not None}
    return served_models(load_settings(None, **texts, **more))


def test_without_models_there_is_the_one_of_model_path() -> None:
    served = models_of(model_path="/models/Qwen3-VL-8B/", workers_per_device=2)
    assert [model.name for model in served.models] == ["Qwen3-VL-8B"]
    assert served.models[0].settings == load_settings(None, model_path="/models/Qwen3-VL-8B/", workers_per_device=2)
    assert (served.default, served.aliases) == ("Qwen3-VL-8B", {})
    named = models_of(model_name="mine", aliases={"gpt-4o": {"mine": 1}}, default_model="gpt-4o")
    assert ([model.name for model in named.models], named.default) == (["mine"], "gpt-4o")


def test_an_entry_goes_before_the_settings_of_all_and_leaves_the_rest() -> None:
    entry = {
        "path": "/models/a",
        "backend": "vllm",
        "quantization": "int4",
        "devices": [2, 3],
        "vllm_tensor_parallel_size": 2,
        "vllm_gpu_memory_utilization": 1,
        "vllm_engine_args": {"kv_cache_dtype": "fp8"},
        "prefill_chunk_tokens": 64,
    }
    served = models_of({"a": entry, "b": {}}, {"chat": {"a": 9, "b": 1.5}}, max_batch_size=3)
    a, b = served.models
    assert (a.settings.model_path, a.settings.model_backend, a.settings.quantization) == ("/models/a", "vllm", "int4")
    assert json.loads(a.settings.vllm_engine_args) == {"kv_cache_dtype": "fp8"}
    assert "prefill_chunk_tokens" in a.settings.model_fields_set
    assert "prefill_chunk_tokens" not in b.settings.model_fields_set
    assert (a.settings.max_batch_size, b.settings.max_batch_size) == (3, 3)
    assert (a.device_numbers, b.device_numbers) == ((2, 3), None)
    assert b.settings.model_path == "demo"
    assert Placement.of(a) == Placement("a", device_numbers=(2, 3), devices_per_worker=2)
    assert (served.default, served.aliases) == ("a", {"chat": {"a": 9, "b": 1.5}})


def test_every_field_of_an_entry_is_a_setting() -> None:
    assert set(ENTRY_FIELDS.values()) <= set(Settings.model_fields)


@pytest.mark.parametrize(
    ("models", "aliases", "text"),
    [
        ("[", None, "MODELS=[: it is not JSON"),
        ([], None, "MODELS=[]: it is JSON, and no object"),
        ('{"a": {}, "a": {}}', None, "MODELS: 'a' stands there twice"),
        ({"a b": {}}, None, 'MODELS: "a b" is no name. Accepted: 1 to 100 letters'),
        ({"x" * 101: {}}, None, "is no name"),
        ({"": {}}, None, "is no name"),
        ({"a": "demo"}, None, 'MODELS: a is "demo"; accepted is an object'),
        ({"a": {"quantisation": "int4"}}, None, "MODELS: a.quantisation: there is no such field. Accepted: path"),
        ({"a": {"port": 9000}}, None, "MODELS: a.port: there is no such field"),
        ({"a": {"quantization": "int3"}}, None, "MODELS: a.quantization is \"int3\": Input should be 'none', 'int4'"),
        ({"a": {"backend": "trt"}}, None, "MODELS: a.backend is \"trt\": Input should be 'hf' or 'vllm'"),
        ({"a": {"path": 3}}, None, "MODELS: a.path is 3: Input should be a valid string"),
        ({"a": {"max_batch_size": "4"}}, None, 'MODELS: a.max_batch_size is "4": Input should be a valid integer'),
        ({"a": {"max_batch_size": 0}}, None, "MODELS: a.max_batch_size is 0: Input should be greater than or equal"),
        ({"a": {"prefix_cache": 1}}, None, "MODELS: a.prefix_cache is 1: Input should be a valid boolean"),
        ({"a": {"vllm_engine_args": "{}"}}, None, "MODELS: a.vllm_engine_args is"),
        ({"a": {"devices": 2}}, None, "MODELS: a.devices is 2; accepted is a list"),
        ({"a": {"devices": []}}, None, "MODELS: a.devices is []"),
        ({"a": {"devices": ["0"]}}, None, 'MODELS: a.devices is ["0"]: Input should be a valid integer'),
        ({"a": {"devices": [-1]}}, None, "MODELS: a.devices is [-1]: Input should be greater than or equal to 0"),
        ({"a": {"devices": [1, 1]}}, None, "MODELS: a.devices is [1, 1]; each number is accepted once"),
        ({"a": {"device": "cpu", "devices": [0]}}, None, "MODELS: a.devices: they are CUDA devices, and a.device is"),
        (TWO, "1", "MODEL_ALIASES=1: it is JSON, and no object"),
        (TWO, {"x": {}}, "MODEL_ALIASES: x is {}; accepted is an object of model and weight"),
        (TWO, {"x": ["full"]}, 'MODEL_ALIASES: x is ["full"]; accepted'),
        (TWO, {"full": {"small": 1}}, "MODEL_ALIASES: full: a model has this name"),
        (TWO, {"x": {"fool": 1}}, "MODEL_ALIASES: x.fool: there is no such model. Accepted: full, small."),
        (TWO, {"x": {"full": 1}, "y": {"x": 1}}, "MODEL_ALIASES: y.x: there is no such model"),
        (TWO, {"x": {"full": 0}}, "MODEL_ALIASES: x.full is 0: Input should be greater than 0"),
        (TWO, {"x": {"full": -1}}, "MODEL_ALIASES: x.full is -1"),
        (TWO, '{"x": {"full": NaN}}', "MODEL_ALIASES: x.full is NaN"),
        (TWO, '{"x": {"full": Infinity}}', "MODEL_ALIASES: x.full is Infinity"),
        (TWO, {"x": {"full": "1"}}, 'MODEL_ALIASES: x.full is "1": Input should be a valid number'),
        (TWO, {"x y": {"full": 1}}, 'MODEL_ALIASES: "x y" is no name'),
    ],
)
def test_a_wrong_value_is_told_with_variable_model_and_field(models: Any, aliases: Any, text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        models_of(models, aliases)
    assert text in str(caught.value)


def test_other_settings_must_agree() -> None:
    with pytest.raises(
        SettingsError, match=r"DEFAULT_MODEL=big: there is no such model. Accepted: full, small, chat\."
    ):
        models_of(TWO, {"chat": {"full": 1}}, default_model="big")
    with pytest.raises(SettingsError, match="MODEL_NAME names the one model of MODEL_PATH"):
        models_of(TWO, model_name="mine")


# ---- what may share a card -------------------------------------------------------------------------------------------


def shared(entries: dict[str, Any], devices: dict[str, list[list[str]]]) -> None:
    check_shared_cards(models_of(entries).models, devices)


def test_models_that_share_a_card_must_say_what_they_take() -> None:
    both, apart = {"a": [["cuda:0"]], "b": [["cuda:0"]]}, {"a": [["cuda:0"]], "b": [["cuda:1"]]}
    shared({"a": {}, "b": {}}, apart)
    shared({"a": {}, "b": {}}, {"a": [["cpu"]], "b": [["cpu"]]})
    shared({"a": {"kv_cache_tokens": 4096}, "b": {"kv_cache_tokens": 4096}}, both)
    with pytest.raises(StartError, match=r"MODELS: b\.kv_cache_tokens is 0, .* a, b share cuda:0"):
        shared({"a": {"kv_cache_tokens": 4096}, "b": {}}, both)
    half = {"backend": "vllm", "vllm_gpu_memory_utilization": 0.5}
    shared({"a": half, "b": half}, both)
    with pytest.raises(StartError, match=r"MODELS: a, b share cuda:0, .* adds up to 1\.4"):
        shared({"a": half, "b": {"backend": "vllm"}}, both)


def test_workers_on_the_cpu_share_its_cores() -> None:
    assert num_cpu_workers({"a": [["cpu"], ["cpu"]], "b": [["cuda:0"]], "c": [["cpu"]]}) == 3


def test_one_model_places_itself_as_ever() -> None:
    model = ServedModel("demo", load_settings(None, device="cuda", devices=2, workers_per_device=3))
    assert Placement.of(model) == Placement("demo", "cuda", num_devices=2, workers_per_device=3)
