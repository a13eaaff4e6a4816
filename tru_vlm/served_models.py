"""Which models a server has, by name: MODELS, MODEL_ALIASES and DEFAULT_MODEL, checked.  It loads no checkpoint.

Each model has a :class:`Settings` of its own: the server's, with what its entry in MODELS says in their place.  So
whatever is built from settings (an engine, a profile, a planner) needs to know nothing of several models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from tru_vlm.settings import Settings, SettingsError

MAX_NAME_CHARACTERS = 100
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]*")
_MAX_SHOWN_CHARACTERS = 80

_RENAMED = {"path": "model_path", "backend": "model_backend"}
_SAME = (
    "device",
    "workers_per_device",
    "dtype",
    "quantization",
    "use_flash_attn",
    "cuda_graphs",
    "vllm_gpu_memory_utilization",
    "vllm_tensor_parallel_size",
    "vllm_engine_args",
    "max_batch_size",
    "max_context_tokens",
    "kv_cache_tokens",
    "num_speculative_tokens",
    "prefill_chunk_tokens",
    "prefix_cache",
    "feature_cache_bytes",
)
_DEVICES = "devices"
ENTRY_FIELDS: Mapping[str, str] = {**_RENAMED, **{name: name for name in _SAME}}
"""Fields of an entry in MODELS that are settings, and which; beside them there is ``devices``."""

_JSON_FIELDS = frozenset({"vllm_engine_args"})  # in the environment JSON text, in an entry an object
_DEVICE_NUMBERS: TypeAdapter[tuple[int, ...]] = TypeAdapter(
    Annotated[tuple[Annotated[int, Field(ge=0, lt=64)], ...], Field(min_length=1, max_length=64)]
)
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_WEIGHT: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)])


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model.

    Attributes:
        name: under which it is asked for.
        settings: the server's, with its own in their place.
        device_numbers: its CUDA devices; None takes what ``settings.devices`` says.
    """

    name: str
    settings: Settings
    device_numbers: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ServedModels:
    """All of them.

    Attributes:
        models: in the order of MODELS.
        aliases: names that stand for one of several models; of each, the models' weights.
        default: the model or alias that answers when a request names none.
    """

    models: tuple[ServedModel, ...]
    aliases: Mapping[str, Mapping[str, float]]
    default: str


def served_models(settings: Settings) -> ServedModels:
    """The models that the settings name; without MODELS, the one of MODEL_PATH.

    Raises:
        SettingsError: naming the variable, the model and the field, what came and what is accepted.
    """
    entries = _object("MODELS", settings.models)
    if entries and settings.model_name is not None:
        raise SettingsError("MODEL_NAME names the one model of MODEL_PATH; with MODELS, the names stand there.")
    models = tuple(_model(name, entry, settings) for name, entry in entries.items()) or (_only_model(settings),)
    names = [model.name for model in models]
    aliases = {
        alias: _weights(alias, given, names)
        for alias, given in _object("MODEL_ALIASES", settings.model_aliases).items()
    }
    default = settings.default_model or names[0]
    if default not in names and default not in aliases:
        raise SettingsError(
            f"DEFAULT_MODEL={default}: there is no such model. Accepted: {_listed([*names, *aliases])}."
        )
    return ServedModels(models, aliases, default)


def _only_model(settings: Settings) -> ServedModel:
    return ServedModel(settings.model_name or settings.model_path.rstrip("/").rpartition("/")[-1], settings)


def _model(name: str, entry: object, settings: Settings) -> ServedModel:
    _check_name("MODELS", name)
    if not isinstance(entry, dict):
        raise SettingsError(f"MODELS: {name} is {_shown(entry)}; accepted is an object, such as {{}} for all defaults.")
    own: dict[str, Any] = {}
    for field, value in entry.items():
        if field in ENTRY_FIELDS:
            own[ENTRY_FIELDS[field]] = _value(f"{name}.{field}", ENTRY_FIELDS[field], value)
        elif field != _DEVICES:
            accepted = ", ".join([*ENTRY_FIELDS, _DEVICES])
            raise SettingsError(f"MODELS: {name}.{field}: there is no such field. Accepted: {accepted}.")
    numbers = _device_numbers(name, entry) if _DEVICES in entry else None
    if numbers is not None and own.get("device", "cuda") not in ("auto", "cuda"):
        raise SettingsError(f"MODELS: {name}.devices: they are CUDA devices, and {name}.device is {own['device']}.")
    return ServedModel(name, settings.model_copy(update=own), numbers)


def _value(where: str, setting: str, value: object) -> object:
    """A field's value, checked as the setting of the same meaning is."""
    info = Settings.model_fields[setting]
    if setting in _JSON_FIELDS:
        return json.dumps(_checked(f"MODELS: {where}", _OBJECT, value))
    accepted: TypeAdapter[Any] = TypeAdapter(Annotated[info.annotation, info])  # type: ignore[arg-type]
    return _checked(f"MODELS: {where}", accepted, value)


def _device_numbers(name: str, entry: Mapping[str, object]) -> tuple[int, ...]:
    where = f"MODELS: {name}.{_DEVICES}"
    given = entry[_DEVICES]
    if not isinstance(given, list):
        raise SettingsError(f"{where} is {_shown(given)}; accepted is a list of CUDA devices' numbers, such as [0].")
    numbers: tuple[int, ...] = _checked(where, _DEVICE_NUMBERS, tuple(given))
    if len(set(numbers)) < len(numbers):
        raise SettingsError(f"{where} is {_shown(given)}; each number is accepted once.")
    return numbers


def _weights(alias: str, given: object, names: list[str]) -> dict[str, float]:
    """An alias's weights by model.  It names models only, never aliases: so none can lead back to itself."""
    _check_name("MODEL_ALIASES", alias)
    where = f"MODEL_ALIASES: {alias}"
    if alias in names:
        raise SettingsError(f"{where}: a model has this name; choose another one.")
    if not isinstance(given, dict) or not given:
        raise SettingsError(f"{where} is {_shown(given)}; accepted is an object of model and weight.")
    for name in given:
        if name not in names:
            raise SettingsError(f"{where}.{name}: there is no such model. Accepted: {_listed(names)}.")
    return {name: _checked(f"{where}.{name}", _WEIGHT, weight) for name, weight in given.items()}


def _checked(where: str, accepted: TypeAdapter[Any], value: object) -> Any:
    try:
        return accepted.validate_python(value, strict=True)
    except ValidationError as error:
        raise SettingsError(f"{where} is {_shown(value)}: {error.errors()[0]['msg']}.") from error


def _object(variable: str, text: str) -> dict[str, Any]:
    """A setting that is a JSON object."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # JSON keeps the last of two equal names without a word: a model would be missing.
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SettingsError(f"{variable}: {twice[0]!r} stands there twice in one object.")
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except ValueError as error:
        if isinstance(error, SettingsError):
            raise
        raise SettingsError(f"{variable}={_short(text)}: it is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{variable}={_short(text)}: it is JSON, and no object.")
    return value


def _check_name(variable: str, name: str) -> None:
    if len(name) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(name):
        raise SettingsError(
            f"{variable}: {_shown(name)} is no name. Accepted: 1 to {MAX_NAME_CHARACTERS} letters, digits and ._:/@+-, "
            "the first a letter or digit."
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _shown(value: object) -> str:
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARACTERS else text[:_MAX_SHOWN_CHARACTERS] + "…"
