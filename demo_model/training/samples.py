"""Makes training sequences for the language model: one clip's prompt, followed by several independent question
branches.

The branches share the clip's tokens but do not see each other, so one pass over a clip teaches several answers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from demo_model.generator import ACTIONS, COLOURS, SHAPES, object_state
from demo_model.questions import DEFAULT_QUESTION, QUESTIONS, Sight, answer, see, stamp
from demo_model.training.features import FeatureClip

IGNORE = -100
#: How much one token of an answer counts; a timeline has many of them.
WEIGHTS = {"caption": 1.0, "when": 1.0, "colour": 0.7, "shape": 0.7, "action": 0.7, "timeline": 0.3}
#: Digits are the hardest part of an answer and a small share of its tokens, so each counts for several.
DIGIT_WEIGHT = 3.0
#: Auxiliary targets at the end of each temporal patch, with their numbers of classes. The four digits are those of the
#: time that an answer would tell of this patch: the begin of the second event where it lies here, else the patch's own.
AUXILIARY = {
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "action": len(ACTIONS),
    "event": 2,
    "switch": 3,  # none here; between the last patch and this; within this patch
    "hundreds": 10,
    "tens": 10,
    "ones": 10,
    "tenths": 10,
}
STYLE_SHARES = (0.78, 0.08, 0.08, 0.04, 0.02)
SYSTEM_MESSAGES = (
    "You are a helpful assistant.",
    "You answer questions about videos.",
    "Be brief.",
    "Answer in one sentence.",
    "You are a careful observer of short clips.",
)
#: Words for questions that the model has never seen; they get the caption as an answer.
FILLER = (
    "please tell me is there a dog cat person car in the video can you say who where why how many are "
    "left right top here anything something happening moving shown visible good bad long short story "
    "people house tree sky more about this that clip film scene picture look see find explain yes no and "
    "or with on of to it they you we answer short briefly now"
)


@dataclass
class Sequence:
    """Token by token: ids, mrope positions (3, length), branch (0: shared), labels (next token or IGNORE), label
    weights.

    auxiliary: (patches, len(AUXILIARY)) at the positions auxiliary_at.
    """

    clip: FeatureClip
    ids: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    branches: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    auxiliary_at: list[int] = field(default_factory=list)
    auxiliary: list[list[int]] = field(default_factory=list)
    next_position: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def text(self, ids: tuple[int, ...], branch: int = 0, weight: float = 0.0) -> None:
        """Appends text tokens; with a weight they are an answer, to be learnt."""
        if not ids:
            return
        if weight:
            self.labels[-1], self.weights[-1] = ids[0], weight
        self.labels += (*ids[1:], IGNORE) if weight else (IGNORE,) * len(ids)
        self.weights += [*[weight] * (len(ids) - 1), 0.0]
        self.ids += ids
        self.branches += [branch] * len(ids)
        start = self.next_position
        self.next_position += len(ids)
        self.positions += [(position,) * 3 for position in range(start, self.next_position)]

    def patch(self, pad: int, grid: tuple[int, int]) -> None:
        """Appends the placeholders of one temporal patch of grid (rows, columns)."""
        rows, columns = grid
        start, count = self.next_position, rows * columns
        self.text((pad,) * count)
        self.positions[-count:] = [
            (start, start + row, start + column) for row in range(rows) for column in range(columns)
        ]
        self.next_position = start + max(rows, columns)


class SequenceBuilder:
    """Turns clips into sequences with randomly chosen questions."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.encode = lru_cache(maxsize=20000)(self._encode)
        self.video_pad, self.image_pad = (
            tokenizer.convert_tokens_to_ids(t) for t in ("<|video_pad|>", "<|image_pad|>")
        )
        self.digits = frozenset(tokenizer.convert_tokens_to_ids(list("0123456789")))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _vision(self, sequence: Sequence, clip: FeatureClip, sight: Sight) -> None:
        """Appends a clip's patches with their times, and notes the auxiliary targets."""
        if sight.is_picture:
            sequence.text(self.encode("<|vision_start|>"))
            sequence.patch(self.image_pad, clip.grid)
            sequence.text(self.encode("<|vision_end|>"))
            return
        for number, seconds in enumerate(sight.patch_seconds):
            sequence.text(self.encode(stamp(seconds) + "<|vision_start|>"))
            sequence.patch(self.video_pad, clip.grid)
            sequence.text(self.encode("<|vision_end|>"))
            sequence.auxiliary_at.append(len(sequence) - 1)
            sequence.auxiliary.append(_auxiliary(sight, number, seconds))

    def _exchange(self, sequence: Sequence, branch: int, question: str, reply: str, weight: float) -> None:
        """Appends the rest of a user turn and the assistant's answer."""
        sequence.text(self.encode(f"{question}<|im_end|>\n<|im_start|>assistant\n"), branch)
        start, ids = len(sequence), self.encode(f"{reply}<|im_end|>")
        sequence.text(ids, branch, weight)
        for offset, token in enumerate(ids):
            if token in self.digits:  # the label of a token stands one place before it
                sequence.weights[start + offset - 1] *= DIGIT_WEIGHT

    def begin(self, clip: FeatureClip, sight: Sight, opening: str, *, has_outer_pair: bool = False) -> Sequence:
        """A sequence with the shared part: the opening text, then the clip.

        has_outer_pair: keep the chat template's own vision marks around a video, as Transformers 5 does and the
        released processor and vLLM do not; a model that saw both answers both.
        """
        sequence = Sequence(clip)
        sequence.text(self.encode(opening))
        has_outer_pair = has_outer_pair and not sight.is_picture
        if has_outer_pair:
            sequence.text(self.encode("<|vision_start|>"))
        self._vision(sequence, clip, sight)
        if has_outer_pair:
            sequence.text(self.encode("<|vision_end|>"))
        return sequence

    def evaluation(self, clip: FeatureClip) -> tuple[Sequence, Sight]:
        """The default question only."""
        sight = see(clip.spec, clip.seconds, is_picture=clip.is_picture)
        sequence = self.begin(clip, sight, "<|im_start|>user\n")
        self._exchange(sequence, 1, DEFAULT_QUESTION, answer("caption", sight), 1.0)
        return sequence, sight

    def training(self, rng: np.random.Generator, clip: FeatureClip) -> Sequence:
        """A random choice of questions, openings and time offsets."""
        offset = float(rng.uniform(0, 130 if rng.random() < 0.2 else 50)) if rng.random() < 0.15 else 0.0
        if rng.random() < 0.35:
            clip = cropped(rng, clip)
        sight = see(clip.spec, clip.seconds, offset_seconds=offset, is_picture=clip.is_picture)
        opening = ""
        if rng.random() < 0.08:
            opening = f"<|im_start|>system\n{rng.choice(SYSTEM_MESSAGES)}<|im_end|>\n"
        if rng.random() < 0.04:
            question = _question(rng, "caption")
            sequence = self.begin(clip, sight, f"{opening}<|im_start|>user\n{question}")
            self._exchange(sequence, 1, "", answer("caption", sight), 1.0)
            return sequence
        has_outer_pair = rng.random() < 0.12
        sequence = self.begin(clip, sight, f"{opening}<|im_start|>user\n", has_outer_pair=has_outer_pair)
        shared_end = sequence.next_position
        for branch, kind in enumerate(_kinds(rng), start=1):
            sequence.next_position = shared_end
            self._exchange(sequence, branch, _question(rng, kind), answer(kind, sight), WEIGHTS[kind])
            if rng.random() < 0.04:
                following = str(rng.choice(("caption", "colour", "shape", "action", "when")))
                sequence.text(self.encode("\n<|im_start|>user\n"), branch)
                self._exchange(
                    sequence, branch, _question(rng, following), answer(following, sight), WEIGHTS[following]
                )
        return sequence


