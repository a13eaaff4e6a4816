"""The drop-in face."""

import numpy as np
import pytest
import torch
from PIL import Image
from qvl_clips import Clip, numbers, picture

import qwen_vl_utils
from qwen_vl_utils import (
    ConversationError,
    FrameCountError,
    SizeError,
    VideoError,
    extract_vision_info,
    fetch_video,
    process_vision_info,
)
from qwen_vl_utils import fetch as fetch_module

CLIP = Clip("drop.mp4", height=192, width=320)


def test_all_four_shapes_of_the_result(make_clip):
    ele = {"video": str(make_clip(CLIP))}
    video = fetch_video(ele)
    assert video.dtype == torch.float32
    assert video.shape[0] == 4
    assert torch.equal(video, video.round().clamp(0, 255))
    same, rate = fetch_video(ele, return_video_sample_fps=True)
    assert torch.equal(same, video)
    assert rate == pytest.approx(4 / 40 * 25)
    _, metadata = fetch_video(ele, return_video_metadata=True)
    (_, again), _ = fetch_video(ele, return_video_sample_fps=True, return_video_metadata=True)
    assert metadata == again
    assert dict(metadata) == {
        "fps": 25.0,
        "frames_indices": [0, 13, 26, 39],
        "total_num_frames": 40,
        "video_backend": metadata["video_backend"],
    }
    assert metadata.timestamps == pytest.approx([0, 0.52, 1.04, 1.56])


def test_metadata_fits_the_class_of_transformers(make_clip):
    video_utils = pytest.importorskip("transformers.video_utils")
    _, metadata = fetch_video({"video": str(make_clip(CLIP))}, return_video_metadata=True)
    assert video_utils.VideoMetadata(**metadata).frames_indices == [0, 13, 26, 39]


def test_uint8_is_the_same_in_a_quarter(make_clip):
    ele = {"video": str(make_clip(CLIP)), "nframes": 8}
    assert torch.equal(fetch_video(ele, dtype=torch.uint8).float(), fetch_video(ele))


def test_total_num_frames_counts_the_span(make_clip):
    ele = {"video": f"file://{make_clip(CLIP)}", "video_start": 0.4, "video_end": 1.2, "nframes": 4}
    (video, metadata), rate = fetch_video(ele, 14, True, True)
    assert metadata["total_num_frames"] == 21
    assert metadata["frames_indices"] == [10, 17, 23, 30]
    assert rate == pytest.approx(4 / 21 * 25)
    assert numbers(video) == metadata["frames_indices"]


def test_short_clips(make_clip):
    one = str(make_clip(Clip("one.mp4", num_frames=1)))
    video, metadata = fetch_video({"video": one}, return_video_metadata=True)
    assert (len(video), metadata["frames_indices"]) == (2, [0, 0])
    path = str(make_clip(CLIP))
    with pytest.raises(FrameCountError, match="2 to 40"):
        fetch_video({"video": path, "nframes": 50})
    assert len(fetch_video({"video": path, "nframes": 50, "clamp_short": True})) == 40
    with pytest.raises(AssertionError):
        fetch_video({"video": path, "fps": 1, "nframes": 2})
    assert len(fetch_video({"video": path, "fps": 0})) == 4


def test_errors_are_value_errors_with_the_cause(tmp_path):
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"rubbish" * 99)
    with pytest.raises(ValueError, match=r"bad\.mp4: open") as caught:
        fetch_video({"video": str(path)})
    assert isinstance(caught.value, VideoError)
    with pytest.raises(KeyError):
        fetch_video({})
    with pytest.raises(ConversationError, match="int"):
        fetch_video({"video": 3})


def test_a_forced_reader_is_used(make_clip, monkeypatch):
    monkeypatch.setattr(fetch_module, "FORCE_QWENVL_VIDEO_READER", "pyav")
    _, metadata = fetch_video({"video": str(make_clip(CLIP))}, return_video_metadata=True)
    assert metadata["video_backend"] == "pyav"
    monkeypatch.setattr(fetch_module, "FORCE_QWENVL_VIDEO_READER", "nonsense")
    with pytest.raises(VideoError, match="nonsense"):
        fetch_video({"video": str(make_clip(CLIP))})


def test_threads_come_from_the_environment(make_clip, monkeypatch):
    seen = []
    original = fetch_module.read_video
    monkeypatch.setattr(fetch_module, "read_video", lambda *a, **k: seen.append(k["num_threads"]) or original(*a, **k))
    fetch_video({"video": str(make_clip(CLIP))})
    monkeypatch.setenv("TORCHCODEC_NUM_THREADS", "1")
    fetch_video({"video": str(make_clip(CLIP))})
    assert seen == [8, 1]


