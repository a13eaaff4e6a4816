"""Stage 3: trains the language model on cached features, with answers as the target and helper targets per
temporal patch.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration

from demo_model.questions import Sight, answer
from demo_model.training.features import FeatureClip, cached_features, encode_clips
from demo_model.training.pool import PoolClip
from demo_model.training.samples import AUXILIARY, Batch, Sequence, SequenceBuilder, collate
from demo_model.training.vision import learning_rate

AUXILIARY_LAYER = 2  # helper targets are read after this layer, so that later layers can look the result up
TIME_TOLERANCE_SECONDS = 0.5
STAMP = re.compile(r"<(\d+\.\d) seconds>")


@dataclass(frozen=True)
class Schedule:
    """How long and how hard to train. short_patches: longest clip during the first short_steps, in temporal patches."""

    steps: int
    peak: float = 1e-3
    batch_tokens: int = 6000
    short_steps: int = 250
    short_patches: int = 5
    evaluate_every: int = 200
    auxiliary_weight: float = 0.3
    warmup: int = 80


def hidden_states(model: Qwen3VLForConditionalGeneration, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """The language model on a batch with branches: last hidden states (b, s, hidden) and those after
    AUXILIARY_LAYER.
    """
    text = model.model.language_model
    merged, deep = features.unbind(1)
    hidden = text.embed_tokens(batch.ids)
    hidden = hidden.masked_scatter(batch.visual[..., None], merged)
    deep = torch.zeros_like(hidden).masked_scatter(batch.visual[..., None], deep)
    rotary = text.rotary_emb(hidden, batch.positions)
    helper = hidden
    for number, layer in enumerate(text.layers):
        hidden = layer(hidden, attention_mask=batch.mask, position_embeddings=rotary)
        if number == 0:  # as many layers as there are deepstack outputs: one
            hidden = hidden + deep
        if number == AUXILIARY_LAYER:
            helper = hidden
    return text.norm(hidden), helper


def _answer_loss(model: Qwen3VLForConditionalGeneration, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted cross-entropy of the answers, and the share of answer tokens that are right."""
    taught = batch.weights > 0
    logits, labels, weights = model.lm_head(hidden[taught]), batch.labels[taught], batch.weights[taught]
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum() / weights.sum(), (logits.argmax(-1) == labels).float().mean()


