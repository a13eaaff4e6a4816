"""Size arithmetic and the resize kernel."""

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_vl_utils import AspectRatioError, EmptySizeError, PixelBudgetError, smart_resize
from qwen_vl_utils.resize import Arithmetic, resize_into, target_size, video_pixel_budget

sides = st.integers(min_value=1, max_value=6000)
factors = st.sampled_from([28, 32])


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((1080, 1920, 28), (1092, 1932)),
        ((1080, 1920, 32), (1088, 1920)),
        ((70, 70, 28), (56, 56)),  # 2.5 rounds to 2
        ((98, 98, 28), (112, 112)),  # 3.5 rounds to 4
        ((1080, 1920, 28, 100352, 602112), (560, 1008)),
        ((10, 10, 28), (56, 56)),
        ((100, 20000, 28), (112, 19992)),
        ((1, 150, 28, 784, 784), (0, 336)),  # too thin to shrink: 0, as in the interface
    ],
)
def test_smart_resize_equals_the_interface(args, expected):
    assert smart_resize(*args) == expected


def test_errors_name_both_numbers_and_keep_the_interface_types():
    with pytest.raises(PixelBudgetError, match=r"100 is below min_pixels 3136"):
        smart_resize(100, 100, 28, max_pixels=100)
    with pytest.raises(AssertionError):
        smart_resize(100, 100, 28, max_pixels=100)
    with pytest.raises(AspectRatioError, match="200"):
        smart_resize(1, 201, 28)
    with pytest.raises(ZeroDivisionError):
        smart_resize(0, 10, 28)
    with pytest.raises(EmptySizeError):
        smart_resize(10, 0, 28)


def test_ratio_of_exactly_200_is_accepted():
    assert smart_resize(10, 2000, 28)[0] >= 28


@given(height=sides, width=sides, factor=factors)
def test_default_bounds_hold(height, width, factor):
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(AspectRatioError):
            smart_resize(height, width, factor)
        return
    h, w = smart_resize(height, width, factor)
    assert h % factor == 0
    assert w % factor == 0
    assert h * w >= 4 * factor**2
    # Enlarging rounds both sides up, which may pass the upper bound only when the lower one was missed first.
    assert h * w <= 16384 * factor**2


@given(
    height=sides,
    width=sides,
    num_frames=st.integers(1, 400).map(lambda n: 2 * n),
    patch=st.sampled_from([14, 16]),
    low=st.one_of(st.none(), st.integers(0, 10**6)),
    total=st.one_of(st.none(), st.integers(1, 10**9)),
)
def test_a_target_is_never_empty_and_on_the_grid(*, height, width, num_frames, patch, low, total):
    if max(height, width) / min(height, width) > 200:
        return
    size = target_size(height, width, num_frames=num_frames, image_patch_size=patch, min_pixels=low, total_pixels=total)
    assert min(size) >= 2 * patch
    assert all(side % (2 * patch) == 0 for side in size)


def test_video_budget_follows_the_rule():
    assert video_pixel_budget(20, factor=28) == (100352, 602112)
    # total_pixels counts merged frames: 2 of them share one
    assert video_pixel_budget(100, factor=32, total_pixels=20_000_000) == (131072, 400000)
    # never under 1.05 of the minimum ...
    assert video_pixel_budget(100, factor=32, total_pixels=1)[1] == int(131072 * 1.05)
    # ... but for an explicit maximum, which may then be refused
    assert video_pixel_budget(100, factor=32, max_pixels=5)[1] == 5


def test_explicit_sides_count_only_together():
    both = target_size(100, 100, num_frames=4, image_patch_size=14, resized_height=300, resized_width=280)
    assert both == (308, 280)
    one = target_size(100, 100, num_frames=4, image_patch_size=14, resized_height=300)
    assert one == target_size(100, 100, num_frames=4, image_patch_size=14)


def test_resize_is_float_bicubic_rounded_and_clamped_or_nearly():
    frame = torch.randint(0, 256, (3, 90, 121), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.interpolate(frame[None].float(), (64, 96), mode="bicubic", antialias=True)
    for layout in (frame, frame.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        out = torch.zeros((3, 64, 96), dtype=torch.uint8)
        resize_into(layout, out, "float32")
        assert torch.equal(out, expected[0].round().clamp(0, 255).byte())
        resize_into(layout, out, "uint8")
        off = (out.float() - expected[0].round().clamp(0, 255)).abs()
        assert off.max() <= 16, "of noise, whose overshoot is clamped between the two passes"
        assert 0 < off.mean() < 0.25


@pytest.mark.parametrize("arithmetic", get_args(Arithmetic))
def test_a_constant_picture_stays_constant(arithmetic):
    for value in (0, 1, 128, 255):
        out = torch.zeros((3, 64, 64), dtype=torch.uint8)
        resize_into(torch.full((3, 100, 31), value, dtype=torch.uint8), out, arithmetic)
        assert out.unique().tolist() == [value]
