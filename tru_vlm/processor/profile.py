"""What a checkpoint says about itself: tokenizer, special ids, patch sizes, bounds.  Never loads weights.

All knowledge of a model family that is not in the checkpoint's own files sits in :data:`FAMILIES`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEMO_MODEL = "demo"

IMAGE_TOKENS_MIN, IMAGE_TOKENS_MAX = 4, 16384
FRAME_TOKENS_MIN, FRAME_TOKENS_MAX = 128, 768


class ModelProfileError(ValueError):
    """The checkpoint cannot be used; the text names the path, what was found and what is accepted."""


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """How one family of models writes media into a prompt.

    Attributes:
        name: for people.
        image_token, video_token: the placeholder's spelling, repeated once per visual token.
        vision_start_token, vision_end_token: what surrounds each frame's placeholders.
        keeps_outer_vision_pair: whether the pair that the chat template writes around a video stays around the
            timestamped frames.  Qwen3-VL was released with a processor that replaces the pair too (Transformers
            4.57; vLLM 0.32 as well), Transformers 5.x keeps it (vllm issue 46817 is the argument about it).
    """

    name: str
    image_token: str = "<|image_pad|>"  # noqa: S105 - a token's spelling, no secret
    video_token: str = "<|video_pad|>"  # noqa: S105
    vision_start_token: str = "<|vision_start|>"  # noqa: S105
    vision_end_token: str = "<|vision_end|>"  # noqa: S105
    keeps_outer_vision_pair: bool = False


QWEN3_VL = ModelFamily(name="Qwen3-VL")

FAMILIES: dict[str, ModelFamily] = {"qwen3_vl": QWEN3_VL, "qwen3_vl_moe": QWEN3_VL}
"""Model families by the ``model_type`` in a checkpoint's ``config.json``."""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """A checkpoint without its weights.

    Attributes:
        model_path: what was asked for: "demo", a folder or a hub id.
        resolved_path: where the files are: a folder or a hub id.
        model_type: as in ``config.json``.
        family: how media become text.
        is_demo: whether this is the bundled model.
        tokenizer: Transformers' fast tokenizer.
        chat_template: the jinja source; never a client's.
        image_token_id, video_token_id, vision_start_token_id, vision_end_token_id: ids of the family's tokens.
        eos_token_ids: ids that end an answer.
        patch_size, spatial_merge_size, temporal_patch_size: of the vision tower.
        context_tokens: most tokens of prompt, frames and answer together.
        frame_min_pixels, frame_max_pixels: bounds on height x width of one video frame.
        image_min_pixels, image_max_pixels: bounds on height x width of an image.
        control_token_pattern: matches the spelling of any token that user text must not become.
    """

    model_path: str
    resolved_path: str
    model_type: str
    family: ModelFamily
    is_demo: bool
    tokenizer: PreTrainedTokenizerBase
    chat_template: str
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: frozenset[int]
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    context_tokens: int
    frame_min_pixels: int
    frame_max_pixels: int
    image_min_pixels: int
    image_max_pixels: int
    control_token_pattern: re.Pattern[str]

    @property
    def pixel_factor(self) -> int:
        """Side in pixels of the square that becomes one visual token; frames' sides are multiples of it."""
        return self.patch_size * self.spatial_merge_size


def resolve_model_path(model_path: str) -> str:
    """Where the model's files are: "demo" becomes the bundled folder, anything else stays as it is.

    Raises:
        ModelProfileError: if the bundled model is asked for and its weights are not there.
    """
    if model_path != DEMO_MODEL:
        return model_path
    folder = Path(str(resources.files("demo_model"))) / "weights"
    if not (folder / "config.json").is_file():
        raise ModelProfileError(
            f"MODEL_PATH={DEMO_MODEL}: the bundled demo model is not at {folder}. "
            "Restore demo_model/weights, or set MODEL_PATH to a Qwen3-VL folder or hub id."
        )
    return str(folder)


def load_profile(model_path: str, *, max_context_tokens: int = 0) -> ModelProfile:
    """Read a checkpoint's configuration and tokenizer.

    Args:
        model_path: "demo", a folder or a hub id.
        max_context_tokens: bound on :attr:`ModelProfile.context_tokens`; 0 takes the model's own.

    Raises:
        ModelProfileError: if the path holds no checkpoint of a known family.
    """
    resolved = resolve_model_path(model_path)
    config = _read_config(model_path, resolved)
    family = _family(model_path, config)
    tokenizer = _read_tokenizer(model_path, resolved)
    vision, text = config["vision_config"], config["text_config"]
    factor = int(vision["patch_size"]) * int(vision["spatial_merge_size"])
    frame_bounds, image_bounds = pixel_bounds(_read_json(resolved, "preprocessor_config.json"), factor)
    own_context = int(text["max_position_embeddings"])
    return ModelProfile(
        model_path=model_path,
        resolved_path=resolved,
        model_type=config["model_type"],
        family=family,
        is_demo=model_path == DEMO_MODEL,
        tokenizer=tokenizer,
        chat_template=_read_chat_template(model_path, resolved, tokenizer),
        image_token_id=int(config["image_token_id"]),
        video_token_id=int(config["video_token_id"]),
        vision_start_token_id=int(config["vision_start_token_id"]),
        vision_end_token_id=int(config["vision_end_token_id"]),
        eos_token_ids=_eos_token_ids(resolved, tokenizer),
        patch_size=int(vision["patch_size"]),
        spatial_merge_size=int(vision["spatial_merge_size"]),
        temporal_patch_size=int(vision["temporal_patch_size"]),
        context_tokens=min(own_context, max_context_tokens) if max_context_tokens else own_context,
        frame_min_pixels=frame_bounds[0],
        frame_max_pixels=frame_bounds[1],
        image_min_pixels=image_bounds[0],
        image_max_pixels=image_bounds[1],
        control_token_pattern=_control_token_pattern(tokenizer, family),
    )


