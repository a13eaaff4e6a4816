"""Features by content: found, encoded once, bounded, the least recently used given up first."""

import pytest
import torch
from engine_helpers import video

from tru_vlm.engine.hf.feature_cache import FeatureCache
from tru_vlm.engine.hf.vision import VisualFeatures

PATCH_BYTES = 2 * (3 + 1) * 4  # 2 visual tokens; 3 numbers each, and 1 in the only deepstack layer
ONE, TWO = video(1), video(2)


class Tower:
    """Stands for the tower: features tell their medium and temporal patch."""

    def __init__(self):
        self.calls = []

    def encode(self, media, start, stop):
        self.calls.append((media.content_key, start, stop))
        patches = torch.arange(start, stop).repeat_interleave(2)[:, None].float()
        marks = torch.full_like(patches, float(media.content_key.split("-")[1]))
        return VisualFeatures(torch.cat([marks, patches, patches], dim=1), (patches,))


def cache_of(num_patches):
    tower = Tower()
    return FeatureCache(tower, num_patches * PATCH_BYTES), tower


def check(features, media, start, stop):
    expected = Tower().encode(media, start, stop)
    assert torch.equal(features.embeddings, expected.embeddings)
    assert torch.equal(features.deepstack[0], expected.deepstack[0])


def test_only_missing_patches_are_encoded_neighbours_at_once():
    cache, tower = cache_of(100)
    for start, stop in [(2, 4), (0, 8), (0, 8), (1, 3)]:
        check(cache.encode(ONE, start, stop), ONE, start, stop)
    assert [call[1:] for call in tower.calls] == [(2, 4), (0, 2), (4, 8)]
    check(cache.encode(TWO, 0, 2), TWO, 0, 2)
    assert (cache.num_queries, cache.num_hits) == (2 + 8 + 8 + 2 + 2, 2 + 8 + 2)
    assert cache.used_bytes == 10 * PATCH_BYTES


def test_the_least_recently_used_goes_first():
    cache, tower = cache_of(4)
    cache.encode(ONE, 0, 4)
    cache.encode(ONE, 0, 1)  # used again
    cache.encode(TWO, 0, 2)
    assert cache.num_evictions == 2
    assert cache.used_bytes == 4 * PATCH_BYTES
    tower.calls.clear()
    cache.encode(ONE, 0, 1)
    cache.encode(TWO, 0, 2)
    cache.encode(ONE, 3, 4)
    assert tower.calls == []
    cache.encode(ONE, 1, 2)
    assert [call[1:] for call in tower.calls] == [(1, 2)]


@pytest.mark.parametrize("num_patches", [0, 0.5, 1, 3, 7])
def test_the_bound_holds_and_what_is_given_out_is_right_whatever_is_evicted(num_patches):
    cache, _ = cache_of(num_patches)
    for media, start, stop in [(ONE, 0, 5), (ONE, 2, 9), (TWO, 0, 1), (ONE, 0, 9), (TWO, 0, 3), (ONE, 4, 5)]:
        check(cache.encode(media, start, stop), media, start, stop)
        assert cache.used_bytes <= num_patches * PATCH_BYTES
        assert cache.used_bytes == sum(entry.num_bytes for entry in cache._entries.values())


def test_an_entry_has_memory_of_its_own():
    """So that the bytes that are counted are the bytes that are held."""
    cache, _ = cache_of(100)
    cache.encode(ONE, 0, 50)
    entry = next(iter(cache._entries.values()))
    assert entry.embeddings.untyped_storage().nbytes() == entry.embeddings.nbytes
    assert entry.deepstack[0].untyped_storage().nbytes() == entry.deepstack[0].nbytes


def test_a_discarded_medium_is_encoded_again_and_the_others_are_not():
    cache, tower = cache_of(100)
    cache.encode(ONE, 0, 3)
    cache.encode(TWO, 0, 3)
    cache.discard(ONE)
    assert cache.used_bytes == 3 * PATCH_BYTES
    tower.calls.clear()
    cache.encode(ONE, 0, 3)
    cache.encode(TWO, 0, 3)
    assert [call[0] for call in tower.calls] == [ONE.content_key]