def frames(count=5, height=192, width=320):
    return [Image.fromarray(picture(i, height, width)) for i in range(count)]


def test_a_list_of_frames_is_padded_to_even():
    (video, metadata), rate = fetch_video({"video": frames(), "sample_fps": 4.0, "raw_fps": 30}, 14, True, True)
    assert numbers(video) == [0, 1, 2, 3, 4, 4]
    assert rate == 4.0
    assert dict(metadata) == {"fps": 30, "frames_indices": [0, 1, 2, 3, 4, 5], "total_num_frames": 6 / 4.0 * 30}
    assert metadata.timestamps == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]
    plain = fetch_video({"video": tuple(frames(4))}, return_video_metadata=True)[1]
    assert (plain["fps"], plain["total_num_frames"]) == (2.0, 4.0)


def test_a_list_of_frames_errs_clearly():
    with pytest.raises(FrameCountError, match="empty"):
        fetch_video({"video": []})
    with pytest.raises(SizeError, match="agree in size"):
        fetch_video({"video": [*frames(1), *frames(1, 300, 300)]})


def conversation(make_clip):
    return [
        {"role": "system", "content": "plain text"},
        {
            "role": "user",
            "content": [
                {"type": "video", "video": str(make_clip(CLIP)), "nframes": 4},
                {"type": "image", "image": frames(1)[0]},
                {"type": "text", "text": "what is this?"},
                {"image_url": frames(1)[0]},
            ],
        },
    ]


def test_extract_finds_the_very_objects(make_clip):
    messages = conversation(make_clip)
    content = messages[1]["content"]
    for given in (messages, [messages]):
        found = extract_vision_info(given)
        assert [id(e) for e in found] == [id(content[0]), id(content[1]), id(content[3])]
    assert len(extract_vision_info([messages, messages])) == 6
    assert extract_vision_info([]) == []


def test_process_returns_what_the_processors_take(make_clip):
    messages = conversation(make_clip)
    images, videos = process_vision_info(messages)
    assert (len(images), len(videos)) == (2, 1)
    images, videos, kwargs = process_vision_info(messages, return_video_kwargs=True)
    assert kwargs == {"do_sample_frames": False, "fps": [4 / 40 * 25]}
    _, videos, kwargs = process_vision_info(
        messages, return_video_kwargs=True, return_video_metadata=True, image_patch_size=16
    )
    assert kwargs == {"do_sample_frames": False}
    video, metadata = videos[0]
    assert video.shape[2] % 32 == 0
    assert metadata["frames_indices"] == [0, 13, 26, 39]
    text_only = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert process_vision_info(text_only, return_video_kwargs=True) == (
        None,
        None,
        {"do_sample_frames": False, "fps": []},
    )


def test_an_element_without_content_is_named():
    with pytest.raises(ConversationError, match="video"):
        process_vision_info([{"role": "user", "content": [{"type": "video"}]}])


def test_an_image_wins_over_a_video():
    element = {"image": frames(1)[0], "video": "nothing.mp4"}
    images, videos = process_vision_info([{"role": "user", "content": [element]}])
    assert (len(images), videos) == (1, None)


def test_the_public_names_are_these():
    interface = {
        *("smart_resize", "smart_nframes", "calculate_video_frame_range", "fetch_image", "fetch_video"),
        *("extract_vision_info", "process_vision_info", "MAX_RATIO", "SPATIAL_MERGE_SIZE", "IMAGE_MIN_TOKEN_NUM"),
        *("IMAGE_MAX_TOKEN_NUM", "VIDEO_MIN_TOKEN_NUM", "VIDEO_MAX_TOKEN_NUM", "FPS", "FRAME_FACTOR"),
        *("FPS_MIN_FRAMES", "FPS_MAX_FRAMES", "MODEL_SEQ_LEN", "FORCE_QWENVL_VIDEO_READER"),
    }
    assert interface <= set(qwen_vl_utils.__all__)
    assert len(set(qwen_vl_utils.__all__)) == len(qwen_vl_utils.__all__)
    for name in qwen_vl_utils.__all__:
        assert hasattr(qwen_vl_utils, name)


def test_pictures_of_a_list_equal_a_direct_resize():
    image = frames(1, 200, 330)[0]
    video = fetch_video({"video": [image, image]}, dtype=torch.uint8)
    first = np.array(image.resize((336, 224)))  # multiples of 56: see fetch._from_frames
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(first).permute(2, 0, 1)[None].float(), tuple(video.shape[2:]), mode="bicubic", antialias=True
    )
    assert torch.equal(video[0], expected[0].round().clamp(0, 255).byte())
