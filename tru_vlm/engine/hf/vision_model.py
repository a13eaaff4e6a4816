"""Qwen3-VL's vision tower in few and large operations, over temporal patches of one size: what a new video costs most.

Transformers' tower takes media of any sizes in one pass, and works out each patch's place for that. Here all patches
share a frame's grid, so that places are worked out for one frame, and frames are a batch of attention. The weights are
that tower's own.  Knows tensors; knows no media and no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, interpolate, linear, scaled_dot_product_attention

Activation = Callable[[torch.Tensor], torch.Tensor]

_GELU_LINEAR = 2 * (2 / torch.pi) ** 0.5
_GELU_CUBIC = _GELU_LINEAR * 0.044715


@dataclass(frozen=True, slots=True)
class _Places:
    """What tells the n patches of a frame apart.

    Attributes:
        embeddings: (n, hidden), added to each frame's patches.
        cos, signed_sin: float32, (n, 1, head_dim), of the rotation of queries and keys.
    """

    embeddings: torch.Tensor
    cos: torch.Tensor
    signed_sin: torch.Tensor


class VisionModel(nn.Module):
    """Takes the place of Transformers' tower, whose modules it takes over.

    Args:
        visual: ``Qwen3VLVisionModel`` or ``Qwen3VLMoeVisionModel``; not to be used afterwards.
    """

    inv_freq: torch.Tensor

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self._merge_size: int = visual.spatial_merge_size
        self.patch_embed = LinearPatchEmbed(visual.patch_embed)
        self.pos_embed = visual.pos_embed
        self.register_buffer("inv_freq", visual.rotary_pos_emb.inv_freq.float(), persistent=False)
        act_fn = _gelu_tanh if visual.config.hidden_act == "gelu_pytorch_tanh" else None
        self.blocks = nn.ModuleList(_Block(block, act_fn) for block in visual.blocks)
        self.merger = visual.merger
        self.deepstack_merger_list = visual.deepstack_merger_list
        self._deepstack_blocks: list[int] = list(visual.deepstack_visual_indexes)
        self._last_places: tuple[tuple[int, int], _Places] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the features, and of patches as they are wanted."""
        weight: torch.Tensor = self.pos_embed.weight
        return weight.dtype

    def forward(self, patches: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, Sequence[torch.Tensor]]:
        """Features of whole temporal patches, each of rows x columns spatial ones.

        Args:
            patches: (t * rows * columns, channels * temporal * patch**2), in the order of
                :func:`~tru_vlm.processor.patches.patchify`.
            rows: of a frame's grid, a multiple of the merge size.
            columns: as rows.

        Returns:
            (t * rows * columns / merge**2, out_hidden), and as much for each early text layer.
        """
        places = self._places(rows, columns)
        hidden = self.patch_embed(patches).view(-1, rows * columns, places.embeddings.shape[-1])
        hidden += places.embeddings
        deepstack: list[torch.Tensor] = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, places)
            if index in self._deepstack_blocks:
                merger = self.deepstack_merger_list[len(deepstack)]
                deepstack.append(merger(hidden.flatten(0, 1)))
        return self.merger(hidden.flatten(0, 1)), deepstack

    def _places(self, rows: int, columns: int) -> _Places:
        """Of a grid; the last one's are kept, as videos come in chunks and often in one size."""
        last = self._last_places
        if last is None or last[0] != (rows, columns):
            last = self._last_places = (rows, columns), self._compute_places(rows, columns)
        return last[1]

    def _compute_places(self, rows: int, columns: int) -> _Places:
        weight = self.pos_embed.weight
        side = int(len(weight) ** 0.5)
        table = weight.float().T.reshape(1, -1, side, side)
        embeddings = interpolate(table, (rows, columns), mode="bilinear", align_corners=True)[0].permute(1, 2, 0)
        down = torch.arange(rows, device=weight.device)[:, None, None] * self.inv_freq
        across = torch.arange(columns, device=weight.device)[:, None] * self.inv_freq
        angles = torch.cat([down.expand(-1, columns, -1), across.expand(rows, -1, -1)], dim=-1)
        angles = self._in_patch_order(angles)[:, None]
        cos, sin = angles.cos(), angles.sin()
        return _Places(
            self._in_patch_order(embeddings).to(weight.dtype),
            cos=torch.cat([cos, cos], dim=-1),
            signed_sin=torch.cat([-sin, sin], dim=-1),
        )

    def _in_patch_order(self, grid: torch.Tensor) -> torch.Tensor:
        """(rows, columns, d) to (rows * columns, d): the patches of a visual token lie side by side."""
        size = self._merge_size
        rows, columns, width = grid.shape
        blocks = grid.reshape(rows // size, size, columns // size, size, width)
        return blocks.transpose(1, 2).reshape(-1, width)


class LinearPatchEmbed(nn.Module):
    """The tower's patch embedding as one matrix product.

    Its convolution's kernel equals its stride, so it is one; as a convolution it is many times slower in bfloat16.
    """

    def __init__(self, patch_embed: Any) -> None:
        super().__init__()
        self.proj = patch_embed.proj  # kept whole: it is the checkpoint's parameter

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(n, channels * temporal * patch**2) to (n, hidden)."""
        weight: torch.Tensor = self.proj.weight
        return linear(patches.to(weight.dtype), weight.view(weight.shape[0], -1), self.proj.bias)


class _Block(nn.Module):
    def __init__(self, block: Any, act_fn: Activation | None) -> None:
        super().__init__()
        self._num_heads: int = block.attn.num_heads
        self._scaling: float = block.attn.scaling
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj = block.attn.qkv, block.attn.proj
        self.mlp = _Mlp(block.mlp, act_fn)

    def forward(self, hidden: torch.Tensor, places: _Places) -> torch.Tensor:
        """(t, n, hidden), which is overwritten."""
        heads = self.qkv(self.norm1(hidden)).view(*hidden.shape[:2], 3 * self._num_heads, -1)
        rotated = _rotated(heads[:, :, : 2 * self._num_heads], places)
        query, key = rotated.transpose(1, 2).chunk(2, dim=1)
        value = heads[:, :, 2 * self._num_heads :].transpose(1, 2)
        attended = scaled_dot_product_attention(query, key, value, scale=self._scaling)
        hidden += self.proj(attended.transpose(1, 2).flatten(2))
        hidden += self.mlp(self.norm2(hidden))
        return hidden


class _Mlp(nn.Module):
    def __init__(self, mlp: Any, act_fn: Activation | None) -> None:
        super().__init__()
        self.linear_fc1, self.linear_fc2 = mlp.linear_fc1, mlp.linear_fc2
        self.act_fn = act_fn or mlp.act_fn

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear_fc2(self.act_fn(self.linear_fc1(hidden)))
        return result


def _gelu_tanh(inputs: torch.Tensor) -> torch.Tensor:
    """GELU's tanh approximation (Hendrycks and Gimpel, 2016, arXiv:1606.08415).

    (1 + tanh u) / 2 is the logistic function of 2 u, which takes half of tanh's time on a CPU.
    """
    if inputs.device.type != "cpu" or inputs.dtype != torch.float32:
        return gelu(inputs, approximate="tanh")
    double = (inputs * inputs).mul_(_GELU_CUBIC).add_(_GELU_LINEAR).mul_(inputs)
    return double.sigmoid_().mul_(inputs)


def _rotated(heads: torch.Tensor, places: _Places) -> torch.Tensor:
    """Rotary embedding of (t, n, heads, head_dim) in float32, as Transformers' tower has it, and back."""
    full = heads.float()
    swapped = full.roll(full.shape[-1] // 2, dims=-1)
    return torch.addcmul(full * places.cos, swapped, places.signed_sin).to(heads.dtype)
