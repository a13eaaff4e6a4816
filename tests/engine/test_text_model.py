"""Our text layers against Transformers' own."""

import copy

import pytest
import torch
from torch import nn
from transformers import Qwen3VLMoeTextConfig, Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeTextModel

from tru_vlm.engine.hf.attention import AttentionPlan, AttentionRow
from tru_vlm.engine.hf.kv_cache import KvCache, KvShape
from tru_vlm.engine.hf.text_model import DeepstackInput, TextModel, joined

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 100,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]}
NUM_TOKENS = 11


def dense(**options):
    return Qwen3VLTextModel._from_config(Qwen3VLTextConfig(**SIZES, **options), attn_implementation="sdpa")


def experts():
    return Qwen3VLMoeTextModel._from_config(Qwen3VLMoeTextConfig(**SIZES, **EXPERTS), attn_implementation="sdpa")


def plan() -> AttentionPlan:
    cache = KvCache(KvShape(SIZES["num_hidden_layers"], 2, 16, torch.float32), NUM_TOKENS, "cpu")
    return AttentionPlan(cache, torch.arange(NUM_TOKENS), [AttentionRow(0, NUM_TOKENS, NUM_TOKENS, first_slot=0)])


@pytest.mark.parametrize(
    "build", [dense, lambda: dense(attention_bias=True), experts], ids=["dense", "with biases", "experts"]
)
@torch.inference_mode()
def test_hidden_states_are_those_of_transformers(build):
    torch.manual_seed(0)
    theirs = build().eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)  # norms and biases too: as initialized, they would hide a mistake
    ours = TextModel(copy.deepcopy(theirs))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    embeddings, visual = torch.randn(NUM_TOKENS, 48), torch.tensor([2, 3, 7])
    positions = torch.randint(0, 50, (3, NUM_TOKENS))
    deepstack = [torch.randn(3, 48) for _ in range(2)]
    mask = torch.zeros(1, NUM_TOKENS, dtype=torch.bool)
    mask[0, visual] = True
    expected = theirs(
        inputs_embeds=embeddings[None],
        position_ids=positions[:, None],
        visual_pos_masks=mask,
        deepstack_visual_embeds=deepstack,
        use_cache=False,
    ).last_hidden_state[0]
    got = ours(embeddings, positions, plan(), DeepstackInput(visual, deepstack))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    wanted = torch.tensor([1, 7, 10])
    some = ours(embeddings, positions, plan(), DeepstackInput(visual, deepstack), wanted)
    torch.testing.assert_close(some, expected[wanted], atol=1e-4, rtol=1e-4)
    plain = ours(embeddings, positions, plan())
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_layers_of_other_kinds_stay_side_by_side():
    torch.manual_seed(0)
    with_bias, without, special = nn.Linear(6, 4), nn.Linear(6, 3, bias=False), nn.Sequential(nn.Linear(6, 2))
    values = torch.randn(5, 6)
    for layers in ([with_bias, without], [without, special]):
        both = joined(layers)
        assert type(both) is not nn.Linear
        assert torch.equal(both(values), torch.cat([layer(values) for layer in layers], dim=-1))
    assert type(joined([without, without])) is nn.Linear
