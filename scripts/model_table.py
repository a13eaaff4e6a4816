"""Counts the parameters of Qwen3-VL's dense sizes, and prints the rows of the model guide's table.

`python scripts/model_table.py` builds each model without weights (PyTorch's meta device), from the sizes in the
published configurations.  Nothing is downloaded and nothing is measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

VOCABULARY, KV_HEADS, HEAD_SIZE = 151_936, 8, 128
BYTES_16_BITS = 2
#: bitsandbytes' NF4 as the engine uses it: half a byte, and a scale of four bytes for each 64 weights.
BYTES_INT4 = 0.5 + 4 / 64

VISION_300M = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
VISION_600M = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}


@dataclass(frozen=True, slots=True)
class Size:
    """What a published configuration says of a model's size."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    is_tied: bool
    vision: dict[str, Any] = field(default_factory=dict)


SIZES = (
    Size("Qwen3-VL-2B", 2048, 6144, 28, 16, True, VISION_300M),
    Size("Qwen3-VL-4B", 2560, 9728, 36, 32, True, VISION_300M),
    Size("Qwen3-VL-8B", 4096, 12_288, 36, 32, False, VISION_600M),
    Size("Qwen3-VL-32B", 5120, 25_600, 64, 64, False, VISION_600M),
)


def row(size: Size) -> str:
    """The guide's line: parameters, bytes of the weights in 16 and with int4, bytes of keys and values for a token."""
    text = {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": size.is_tied,
    }
    vision = {**size.vision, "num_heads": 16, "out_hidden_size": size.hidden}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=size.is_tied)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    if size.is_tied:
        model.tie_weights()
    total = sum(parameter.numel() for parameter in model.parameters())
    linear = sum(p.numel() for p in model.model.language_model.layers.parameters() if p.dim() > 1)
    full, int4 = total * BYTES_16_BITS, (total - linear) * BYTES_16_BITS + linear * BYTES_INT4
    kv = 2 * size.layers * KV_HEADS * HEAD_SIZE * BYTES_16_BITS
    gigabytes = [f"{number / 1e9:.1f} GB" for number in (full, int4)]
    return f"| {size.name} | {total / 1e9:.2f} billion | {' | '.join(gigabytes)} | {kv // 1024} KiB |"


if __name__ == "__main__":
    print("\n".join(row(size) for size in SIZES))