def read_config(model_path: str) -> dict[str, Any]:
    """A checkpoint's ``config.json``.

    Raises:
        ModelProfileError: if none can be read.
    """
    return _read_config(model_path, resolve_model_path(model_path))


def pixel_bounds(preprocessor: dict[str, Any], factor: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Bounds on height x width for a video frame and for an image: ((min, max), (min, max)), in pixels.

    They are Qwen's own (128..768 visual tokens per frame, 4..16384 per image, of ``factor**2`` pixels each) within
    the checkpoint's ``preprocessor_config.json``: its ``longest_edge`` caps the maximum, and a checkpoint whose
    maximum lies below Qwen's minimum also sets the minimum, with its ``shortest_edge``.
    """
    size = preprocessor.get("size") or {}
    shortest = int(size.get("shortest_edge") or IMAGE_TOKENS_MIN * factor**2)
    longest = int(size.get("longest_edge") or IMAGE_TOKENS_MAX * factor**2)

    def bounds(min_tokens: int, max_tokens: int) -> tuple[int, int]:
        smallest = min_tokens * factor**2
        return (smallest if smallest <= longest else shortest, min(max_tokens * factor**2, longest))

    return bounds(FRAME_TOKENS_MIN, FRAME_TOKENS_MAX), bounds(IMAGE_TOKENS_MIN, IMAGE_TOKENS_MAX)


def _read_config(model_path: str, resolved: str) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    try:
        config, _ = PreTrainedConfig.get_config_dict(resolved)
    except (OSError, ValueError) as error:
        raise ModelProfileError(
            f"MODEL_PATH={model_path}: no model configuration can be read there ({error}). "
            f"Accepted: 'demo', a folder or a hub id of a {_known_families()} checkpoint."
        ) from error
    return dict(config)


def _family(model_path: str, config: dict[str, Any]) -> ModelFamily:
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None or not {"vision_config", "text_config"} <= config.keys():
        raise ModelProfileError(
            f"MODEL_PATH={model_path}: its model_type is {config.get('model_type')!r}. "
            f"Accepted: {', '.join(FAMILIES)} ({_known_families()})."
        )
    return family


def _known_families() -> str:
    return ", ".join(sorted({family.name for family in FAMILIES.values()}))


def _read_tokenizer(model_path: str, resolved: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    try:
        tokenizer = AutoTokenizer.from_pretrained(resolved, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelProfileError(f"MODEL_PATH={model_path}: its tokenizer cannot be read ({error}).") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or not tokenizer.is_fast:
        raise ModelProfileError(f"MODEL_PATH={model_path}: it has no tokenizer.json; a fast tokenizer is needed.")
    return tokenizer


def _read_json(resolved: str, name: str) -> dict[str, Any]:
    """A JSON file of the checkpoint, from the folder or the hub; {} when it has none."""
    from transformers.utils import cached_file

    path = cached_file(resolved, name, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return {}
    content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return content


def _read_chat_template(model_path: str, resolved: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's template, else the one in ``chat_template.json`` (where older checkpoints keep it)."""
    template = tokenizer.chat_template or _read_json(resolved, "chat_template.json").get("chat_template")
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str):
        raise ModelProfileError(f"MODEL_PATH={model_path}: it has no chat template.")
    return template


def _eos_token_ids(resolved: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: those of ``generation_config.json`` and the tokenizer's own."""
    configured = _read_json(resolved, "generation_config.json").get("eos_token_id")
    ids = configured if isinstance(configured, list) else [configured]
    ids = [*ids, tokenizer.eos_token_id]
    return frozenset(int(token_id) for token_id in ids if token_id is not None)


def _control_token_pattern(tokenizer: PreTrainedTokenizerBase, family: ModelFamily) -> re.Pattern[str]:
    """Matches any control token's spelling: those the tokenizer calls special, and the family's own."""
    spellings = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    spellings |= {family.image_token, family.video_token, family.vision_start_token, family.vision_end_token}
    longest_first = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(re.escape(spelling) for spelling in longest_first))