def _auxiliary_loss(head: nn.Linear, batch: Batch, helper: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss of the helper targets and the share that is right, each per target."""
    states = helper[batch.auxiliary_at[:, 0], batch.auxiliary_at[:, 1]]
    logits = head(states).split(list(AUXILIARY.values()), dim=1)
    losses = [F.cross_entropy(scores, batch.auxiliary[:, i]) for i, scores in enumerate(logits)]
    right = [(scores.argmax(1) == batch.auxiliary[:, i]).float().mean() for i, scores in enumerate(logits)]
    return torch.stack(losses).mean(), torch.stack(right)


def _packed(sequences: list[Sequence], batch_tokens: int) -> Iterator[list[Sequence]]:
    """Sequences of similar length, in groups of about batch_tokens tokens."""
    group: list[Sequence] = []
    for sequence in sorted(sequences, key=len):
        if group and (len(group) + 1) * len(sequence) > batch_tokens:
            yield group
            group = []
        group.append(sequence)
    yield group


class Trainer:
    """Trains the language model of `model` in place and measures it on held-out clips."""

    def __init__(
        self,
        model: Qwen3VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        clips: list[FeatureClip],
        held_out: list[PoolClip],
        *,
        log: Callable[[str], None],
        on_better: Callable[[float], None],
    ) -> None:
        self.model, self.tokenizer, self.clips, self.held_out = model, tokenizer, clips, held_out
        self.log, self.on_better = log, on_better
        self.builder = SequenceBuilder(tokenizer)
        self.pads = (self.builder.video_pad, self.builder.image_pad)
        self.filler = tokenizer.pad_token_id
        torch.manual_seed(2)
        hidden = model.config.text_config.hidden_size
        self.head = nn.Linear(hidden, sum(AUXILIARY.values()))
        self.best = 0.0

    def _batches(self, schedule: Schedule, seed: int) -> Iterator[Batch]:
        """Endless random batches; short clips only at first."""
        rng = np.random.default_rng(seed)
        short = [clip for clip in self.clips if len(clip.features) <= schedule.short_patches]
        made = 0
        while True:
            clips = short if made < schedule.short_steps else self.clips
            chosen = [clips[int(index)] for index in rng.integers(0, len(clips), 256)]
            groups = list(_packed([self.builder.training(rng, clip) for clip in chosen], schedule.batch_tokens))
            for number in rng.permutation(len(groups)):
                made += 1
                yield collate(groups[int(number)], self.pads, self.filler)

    def _loss(self, batch: Batch, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """The sum to minimise, and what to log: answer loss, share of right answer tokens and of each helper target."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden, helper = hidden_states(self.model, batch, cached_features(batch.clips))
            loss, right = _answer_loss(self.model, batch, hidden)
            helper_loss, helper_right = _auxiliary_loss(self.head, batch, helper)
        total = loss + schedule.auxiliary_weight * helper_loss * len(AUXILIARY)
        return total, torch.cat([torch.stack([loss.detach(), right]), helper_right])

    def train(self, schedule: Schedule, *, seed: int = 0) -> None:
        """Runs the schedule; every evaluate_every steps it evaluates, and calls on_better with a new best score."""
        parameters = [*self.model.model.language_model.parameters(), *self.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=schedule.peak, weight_decay=0.02, betas=(0.9, 0.98))
        source, begin, seen = self._batches(schedule, seed), time.monotonic(), []
        for step in range(schedule.steps):
            total, shown = self._loss(next(source), schedule)
            optimizer.param_groups[0]["lr"] = learning_rate(step, schedule.steps, schedule.peak, schedule.warmup)
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            seen.append(shown)
            if (step + 1) % 25 == 0:
                numbers = " ".join(f"{value:.3f}" for value in torch.stack(seen).nanmean(0).tolist())
                seen.clear()
                self.log(
                    f"language step {step + 1} seconds {time.monotonic() - begin:.0f} loss, right, helpers {numbers}"
                )
            if (step + 1) % schedule.evaluate_every == 0 or step + 1 == schedule.steps:
                self.evaluate()

    @torch.inference_mode()
    def evaluate(self) -> float:
        """The share of held-out clips whose caption is right, by number of events; reports a new best."""
        right: dict[int, list[bool]] = {1: [], 2: []}
        words: list[bool] = []
        clips = encode_clips(self.model.model.visual, [clip for clip in self.held_out if clip.kind == "video"])
        items = sorted((self.builder.evaluation(clip) for clip in clips), key=lambda item: len(item[0]))
        for first in range(0, len(items), 24):
            group = items[first : first + 24]
            for (_, sight), text in zip(group, self._forced_texts([s for s, _ in group]), strict=True):
                right[len(sight.events)].append(is_right(text, sight))
                if len(sight.events) == 2:
                    words.append(STAMP.sub("", text) == STAMP.sub("", answer("caption", sight)))
        one, two = (float(np.mean(right[count])) for count in (1, 2))
        sizes = f"{len(right[1])} and {len(right[2])} clips"
        self.log(f"evaluation one {one:.3f} two {two:.3f} (words alone {np.mean(words):.3f}) of {sizes}")
        score = min(one, 0.99) + two
        if score > self.best:
            self.best = score
            self.on_better(score)
        return score

    def _forced_texts(self, sequences: list[Sequence]) -> list[str]:
        """The most likely token at each place of the right answer: equal to the greedy answer where all are right."""
        batch = collate(sequences, self.pads, self.filler)
        hidden, _ = hidden_states(self.model, batch, cached_features(batch.clips))
        texts = []
        for row in range(len(sequences)):
            taught = batch.weights[row] > 0
            texts.append(
                self.tokenizer.decode(self.model.lm_head(hidden[row, taught]).argmax(-1)).removesuffix("<|im_end|>")
            )
        return texts


def is_right(text: str, sight: Sight) -> bool:
    """Whether a caption is right: every word, and the time within the tolerance."""
    expected = answer("caption", sight)
    if STAMP.sub("", text) != STAMP.sub("", expected):
        return False
    times, truth = STAMP.findall(text), STAMP.findall(expected)
    return all(abs(float(a) - float(b)) <= TIME_TOLERANCE_SECONDS for a, b in zip(times, truth, strict=True))
