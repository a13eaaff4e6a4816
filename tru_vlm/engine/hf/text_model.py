"""Qwen3-VL's text layers in few and large operations, over packed rows: what every step runs.

Transformers' layers compute the same in many more operations, and with a small model, or a card and few rows,
launching them is what a step takes.  The weights are those layers' own: products of the same input are one, as in vLLM.
Knows tensors and the step's layout; knows no requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm

from tru_vlm.engine.hf.attention import AttentionPlan, attend


@dataclass(frozen=True, slots=True)
class DeepstackInput:
    """What the first layers add at visual tokens.

    Attributes:
        at: int64, (n,): which of the packed tokens are visual.
        layers: (n, hidden) for each of the first layers, added to its output.
    """

    at: torch.Tensor
    layers: Sequence[torch.Tensor]


class TextModel(nn.Module):
    """Takes the place of Transformers' text model, and takes its layers apart.

    Args:
        text: ``Qwen3VLTextModel`` or ``Qwen3VLMoeTextModel``; not to be used afterwards.
    """

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.embed_tokens = text.embed_tokens
        self.rotary_emb = text.rotary_emb
        self.layers = nn.ModuleList()
        for index, layer in enumerate(text.layers):
            self.layers.append(_TextLayer(layer, index))
            text.layers[index] = nn.Identity()  # layer by layer, so that the weights are never there twice
        self.norm = _RmsNorm(text.norm)

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        plan: AttentionPlan,
        deepstack: DeepstackInput | None = None,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Last hidden states of packed tokens; the keys and values of all of them go into the cache.

        Args:
            embeddings: (N, hidden).
            positions: mrope, int64, (3, N).
            plan: which sequences the tokens belong to.
            deepstack: for the visual ones among them.
            wanted: int64, (R,): whose last hidden states are wanted; None: all.  No deepstack reaches the last layer.

        Returns:
            (R, hidden).
        """
        rotation = self._rotation(embeddings, positions)
        hidden = embeddings
        added = deepstack.layers if deepstack is not None else ()
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, rotation, plan, wanted if index == len(self.layers) - 1 else None)
            if deepstack is not None and index < len(added):
                hidden.index_add_(0, deepstack.at, added[index].to(hidden.dtype))
        normed: torch.Tensor = self.norm(hidden)
        return normed

    def _rotation(self, embeddings: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and signed sines, each (N, 1, head_dim), for :func:`_rotated`."""
        cos, sin = self.rotary_emb(embeddings, positions[:, None])
        first, second = sin[0].chunk(2, dim=-1)
        return cos[0].unsqueeze(1), torch.cat((-first, second), dim=-1).unsqueeze(1)


class _TextLayer(nn.Module):
    head_norm: torch.Tensor

    def __init__(self, layer: Any, index: int) -> None:
        super().__init__()
        attention = layer.self_attn
        self._index = index
        self._scaling = attention.scaling
        self._head_dim = attention.head_dim
        self._num_heads = attention.config.num_attention_heads
        self._num_kv_heads = attention.config.num_key_value_heads
        self._epsilon: float = attention.q_norm.variance_epsilon
        self.input_layernorm = _RmsNorm(layer.input_layernorm)
        self.qkv_proj = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.q_norm, self.k_norm = _RmsNorm(attention.q_norm), _RmsNorm(attention.k_norm)
        norms = [(self.q_norm, self._num_heads), (self.k_norm, self._num_kv_heads)]
        weights = torch.cat([norm.weight.data.expand(count, -1) for norm, count in norms])
        self.register_buffer("head_norm", weights, persistent=False)
        self.o_proj = attention.o_proj
        self.post_attention_layernorm = _RmsNorm(layer.post_attention_layernorm)
        self.mlp = _Mlp(layer.mlp) if hasattr(layer.mlp, "gate_proj") else _Experts(layer.mlp)

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        plan: AttentionPlan,
        wanted: torch.Tensor | None,
    ) -> torch.Tensor:
        """(N, hidden) to a new (N, hidden), or a new (R, hidden) of the wanted ones."""
        heads = self.qkv_proj(self.input_layernorm(hidden)).view(len(hidden), -1, self._head_dim)
        num_rotated = self._num_heads + self._num_kv_heads
        normed = _normed(heads[:, :num_rotated], self.head_norm, self._epsilon)
        rotated = _rotated(normed, *rotation)
        query, key = rotated[:, : self._num_heads], rotated[:, self._num_heads :]
        attended = attend(query, key, heads[:, num_rotated:], plan, layer=self._index, scaling=self._scaling)
        attended = attended.flatten(1)
        if wanted is not None:  # what follows is done for each token alone, and most of a prompt's go no further
            hidden, attended = hidden.index_select(0, wanted), attended.index_select(0, wanted)
        hidden = hidden + self.o_proj(attended)
        result: torch.Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class _Mlp(nn.Module):
    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_up_proj = joined([mlp.gate_proj, mlp.up_proj])
        self.down_proj = mlp.down_proj
        self.act_fn = mlp.act_fn

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        result: torch.Tensor = self.down_proj(self.act_fn(gate) * up)
        return result


class _Experts(nn.Module):
    """Transformers' mixture of experts, which wants a batch dimension."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.experts(hidden[None])[0]
        return result


class _SideBySide(nn.ModuleList):
    """Layers that cannot be one, a quantized checkpoint's for instance."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([layer(inputs) for layer in self], dim=-1)


def joined(layers: Sequence[nn.Module]) -> nn.Module:
    """One layer with the outputs of several, side by side, (..., in) to (..., sum of outs); they are not kept."""
    linears = [layer for layer in layers if type(layer) is nn.Linear]
    if len(linears) < len(layers) or len({linear.bias is None for linear in linears}) > 1:
        return _SideBySide(layers)
    weight = torch.cat([linear.weight.data for linear in linears])
    biases = [linear.bias.data for linear in linears if linear.bias is not None]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases), device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if biases:
        layer.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return layer


class _RmsNorm(nn.Module):
    """Root mean square layer normalization (Zhang and Sennrich, 2019, arXiv:1910.07467)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon: float = norm.variance_epsilon

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return _normed(inputs, self.weight, self.epsilon)


def _normed(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Over the last dimension; sums are float32."""
    size = inputs.shape[-1]
    if inputs.is_cuda:  # one kernel there; on a CPU, PyTorch's is ten operations
        return rms_norm(inputs, (size,), eps=epsilon) * weight
    full = inputs.float()
    length: torch.Tensor = vector_norm(full, dim=-1, keepdim=True)
    normed = full * length.square_().div_(size).add_(epsilon).rsqrt_()
    return normed.to(inputs.dtype) * weight


def _rotated(heads: torch.Tensor, cos: torch.Tensor, signed_sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding (Su et al., 2021, arXiv:2104.09864) of (N, heads, head_dim), halves paired as in Qwen.

    x cos + (-x2, x1) sin: swapping the halves and giving the sine the sign saves taking the heads apart.
    """
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), signed_sin)
