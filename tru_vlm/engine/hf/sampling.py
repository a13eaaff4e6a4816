"""From logits to the next token of each row, all rows at once, each by its own rules.  Knows no text and no model.

A row's draw depends on its seed and its own logits only: one uniform number per token, taken from the row's own
generator on the host, picks from the cumulated probabilities, so nothing waits for the device row by row.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from tru_vlm.engine.hf.grammar import AnswerGrammar
from tru_vlm.errors import InvalidRequestError
from tru_vlm.types import GenerationParams


class SamplingError(RuntimeError):
    """A row's logits are not finite, so it has no next token."""


@dataclass(slots=True, eq=False)
class RowSampler:
    """One row's rules and state.

    Attributes:
        params: the rules.
        generator: gives the row's uniform numbers.
        ahead: those that were drawn for its next tokens.
        seen: bool, (vocabulary,): tokens of prompt and answer; None unless a repetition penalty needs it.
        bias: float32, (vocabulary,): what is added to logits; None where nothing is.
        cost: float32, (vocabulary,): what presence and frequency penalty take from logits; None where nothing.
        counts: how often the answer has each of its tokens; kept for ``cost`` only.
        grammar: what the answer's text must satisfy; None where it is free.
    """

    params: GenerationParams
    generator: random.Random = field(repr=False)
    ahead: deque[float] = field(default_factory=deque, repr=False)
    seen: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    cost: torch.Tensor | None = None
    counts: Counter[int] = field(default_factory=Counter, repr=False)
    grammar: AnswerGrammar | None = None

    @staticmethod
    def create(
        params: GenerationParams,
        prompt_ids: NDArray[np.int64],
        *,
        vocabulary: int,
        device: str,
        grammar: AnswerGrammar | None = None,
    ) -> RowSampler:
        """A row's sampler; without a seed one is drawn."""
        row = RowSampler(params, random.Random(params.seed), grammar=grammar)  # noqa: S311 - sampling, not secrets
        if params.repetition_penalty != 1.0:
            row.seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            row.seen[torch.from_numpy(prompt_ids).to(device)] = True
        if params.logit_bias:
            ids, values = zip(*params.logit_bias, strict=True)
            row.bias = torch.zeros(vocabulary, device=device)
            row.bias[torch.tensor(ids, device=device)] = torch.tensor(values, device=device)
        if params.presence_penalty or params.frequency_penalty:
            row.cost = torch.zeros(vocabulary, device=device)
        return row

    def uniform(self, place: int) -> float:
        """The uniform number for its next token but ``place``; asking again changes nothing."""
        while len(self.ahead) <= place:
            self.ahead.append(self.generator.random())
        return self.ahead[place]

    def accept(self, token: int) -> None:
        """The row's answer goes on with this token.

        Raises:
            InvalidRequestError: if its grammar cannot be followed further.
        """
        if self.ahead:
            self.ahead.popleft()
        if self.seen is not None:
            self.seen[token] = True
        if self.cost is not None:
            self.counts[token] += 1
            self.cost[token] = self.params.presence_penalty + self.params.frequency_penalty * self.counts[token]
        if self.grammar is not None:
            self.grammar.accept(token)

    @property
    def is_complete(self) -> bool:
        """Whether the row's grammar leaves nothing to say."""
        return self.grammar is not None and self.grammar.is_complete


def sample(logits: torch.Tensor, rows: Sequence[RowSampler]) -> list[int | SamplingError | InvalidRequestError]:
    """The next token of each row.

    Bias, repetition penalty, presence and frequency penalty, grammar, temperature, min-p, top-k and top-p apply in
    this order, which is vLLM's.  So it is in Transformers' ``generate``, except that min-p comes last there.

    Args:
        logits: float32, (R, vocabulary); overwritten where rows have a bias, a penalty or a grammar.
        rows: R samplers; one stands several times in succession for its next several tokens, which its rules must
            allow: no penalty and no grammar.

    Returns:
        R tokens, or the error of a row whose logits are not finite or whose grammar cannot be followed.
    """
    _penalise(logits, rows)
    refused = _constrain(logits, rows)
    highest, greedy = logits.max(dim=-1)
    tokens: list[int] = greedy.tolist()
    for indices in _groups(rows):
        drawn = _draw(logits[indices], [rows[i] for i in indices])
        for index, token in zip(indices, drawn, strict=True):
            tokens[index] = token
    finite = [
        token if math.isfinite(value) else SamplingError("the row's logits are not finite")
        for token, value in zip(tokens, highest.tolist(), strict=True)
    ]
    return [refused.get(index, token) for index, token in enumerate(finite)]


