"""Equal keys mean equal keys and values: what a block's key depends on, and what not."""

import dataclasses

import numpy as np
import pytest
from engine_helpers import image, request, video

from tru_vlm.engine.hf.block_chain import BlockChain
from tru_vlm.processor.prompt import MediaLayout, Prompt, build_prompt

SIZE = 4


def prompt_of(profile, item) -> Prompt:
    layouts = [MediaLayout(m.kind, len(m.frames), *m.frames.shape[2:], m.timestamps_seconds) for m in item.media]
    return build_prompt(profile, item.messages, layouts)


def keys(profile, item, size=SIZE):
    return BlockChain(prompt_of(profile, item), item.media, size).keys


def num_equal(one, two):
    """Length of the common beginning; behind it nothing may be equal."""
    count = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    assert not set(one[count:]) & set(two[count:])
    return count


def test_one_key_per_full_block_and_all_different(profile):
    item = request("a", video(1, 6))
    assert len(keys(profile, item)) == prompt_of(profile, item).num_tokens // SIZE
    assert len(set(keys(profile, item))) == len(keys(profile, item))
    assert keys(profile, item) == keys(profile, dataclasses.replace(item, id="b"))


def test_other_words_behind_the_video_leave_the_keys_before_them(profile):
    one, two = request("a", video(1, 6), prompt="What?"), request("a", video(1, 6), prompt="When?")
    tokens = zip(prompt_of(profile, one).token_ids, prompt_of(profile, two).token_ids, strict=False)
    common = next(i for i, (a, b) in enumerate(tokens) if a != b)
    assert num_equal(keys(profile, one), keys(profile, two)) == common // SIZE


@pytest.mark.parametrize("kind", ["content", "grid"])
def test_another_medium_changes_the_keys_from_its_first_visual_token_on(kind, profile):
    medium = video(1, 6, 64, 96)
    same_tokens = dataclasses.replace(
        medium,
        content_key=medium.content_key if kind == "grid" else "other",
        frames=medium.frames.reshape(6, 3, 96, 64) if kind == "grid" else medium.frames,
    )
    one, two = request("a", medium), request("a", same_tokens)
    prompt = prompt_of(profile, one)
    assert np.array_equal(prompt.token_ids, prompt_of(profile, two).token_ids)
    assert num_equal(keys(profile, one), keys(profile, two)) == prompt.spans[0].starts[0] // SIZE


def test_two_media_of_equal_size_are_told_apart_by_their_order(profile):
    first, second = image(1), image(2)
    one, two = request("a", first, second), request("a", second, first)
    start = prompt_of(profile, one).spans[0].starts[0]
    assert num_equal(keys(profile, one), keys(profile, two)) == start // SIZE


@pytest.mark.parametrize("size", [1, 4, 7])
def test_an_answers_tokens_count_like_a_prompts(size, profile):
    item = request("a", video(1))
    prompt = prompt_of(profile, item)
    added = [11, 12, 13, 14, 15, 16, 17, 18, 19]
    longer = dataclasses.replace(prompt, token_ids=np.concatenate([prompt.token_ids, np.asarray(added)]))
    chain = BlockChain(prompt, item.media, size)
    for token in added:
        chain.append(token)
    assert chain.keys == BlockChain(longer, item.media, size).keys


def test_a_placeholder_in_an_answer_is_no_visual_token(profile):
    item = request("a", video(1))
    prompt = prompt_of(profile, item)
    first = int(prompt.spans[0].starts[0])
    before = Prompt(prompt.token_ids[:first], ())
    chain = BlockChain(before, (), 1)
    chain.append(int(prompt.token_ids[first]))
    assert num_equal(chain.keys, BlockChain(prompt, item.media, 1).keys) == first
