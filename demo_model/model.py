"""The demo model's architecture and the configuration files beside its weights. Never sees a clip."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from demo_model.tokenizer import VOCAB_SIZE
from demo_model.training.frames import MAX_PIXELS, MERGE, MIN_PIXELS, PATCH

TEXT_HIDDEN = 256
VISION_HIDDEN = 192
MAX_FRAMES = 768

VISION: dict[str, Any] = {
    "depth": 4,
    "hidden_size": VISION_HIDDEN,
    "intermediate_size": 768,
    "num_heads": 3,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "out_hidden_size": TEXT_HIDDEN,
    "num_position_embeddings": 256,
    "deepstack_visual_indexes": [1],
    "initializer_range": 0.05,
}
TEXT: dict[str, Any] = {
    "hidden_size": TEXT_HIDDEN,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 32768,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    },
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
}


def build_config(tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    """The configuration, with token ids from the tokenizer."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    ids = {key: tokenizer.convert_tokens_to_ids(token) for key, token in names.items()}
    text = TEXT | {"vocab_size": VOCAB_SIZE, "bos_token_id": pad, "eos_token_id": end, "pad_token_id": None}
    return Qwen3VLConfig(text_config=text, vision_config=dict(VISION), tie_word_embeddings=True, **ids)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> Qwen3VLForConditionalGeneration:
    """A model with random float32 weights."""
    torch.manual_seed(seed)
    config = build_config(tokenizer)
    return Qwen3VLForConditionalGeneration(config).float()


def preprocessor_configs() -> dict[str, dict[str, Any]]:
    """Contents of the two preprocessor files, by file name."""
    shared = {
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    image = shared | {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
    }
    video = shared | {
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS * MAX_FRAMES},
        "cap_pixels_per_frame": True,
        "max_video_tokens": MAX_PIXELS // (PATCH * MERGE) ** 2,
        "fps": 2,
        "min_frames": 4,
        "max_frames": MAX_FRAMES,
    }
    return {"preprocessor_config.json": image, "video_preprocessor_config.json": video}


def save_checkpoint(model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a checkpoint (weights in bf16) beside `folder`, then moves its files in one by one, so readers see
    whole files.
    """
    partial = folder.with_name(folder.name + ".part")
    partial.mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(partial)
    GenerationConfig(
        do_sample=False,
        bos_token_id=model.config.text_config.bos_token_id,
        eos_token_id=[model.config.text_config.eos_token_id, model.config.text_config.bos_token_id],
        pad_token_id=model.config.text_config.bos_token_id,
    ).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    for name, content in preprocessor_configs().items():
        (partial / name).write_text(json.dumps(content, indent=2) + "\n")
    for file in sorted(partial.iterdir()):
        file.chmod(0o644)  # safetensors writes for the owner alone
        file.rename(folder / file.name)
    partial.rmdir()
