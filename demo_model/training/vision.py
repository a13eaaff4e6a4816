"""Stage 1: trains the vision tower alone on pairs of frames, under auxiliary heads that are thrown away afterwards.

Captions alone teach shapes and directions too slowly; what each pair of frames shows is a far denser signal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel, apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

from demo_model.generator import ACTIONS, COLOURS, SHAPES, object_state
from demo_model.training.frames import MERGE, PATCH, patches
from demo_model.training.pool import PoolClip, load_shard

IGNORE = -100
FEATURE_RMS = 0.4  # size of the finished tower's outputs, so that they suit the language model's embeddings
MOTION_SCALE = 20.0  # turns motion per pair (a few hundredths of the frame) into numbers around one


@dataclass
class PairTable:
    """All pairs of consecutive frames of one frame size. frames: (n, h, w, 3) uint8; pair i is frames[starts[i]],
    [starts[i] + 1].

    classes: (pairs, 7) visible, colour, shape of both frames, then the action; IGNORE where it cannot be told.
    values: (pairs, 9) x, y, size of both frames, then their scaled change; NaN where there is none.
    """

    frames: Tensor
    starts: Tensor
    classes: Tensor
    values: Tensor


def _describe_frame(clip: PoolClip, seconds: float) -> tuple[list[int], list[float], int]:
    """Classes and values of one frame, and its event."""
    state = object_state(clip.spec, seconds)
    if not state.visible:
        return [0, IGNORE, IGNORE], [np.nan] * 3, state.event_index
    event = clip.spec.events[state.event_index]
    colour, shape = list(COLOURS).index(event.colour), SHAPES.index(event.shape)
    return [1, colour, shape], [state.x, state.y, state.size], state.event_index


def _describe_pair(clip: PoolClip, first: float, second: float) -> tuple[list[int], list[float]]:
    """Targets of the pair of frames at two times."""
    (classes_a, values_a, event_a), (classes_b, values_b, event_b) = (_describe_frame(clip, t) for t in (first, second))
    action, change = IGNORE, [np.nan] * 3
    if event_a == event_b and classes_a[0] and classes_b[0]:
        name = clip.spec.events[event_a].action
        is_static = name == "blinks" or first == second
        action = ACTIONS.index("stands still" if is_static else name)
        change = [(b - a) * MOTION_SCALE for a, b in zip(values_a, values_b, strict=True)]
    return classes_a + classes_b + [action], values_a + values_b + change


def pair_tables(shards: list[Path]) -> list[PairTable]:
    """Reads the pool; one table per frame size."""
    grouped: dict[tuple[int, int], list[PoolClip]] = {}
    for shard in shards:
        for clip in load_shard(shard):
            grouped.setdefault(clip.frames.shape[1:3], []).append(clip)
    return [_table(grouped.pop(size)) for size in list(grouped)]  # frees each group's clips in turn: gigabytes


def _table(clips: list[PoolClip]) -> PairTable:
    """All pairs of these clips, which have one frame size."""
    starts, classes, values, position = [], [], [], 0
    for clip in clips:
        for i, (first, second) in enumerate(zip(clip.seconds, clip.seconds[1:], strict=False)):
            pair_classes, pair_values = _describe_pair(clip, first, second)
            starts.append(position + i)
            classes.append(pair_classes)
            values.append(pair_values)
        position += len(clip.frames)
    frames = torch.from_numpy(np.concatenate([clip.frames for clip in clips]))
    return PairTable(frames, torch.tensor(starts), torch.tensor(classes), torch.tensor(values, dtype=torch.float32))


def tower(visual: Qwen3VLVisionModel, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The vision tower on many temporal patches of one size at once; equal to visual(...), but with one attention
    call a layer.

    pairs: (b, 2, h, w, 3) uint8. Returns merged and deepstack features, each (b, tokens, out_hidden).
    """
    batch, _, height, width, _ = pairs.shape
    grid = torch.tensor([[1, height // PATCH, width // PATCH]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=visual.num_grid_per_side, mode="bilinear", align_corners=True, spatial_merge_size=MERGE
    )
    embed = visual.patch_embed.proj  # a convolution whose stride is its kernel; the matrix product is faster
    hidden = F.linear(patches(pairs), embed.weight.flatten(1), embed.bias).view(batch, -1, visual.config.hidden_size)
    hidden = hidden + (visual.pos_embed(indices) * weights[:, :, None]).sum(1)
    cos, sin = visual.rotary_pos_emb(hidden, get_vision_position_ids(grid, MERGE))
    deep = hidden
    for number, block in enumerate(visual.blocks):
        query, key, value = block.attn.qkv(block.norm1(hidden)).unflatten(-1, (3, block.attn.num_heads, -1)).unbind(2)
        query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
        mixed = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.norm2(hidden))
        if number in visual.deepstack_visual_indexes:
            deep = visual.deepstack_merger_list[0](hidden)
    merged = visual.merger(hidden)
    return merged.view(batch, -1, merged.shape[-1]), deep.view(batch, -1, deep.shape[-1])


class PairHeads(nn.Module):
    """Linear read-outs of the mean feature: what must be told is then linear in what the language model gets."""

    sizes = (2, len(COLOURS), len(SHAPES)) * 2 + (len(ACTIONS),)

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.classify = nn.Linear(hidden, sum(self.sizes))
        self.measure = nn.Linear(hidden, 9)

    def forward(self, features: Tensor, classes: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """features: (b, tokens, hidden). Returns the loss and, per class target, the share that is right
        (NaN: none).
        """
        mean = features.mean(1)
        logits = self.classify(mean).split(self.sizes, dim=1)
        losses, right = [], []
        for i, scores in enumerate(logits):
            known = classes[:, i] != IGNORE
            if known.any():
                losses.append(F.cross_entropy(scores[known], classes[known, i]))
            right.append((scores[known].argmax(1) == classes[known, i]).float().mean())
        known = ~values.isnan()
        regression = F.smooth_l1_loss(self.measure(mean)[known], values[known], beta=0.1)
        return torch.stack(losses).sum() + 4 * regression, torch.stack(right)


def batches(tables: list[PairTable], size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless random batches, each of one frame size: pairs, classes, values."""
    rng = np.random.default_rng(seed)
    share = np.array([len(table.starts) for table in tables], dtype=np.float64)
    while True:
        table = tables[int(rng.choice(len(tables), p=share / share.sum()))]
        chosen = torch.from_numpy(rng.integers(0, len(table.starts), size))
        starts = table.starts[chosen]
        pairs = torch.stack([table.frames[starts], table.frames[starts + 1]], dim=1)
        yield pairs, table.classes[chosen], table.values[chosen]


def learning_rate(step: int, steps: int, peak: float, warmup: int = 80) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.02 + 0.98 * 0.5 * (1 + float(np.cos(np.pi * progress))))


def set_feature_scale(visual: Qwen3VLVisionModel, pairs: Tensor) -> None:
    """Rescales the mergers' last layers so that features of these pairs have a root mean square of FEATURE_RMS."""
    with torch.no_grad():
        for merger, features in zip(
            (visual.merger, visual.deepstack_merger_list[0]), tower(visual, pairs), strict=True
        ):
            factor = FEATURE_RMS / features.pow(2).mean().sqrt()
            merger.linear_fc2.weight.mul_(factor)
            merger.linear_fc2.bias.mul_(factor)


def train_vision(
    visual: Qwen3VLVisionModel,
    tables: list[PairTable],
    *,
    steps: int,
    log: Callable[[str], None],
    batch_size: int = 128,
    peak: float = 8e-4,
    checkpoint: Path | None = None,
) -> None:
    """Trains the tower in place and scales its output; logs the share of right classes."""
    heads = nn.ModuleList([PairHeads(visual.config.out_hidden_size) for _ in range(2)])
    parameters = [*visual.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=0.02, betas=(0.9, 0.98))
    source, begin = batches(tables, batch_size, seed=1), time.monotonic()
    seen: list[Tensor] = []
    for step in range(steps):
        pairs, classes, values = next(source)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = tower(visual, pairs)
        (loss, right), (deep_loss, _) = (
            head(out.float(), classes, values) for head, out in zip(heads, outputs, strict=True)
        )
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak)
        optimizer.zero_grad()
        (loss + 0.3 * deep_loss).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        seen.append(torch.cat([loss.detach()[None], right]))
        if (step + 1) % 50 == 0:
            mean = torch.stack(seen).nanmean(0).tolist()
            seen.clear()
            shown = " ".join(f"{value:.3f}" for value in mean[1:])
            log(f"vision step {step + 1} seconds {time.monotonic() - begin:.0f} loss {mean[0]:.3f} right {shown}")
            if checkpoint is not None and (step + 1) % 200 == 0:
                torch.save(visual.state_dict(), checkpoint)
    set_feature_scale(visual, next(source)[0])