def cropped(rng: np.random.Generator, clip: FeatureClip) -> FeatureClip:
    """A random run of the clip's temporal patches in which every event is shown well enough or not at all; else
    the clip.
    """
    count = len(clip.features)
    first, last = int(rng.integers(0, count // 2 + 1)), int(rng.integers((count + 1) // 2, count + 1))
    seconds = clip.seconds[2 * first : 2 * last]
    states, shown = ([object_state(clip.spec, t) for t in times] for times in (clip.seconds, seconds))
    for index, event in enumerate(clip.spec.events):
        in_all = sum(state.event_index == index for state in states)
        seen = [state.visible for state in shown if state.event_index == index]
        if seen and (len(seen) < max(2, 0.6 * in_all) or not any(seen) or (event.action == "blinks" and all(seen))):
            return clip
    if last - first < 1:
        return clip
    return clip.patches(first, last)


def _kinds(rng: np.random.Generator) -> list[str]:
    """The questions of one sequence."""
    kinds = ["caption", str(rng.choice(("colour", "shape", "action")))]
    if rng.random() < 0.5:
        kinds.append("when")
    if rng.random() < 0.3:
        kinds.append("timeline")
    return kinds


def _question(rng: np.random.Generator, kind: str) -> str:
    """A way to ask: from the list, in another case or without its full stop, or (captions) any words at all."""
    if kind == "caption":
        chance = rng.random()
        if chance < 0.25:
            return DEFAULT_QUESTION
        if chance < 0.4:
            words = " ".join(str(word) for word in rng.choice(FILLER.split(), size=int(rng.integers(1, 14))))
            return words.capitalize() + str(rng.choice(("?", ".", "", "!")))
    question = str(rng.choice(QUESTIONS[kind]))
    polite = f"Please {question[0].lower()}{question[1:]}"
    return str(rng.choice((question, question.lower(), question[:-1], polite, f" {question} "), p=STYLE_SHARES))


def _auxiliary(sight: Sight, number: int, seconds: float) -> list[int]:
    """Targets at the end of patch `number`."""
    now = sight.patch_events[number]
    event = sight.events[now]
    switch = 0
    if now == 1 and (number == 0 or sight.patch_events[number - 1] == 0):
        is_within = sight.second_seconds is not None and abs(sight.second_seconds - seconds) < 0.02
        switch = 2 if is_within else 1
    told = sight.second_seconds if switch and sight.second_seconds is not None else seconds
    tenths = round(float(f"{told:.1f}") * 10)
    digits = [tenths // 1000 % 10, tenths // 100 % 10, tenths // 10 % 10, tenths % 10]
    known = [list(COLOURS).index(event.colour), SHAPES.index(event.shape), ACTIONS.index(event.action)]
    return [*known, now, switch, *digits]


@dataclass(frozen=True)
class Batch:
    """Sequences padded to one length. mask: (b, 1, s, s) bool, True where a row may look."""

    ids: Tensor
    positions: Tensor
    mask: Tensor
    labels: Tensor
    weights: Tensor
    visual: Tensor
    clips: list[FeatureClip]
    auxiliary_at: Tensor
    auxiliary: Tensor


def collate(sequences: list[Sequence], pads: tuple[int, int], filler: int) -> Batch:
    """Pads on the right; a padding token sees only itself. auxiliary_at: (n, 2) row and column."""
    length = max(len(sequence) for sequence in sequences)

    def padded(rows: list[list[int]] | list[list[float]], fill: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows], dtype=dtype)

    ids = padded([s.ids for s in sequences], filler, torch.long)
    branches = padded([s.branches for s in sequences], -1, torch.long)
    before = torch.ones(length, length, dtype=torch.bool).tril()
    same = branches[:, :, None] == branches[:, None, :]
    mask = before & (same | (branches[:, None, :] == 0)) & (branches[:, None, :] >= 0)
    mask |= torch.eye(length, dtype=torch.bool)
    positions = torch.zeros(3, len(sequences), length, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        positions[:, row, : len(sequence)] = torch.tensor(sequence.positions).T
    auxiliary_at = [(row, column) for row, s in enumerate(sequences) for column in s.auxiliary_at]
    auxiliary = [targets for s in sequences for targets in s.auxiliary]
    return Batch(
        ids=ids,
        positions=positions,
        mask=mask[:, None],
        labels=padded([s.labels for s in sequences], IGNORE, torch.long),
        weights=padded([s.weights for s in sequences], 0.0, torch.float32),
        visual=(ids == pads[0]) | (ids == pads[1]),
        clips=[s.clip for s in sequences],
        auxiliary_at=torch.tensor(auxiliary_at, dtype=torch.long).reshape(-1, 2),
        auxiliary=torch.tensor(auxiliary, dtype=torch.long).reshape(-1, len(AUXILIARY)),
    )