def _constrain(logits: torch.Tensor, rows: Sequence[RowSampler]) -> dict[int, InvalidRequestError]:
    """Leave to each row what its grammar allows, in place, with one copy to the device for all of them.

    On CUDA the model's kernels are still running while the host finds out what is allowed.

    Returns:
        the errors of rows whose grammar cannot be followed, by index; their logits stay as they are.
    """
    masks: dict[int, NDArray[np.int32]] = {}
    refused: dict[int, InvalidRequestError] = {}
    for index, row in enumerate(rows):
        if row.grammar is not None:
            try:
                masks[index] = row.grammar.allowed()
            except InvalidRequestError as error:
                refused[index] = error
    if masks:
        words = torch.from_numpy(np.stack(list(masks.values()))).to(logits.device)
        bits = (words[:, :, None] >> torch.arange(32, dtype=torch.int32, device=logits.device)) & 1
        forbidden = bits.flatten(1)[:, : logits.shape[-1]] == 0
        indices = torch.tensor(list(masks), device=logits.device)
        logits[indices] = logits[indices].masked_fill(forbidden, -math.inf)
    return refused


def _groups(rows: Sequence[RowSampler]) -> list[list[int]]:
    """Indices of the rows that draw: those that need sorted logits, and those that do not.

    Which group a row is in depends on its own rules only, and so does its result.
    """
    drawing = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    is_sorted = [rows[i].params.top_k > 0 or rows[i].params.top_p < 1 for i in drawing]
    groups = [[i for i, flag in zip(drawing, is_sorted, strict=True) if flag is wanted] for wanted in (False, True)]
    return [group for group in groups if group]


def _penalise(logits: torch.Tensor, rows: Sequence[RowSampler]) -> None:
    """Add each row's bias and make what it has said less likely, in place: each rule once for all rows that have it."""
    biased = {index: row.bias for index, row in enumerate(rows) if row.bias is not None}
    if biased:
        logits[list(biased)] += torch.stack(list(biased.values()))
    repeating = {index: row.seen for index, row in enumerate(rows) if row.seen is not None}
    if repeating:  # Keskar et al., 2019, CTRL, section 4.1
        part = logits[list(repeating)]
        penalty = torch.tensor([[rows[index].params.repetition_penalty] for index in repeating], device=logits.device)
        penalised = torch.where(part > 0, part / penalty, part * penalty)
        logits[list(repeating)] = torch.where(torch.stack(list(repeating.values())), penalised, part)
    costly = {index: row.cost for index, row in enumerate(rows) if row.cost is not None}
    if costly:
        logits[list(costly)] -= torch.stack(list(costly.values()))


def _draw(logits: torch.Tensor, rows: Sequence[RowSampler]) -> list[int]:
    """One draw per row from (R, vocabulary) logits; the rows are of one group."""
    device = logits.device
    params = [row.params for row in rows]
    logits = logits / torch.tensor([[p.temperature] for p in params], device=device)
    nums_before: Counter[int] = Counter()
    numbers = []
    for row in rows:
        numbers.append([row.uniform(nums_before[id(row)])])
        nums_before[id(row)] += 1
    uniform = torch.tensor(numbers, device=device)
    if any(p.min_p > 0 for p in params):
        least = logits.amax(dim=-1, keepdim=True) + torch.tensor([[_log(p.min_p)] for p in params], device=device)
        logits = logits.masked_fill(logits < least, -math.inf)
    if params[0].top_k == 0 and params[0].top_p >= 1:
        return _pick(logits.softmax(dim=-1), uniform)[:, 0].tolist()
    logits, order = logits.sort(dim=-1, descending=True)
    vocabulary = logits.shape[-1]
    top_k = torch.tensor([[p.top_k or vocabulary] for p in params], device=device)
    top_p = torch.tensor([[p.top_p] for p in params], device=device)
    logits = logits.masked_fill(torch.arange(vocabulary, device=device) >= top_k, -math.inf)
    probabilities = logits.softmax(dim=-1)
    # A token stays while those before it have less than top_p together, so the likeliest always stays.
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return order.gather(1, _pick(probabilities, uniform))[:, 0].tolist()


def _log(part: float) -> float:
    return math.log(part) if part > 0 else -math.inf


def _pick(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Index of the weight in which uniform x total lies; (R, vocabulary), (R, 1) to (R, 1)."""
    cumulated = weights.cumsum(dim=-1)
    total = cumulated[:, -1:].contiguous()
    index = torch.searchsorted(cumulated, uniform * total, right=True)
    # Rounding may put the point at the very end; the last index with weight is meant.
    return torch.minimum(index, torch.searchsorted(cumulated, total))
