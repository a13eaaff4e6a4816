"""The eight orientations."""

import itertools

import pytest
import torch

from qwen_vl_utils.display import DisplayTransform, mp4_display_transform

EIGHT = [
    DisplayTransform(*entries)
    for entries in itertools.product((-1, 0, 1), repeat=4)
    if abs(entries[0] * entries[3] - entries[1] * entries[2]) == 1 and sum(map(abs, entries)) == 2
]
PICTURE = torch.arange(3 * 4 * 6).view(3, 4, 6)


def test_there_are_eight():
    assert len(EIGHT) == 8


@pytest.mark.parametrize("degrees", [0, 90, -90, 180, -180, 270])
def test_rotation_is_torch_rot90(degrees):
    turned = DisplayTransform.from_rotation(degrees).apply(PICTURE)
    assert torch.equal(turned, torch.rot90(PICTURE, (degrees // 90) % 4, (1, 2)))


@pytest.mark.parametrize("first", EIGHT)
@pytest.mark.parametrize("whole", EIGHT)
def test_what_is_left_completes_what_was_done(first, whole):
    rest = whole.after(first)
    assert torch.equal(rest.apply(first.apply(PICTURE)), whole.apply(PICTURE))


def test_mirroring_is_left_to_right():
    mirror = DisplayTransform.from_matrix(-1, 0, 0, 1)
    assert mirror.is_mirrored
    assert torch.equal(mirror.apply(PICTURE), PICTURE.flip(2))


@pytest.mark.parametrize("turn", EIGHT)
def test_rotation_degrees_and_mirroring_describe_all_of_it(turn):
    clockwise = DisplayTransform.from_rotation(-turn.rotation_degrees)
    mirror = DisplayTransform.from_matrix(-1, 0, 0, 1) if turn.is_mirrored else DisplayTransform()
    assert torch.equal(clockwise.apply(mirror.apply(PICTURE)), turn.apply(PICTURE))


def test_a_degenerate_matrix_is_the_identity():
    assert DisplayTransform.from_matrix(0, 0, 0, 0).is_identity


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0\x08moov",
        b"\0\0\0\x01moov\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\0\0\0\x20moov\0\0\0\x18trak\0\0\0\x10tkhd\0\0\0\0",
        b"\0\0\0\x04moov" * 9,
        b"\0" * 64,
    ],
)
def test_malformed_boxes_are_no_error(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    assert mp4_display_transform(path, 0) is None
