"""The sampler against the distributions that Transformers' processors give, and its independence of neighbours."""

import random

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tru_vlm.engine.hf.sampling import RowSampler, SamplingError, _pick, sample
from tru_vlm.types import GenerationParams

VOCABULARY = 40
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
PROMPT = np.array([1, 5, 5, 9])


def sampler(prompt=PROMPT, **params):
    rules = GenerationParams(max_tokens=1, **({"temperature": 1.0} | params))
    return RowSampler.create(rules, prompt, vocabulary=VOCABULARY, device="cpu")


def draw(logits, rows):
    """The next token of each row, which is then forgotten but for the random numbers that it took."""
    drawn = sample(logits, rows)
    for row in rows:
        row.ahead.clear()
    return drawn


def tokens(row, count):
    return [draw(LOGITS[None].clone(), [row])[0] for _ in range(count)]


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7},
        {"temperature": 1.5, "top_k": 5},
        {"top_p": 0.6},
        {"top_k": 12, "top_p": 0.8, "temperature": 2.0},
        {"repetition_penalty": 1.8, "top_p": 0.9},
        {"min_p": 0.1, "temperature": 1.5},
        {"min_p": 0.3, "top_k": 30, "top_p": 0.8},
    ],
)
def test_drawn_as_often_as_transformers_says(params):
    expected = transformers_probabilities(**params)
    row, draws, at_once = sampler(seed=1, **params), 6000, 200
    drawn = [token for _ in range(draws // at_once) for token in draw(LOGITS.repeat(at_once, 1), [row] * at_once)]
    counts = np.bincount(drawn, minlength=VOCABULARY)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    assert np.abs(counts / draws - expected).max() < 0.02


def transformers_probabilities(
    *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, prompt=PROMPT, logits=LOGITS
):
    processors = LogitsProcessorList()
    processors += [RepetitionPenaltyLogitsProcessor(repetition_penalty)] if repetition_penalty != 1 else []
    processors += [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    processors += [MinPLogitsWarper(min_p)] if min_p else []  # where vLLM has it, not where generate() has it
    processors += [TopKLogitsWarper(top_k)] if top_k else []
    processors += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return processors(torch.from_numpy(prompt)[None], logits[None].clone())[0].softmax(-1).numpy()


def test_temperature_zero_takes_the_likeliest():
    assert tokens(sampler(temperature=0.0), 3) == [int(LOGITS.argmax())] * 3


def test_top_k_one_and_tiny_top_p_take_the_likeliest():
    for params in ({"top_k": 1}, {"top_p": 1e-6}):
        assert tokens(sampler(temperature=2.0, **params), 20) == [int(LOGITS.argmax())] * 20


def test_neighbours_do_not_change_a_row():
    alone = tokens(sampler(seed=3, top_p=0.9), 30)
    row = sampler(seed=3, top_p=0.9)
    others = [
        sampler(temperature=0.0),
        sampler(seed=9),
        sampler(seed=4, top_k=3, min_p=0.3),
        sampler(repetition_penalty=2.0),
        sampler(logit_bias=((3, 9.0),), presence_penalty=1.0),
    ]
    mixed = [draw(LOGITS.repeat(6, 1), [others[0], others[1], row, *others[2:]])[2] for _ in range(30)]
    assert mixed == alone


def test_every_row_of_a_mixed_batch_has_the_distribution_of_its_own_rules():
    """A row for each parameter, over prompts and logits of their own: Transformers' processors say what is due."""
    rules = [
        {"temperature": 0.7},
        {"top_k": 4},
        {"top_p": 0.5},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6, "temperature": 1.3, "top_k": 9, "top_p": 0.7},
        {"min_p": 0.2},
        {"min_p": 0.05, "top_p": 0.9},
        {},
    ]
    prompts = [np.random.default_rng(index).integers(0, VOCABULARY, 6) for index in range(len(rules))]
    logits = torch.randn(len(rules), VOCABULARY, generator=torch.Generator().manual_seed(1)) * 2
    rows = [sampler(prompts[index], seed=index, **params) for index, params in enumerate(rules)]
    draws = 3000
    counts = np.zeros((len(rules), VOCABULARY))
    for _ in range(draws):
        counts[range(len(rules)), draw(logits.clone(), rows)] += 1
    for row, params in enumerate(rules):
        expected = transformers_probabilities(**params, prompt=prompts[row], logits=logits[row])
        assert set(np.flatnonzero(counts[row])) <= set(np.flatnonzero(expected)), params
        assert np.abs(counts[row] / draws - expected).max() < 0.035, params


def test_repetition_penalty_equals_transformers_token_by_token_in_a_mix():
    penalty, said = 1.3, list(PROMPT)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    row = sampler(temperature=0.0, repetition_penalty=penalty)
    neighbours = [sampler(temperature=0.0), sampler(seed=1), sampler(temperature=0.0, repetition_penalty=3.0)]
    for step in range(30):
        logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(step)) / 4 + LOGITS
        expected = int(processor(torch.tensor([said]), logits[None].clone()).argmax())
        token = sample(logits.repeat(4, 1), [neighbours[0], row, *neighbours[1:]])[1]
        assert token == expected
        row.accept(token)
        said.append(token)
    assert len(set(said[len(PROMPT) :])) > 1


def penalised(logits, prompt, answer, *, repetition=1.0, presence=0.0, frequency=0.0, bias=()):
    """OpenAI's definition, token by token, after bias and CTRL's penalty: what vLLM's sampler does."""
    result = logits.tolist()
    for token, value in bias:
        result[token] += value
    for token in {*prompt, *answer}:
        result[token] = result[token] / repetition if result[token] > 0 else result[token] * repetition
    for token in range(len(result)):
        result[token] -= frequency * answer.count(token) + presence * (token in answer)
    return result


def test_bias_and_penalties_equal_the_definition_in_a_mix():
    """What a row has left after each step, by temperature 0 and by what a neighbour's rules must not touch."""
    rules = [
        {},
        {"presence": 1.5},
        {"frequency": 0.7},
        {"presence": -0.4, "frequency": -0.2},
        {"bias": ((2, 3.5), (39, -100.0), (5, 0.25))},
        {"bias": ((7, -3.0), (1, 4.0)), "repetition": 1.4, "presence": 0.6, "frequency": 0.3},
        {"repetition": 0.8, "frequency": 2.0},
    ]
    names = {"presence": "presence_penalty", "frequency": "frequency_penalty", "repetition": "repetition_penalty"}
    rows = [
        sampler(temperature=0.0, **{names.get(name, "logit_bias"): value for name, value in rule.items()})
        for rule in rules
    ]
    answers = [[] for _ in rules]
    for step in range(40):
        logits = torch.randn(len(rules), VOCABULARY, generator=torch.Generator().manual_seed(step)) / 3 + LOGITS
        given = logits.clone()
        drawn = sample(given, rows)
        for index, (rule, row, token) in enumerate(zip(rules, rows, drawn, strict=True)):
            expected = penalised(logits[index], PROMPT.tolist(), answers[index], **rule)
            np.testing.assert_allclose(given[index], expected, rtol=1e-5, atol=1e-5)
            assert token == int(np.argmax(expected))
            row.accept(token)
            answers[index].append(token)
    assert len(set(answers[2])) > len(set(answers[0]))


def test_seeds_reproduce_and_differ():
    assert tokens(sampler(seed=1), 20) == tokens(sampler(seed=1), 20)
    assert tokens(sampler(seed=1), 20) != tokens(sampler(seed=2), 20)
    assert tokens(sampler(seed=None), 20) != tokens(sampler(seed=None), 20)


def test_the_penalty_follows_the_answer():
    row = sampler(temperature=0.0, repetition_penalty=1e6, prompt=PROMPT)
    said = []
    for _ in range(5):
        token = sample(LOGITS[None].abs().clone(), [row])[0]
        row.accept(token)
        said.append(token)
    assert len(set(said)) == 5


def test_logits_that_are_not_finite_fail_their_row_only():
    logits = LOGITS.repeat(3, 1)
    logits[1, 4] = float("nan")
    first, broken, last = sample(logits, [sampler(temperature=0.0), sampler(seed=1), sampler(temperature=0.0)])
    assert isinstance(broken, SamplingError)
    assert first == last == int(LOGITS.argmax())


def test_pick_never_takes_a_weight_of_zero():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]])
    generator = random.Random(0)
    points = [0.0, 0.49999, 0.5, 0.999999, 1.0, *(generator.random() for _ in range(50))]
    assert {int(_pick(weights, torch.tensor([[point]]))) for point in points} == {1, 3}


@pytest.mark.parametrize("params", [{}, {"top_p": 0.8}, {"top_k": 9, "min_p": 0.05}])
def test_a_row_draws_its_next_tokens_at_once_or_one_by_one_and_what_is_dropped_is_drawn_again(params):
    expected, row = [], sampler(seed=5, **params)
    for _ in range(60):
        expected += sample(LOGITS[None].clone(), [row])
        row.accept(expected[-1])
    row, other, got = sampler(seed=5, **params), sampler(seed=6), []
    while len(got) < 60:
        at_once = 1 + len(got) % 4
        drawn = sample(LOGITS.repeat(at_once + 1, 1), [other, *[row] * at_once])[1:]
        assert sample(LOGITS[None].clone(), [row]) == drawn[:1], "asking again changes nothing"
        for token in drawn[: 1 + at_once // 2]:
            row.accept(token)
            got.append(token)
    assert got[:60] == expected
