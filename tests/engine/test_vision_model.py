"""Our vision tower against Transformers' own."""

import copy

import pytest
import torch
from transformers import Qwen3VLMoeVisionConfig, Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionModel

from tru_vlm.engine.hf.vision_model import VisionModel

SIZES = {
    "depth": 3,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_heads": 4,
    "patch_size": 4,
    "num_position_embeddings": 25,
    "out_hidden_size": 32,
    "deepstack_visual_indexes": [0, 2],
}
PATCH_VALUES = 3 * 2 * 4 * 4


def dense(**options):
    return Qwen3VLVisionModel._from_config(Qwen3VLVisionConfig(**SIZES, **options), attn_implementation="sdpa")


def of_experts():
    return Qwen3VLMoeVisionModel._from_config(Qwen3VLMoeVisionConfig(**SIZES), attn_implementation="sdpa")


@pytest.mark.parametrize(
    "build", [dense, lambda: dense(hidden_act="gelu"), of_experts], ids=["dense", "another activation", "of experts"]
)
@torch.inference_mode()
def test_features_are_those_of_transformers(build):
    torch.manual_seed(0)
    theirs = build().eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)  # norms and biases too: as initialized, they would hide a mistake
    ours = VisionModel(copy.deepcopy(theirs))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    for time, rows, columns in [(3, 4, 6), (2, 6, 4), (1, 6, 8), (1, 12, 8)]:  # smaller and larger than the table
        patches = torch.randn(time * rows * columns, PATCH_VALUES)
        expected = theirs(patches, grid_thw=torch.tensor([[time, rows, columns]]))
        features, deepstack = ours(patches, rows, columns)
        torch.testing.assert_close(features, expected.pooler_output, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(list(deepstack), list(expected.deepstack_features), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_features_in_half_precision_are_as_near_the_exact_ones_as_those_of_transformers():
    torch.manual_seed(0)
    exact = dense().eval()
    halved = copy.deepcopy(exact).to(torch.bfloat16)
    patches, grid = torch.randn(2 * 6 * 4, PATCH_VALUES), torch.tensor([[2, 6, 4]])
    expected = exact(patches, grid_thw=grid).pooler_output
    theirs = halved(patches.to(torch.bfloat16), grid_thw=grid).pooler_output
    ours, _ = VisionModel(halved)(patches, 6, 4)
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).norm() < 1.1 * (theirs - expected).norm()
