"""Equal to the package on PyPI (0.0.14), which runs under its own interpreter: TRU_ORACLE_PYTHON.

All its answers are fetched by one process. Where its answer is a known fault (section 10 of the rules) the
test says so and checks ours against the bar codes instead.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import random
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qvl_clips import VARIABLE_TIMES, Clip, numbers, picture, write_clip
from support import real_clips

import qwen_vl_utils as ours
from qwen_vl_utils import fetch as fetch_module

WORKER = Path(__file__).with_name("qvl_oracle_worker.py")
ORACLE = os.environ.get("TRU_ORACLE_PYTHON", "")

if not ORACLE and os.environ.get("TRU_CI_STRICT") == "1":
    pytest.fail("TRU_CI_STRICT=1 needs TRU_ORACLE_PYTHON: an interpreter with qwen-vl-utils 0.0.14", pytrace=False)

pytestmark = pytest.mark.skipif(not ORACLE, reason="TRU_ORACLE_PYTHON names no interpreter with qwen-vl-utils 0.0.14")

SIZE = {"height": 192, "width": 320}
CLIPS = {
    clip.name: clip
    for clip in (
        Clip("p_h264.mp4", **SIZE),
        Clip("p_open.mkv", options={"x264-params": "open-gop=1:keyint=10"}, **SIZE),
        Clip("p_hevc.mp4", codec="libx265", **SIZE),
        Clip("p_vp8.webm", codec="libvpx", **SIZE),
        Clip("p_vp9.webm", codec="libvpx-vp9", **SIZE),
        Clip("p_av1.mp4", codec="libsvtav1", bframes=0, **SIZE),
        Clip("p_mpeg4.3gp", codec="mpeg4", bframes=0, **SIZE),
        Clip("p_mpeg4.avi", codec="mpeg4", bframes=0, **SIZE),
        Clip("p_mjpeg.avi", codec="mjpeg", pixel_format="yuvj420p", bframes=0, **SIZE),
        Clip("p_prores.mov", codec="prores_ks", pixel_format="yuv422p10le", bframes=0, **SIZE),
        Clip("p_h264.flv", **SIZE),
        Clip("p_sorenson.flv", codec="flv", bframes=0, **SIZE),
        Clip("p_gif.gif", codec="gif", pixel_format="rgb8", bframes=0, **SIZE),
        Clip("p_frag.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}, **SIZE),
        Clip("p_turn90.mp4", turn=90, **SIZE),
        Clip("p_turn180.mp4", turn=180, **SIZE),
        Clip("p_turn270.mov", turn=-90, **SIZE),
        Clip("p_odd.webm", codec="libvpx-vp9", height=121, width=161),
        Clip("p_444.mp4", height=97, width=161, pixel_format="yuv444p"),
        Clip("p_422.mp4", pixel_format="yuv422p", **SIZE),
        Clip("p_bt709.mp4", options={"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "bt709"}, **SIZE),
        Clip("p_full.mp4", options={"color_range": "pc"}, **SIZE),
        Clip("p_ten.mp4", pixel_format="yuv420p10le", **SIZE),
        Clip("p_tenhevc.mp4", codec="libx265", pixel_format="yuv420p10le", **SIZE),
        Clip("p_interlaced.mp4", options={"x264-params": "tff=1"}, **SIZE),
        Clip("p_ntsc.mp4", fps=Fraction(30000, 1001), **SIZE),
        Clip("p_wide.mp4", height=64, width=1000),
        Clip("p_vfr.mp4", times=tuple(VARIABLE_TIMES), num_frames=60, **SIZE),
        Clip("p_hevc.mov", codec="libx265", **SIZE),
        Clip("p_hevc444.mp4", codec="libx265", height=97, width=161, pixel_format="yuv444p"),
        Clip("p_av1.mkv", codec="libsvtav1", bframes=0, **SIZE),
        Clip("p_tenav1.mp4", codec="libsvtav1", bframes=0, pixel_format="yuv420p10le", **SIZE),
        Clip("p_mpeg4.mp4", codec="mpeg4", **SIZE),
        Clip("p_mpeg4.mkv", codec="mpeg4", bframes=0, **SIZE),
        Clip("p_mjpeg.mov", codec="mjpeg", pixel_format="yuvj420p", bframes=0, **SIZE),
        Clip("p_dnxhr.mov", codec="dnxhd", pixel_format="yuv422p", bframes=0, options={"profile": "dnxhr_lb"}, **SIZE),
        Clip("p_alpha.mov", codec="prores_ks", pixel_format="yuva444p10le", bframes=0, **SIZE),
        Clip("p_ffv1.mkv", codec="ffv1", bframes=0, **SIZE),
        Clip("p_vp8.ogv", codec="libvpx", **SIZE),
        Clip("p_live.webm", codec="libvpx", container_options={"live": "1"}, **SIZE),
        Clip("p_h264.ts", **SIZE),
        Clip("p_mpeg2.ts", codec="mpeg2video", **SIZE),
        Clip("p_turn90.mkv", turn=90, **SIZE),
        Clip("p_grey.mp4", pixel_format="gray", **SIZE),
        Clip("p_sar.mp4", options={"x264-params": "sar=4/3"}, **SIZE),
        Clip("p_small.mp4", height=32, width=48),
        Clip("p_tall.mp4", height=960, width=64),
        Clip("p_fast.mp4", fps=Fraction(120), num_frames=120, **SIZE),
        Clip("p_late.mkv", times=tuple(10 + i / 25 for i in range(40)), **SIZE),
        Clip("p_cut_at_key.mp4", cut=(12, 20), **SIZE),
        Clip("p_cut.mp4", cut=(7, 20), **SIZE),
    )
}
# Decoders and converters honestly differ here; tolerance of section 11.
VIDEO_SUFFIXES = ("mp4", "mov", "mkv", "webm", "gif")
LOOSE = {
    "tc_h264_10bit.mp4",
    "p_ten.mp4",
    "p_tenhevc.mp4",
    "p_tenav1.mp4",
    "p_interlaced.mp4",
    "p_prores.mov",
    "p_alpha.mov",
}
# Its indices are right there, its frames are not: its seeks miss in transport streams, and it takes the first frames
# behind an edit list's cut from the next key frame.
OTHER_FRAMES = {"p_h264.ts", "p_mpeg2.ts", "p_cut.mp4"}
OPTIONS = {
    "default": {},
    "nframes": {"nframes": 10},
    "rate": {"fps": 4.0, "max_frames": 12, "min_frames": 6, "min_pixels": 64 * 1024},
    "range": {"video_start": 0.33, "video_end": 1.1, "fps": 8},
}
MORE_OPTIONS = {
    "max_pixels": {"max_pixels": 150_000},
    "total_pixels": {"total_pixels": 400_000},
    "both_pixels": {"min_pixels": 4096, "max_pixels": 60_000, "total_pixels": 10**7},
    "resized": {"resized_height": 100, "resized_width": 500},
    "one_side": {"resized_height": 100},
    "start": {"video_start": 0.9},
    "end": {"video_end": 0.9},
    "outside": {"video_start": -3, "video_end": 100},
    "slow": {"fps": 0.5},
    "zero": {"fps": 0},
    "odd": {"nframes": 7},
    "few": {"max_frames": 3},
}


REAL_FOLDER = real_clips()
REAL_VIDEOS = [] if REAL_FOLDER is None else sorted(p for p in REAL_FOLDER.iterdir() if p.suffix[1:] in VIDEO_SUFFIXES)
REAL_OPTIONS = {"few": {"max_frames": 6}, "span": {"video_start": 0.2, "video_end": 0.9, "fps": 6.0}}

NUM_DRAWN = 40


def drawn_options(number: int) -> dict:
    """Any mix of options, for a clip of 40 frames and 1.6 seconds; some of them fit no video."""
    rng = random.Random(number)
    rate = {"fps": round(rng.uniform(0.2, 40), 2)} if rng.random() < 0.5 else {"nframes": rng.randint(1, 44)}
    mix = {
        "min_frames": rng.randint(1, 12),
        "max_frames": rng.randint(3, 45),
        "min_pixels": rng.randint(1000, 200_000),
        "max_pixels": rng.randint(2000, 400_000),
        "total_pixels": rng.randint(10**4, 10**7),
        "video_start": round(rng.uniform(-0.5, 1.6), 3),
        "video_end": round(rng.uniform(0.0, 2.5), 3),
    }
    chosen = {name: value for name, value in mix.items() if rng.random() < 0.35}
    sides = {"resized_height": rng.randint(20, 400), "resized_width": rng.randint(20, 400)}
    return {**rate, **chosen, **(sides if rng.random() < 0.15 else {})}


def chosen_options(name: str) -> dict[str, dict]:
    """The options that the clip ``name`` is asked with, by label."""
    if name != "p_h264.mp4":
        return OPTIONS
    return {**OPTIONS, **MORE_OPTIONS, **{f"drawn{n}": drawn_options(n) for n in range(NUM_DRAWN)}}


def patches(name: str, label: str) -> tuple[int, ...]:
    """The patch sizes to ask with."""
    if label.startswith("drawn"):
        return (14,) if int(label.removeprefix("drawn")) % 2 else (16,)
    return (14, 16) if label == "default" or name == "p_h264.mp4" else (16,)


FRAME_LISTS = {
    "rates": {"sample_fps": 4.0, "raw_fps": 30.0},
    "plain": {},
    "sampled": {"sample_fps": 1.5},
    "min_pixels": {"min_pixels": 300_000},
    "max_pixels": {"max_pixels": 150_000},
    "total_pixels": {"total_pixels": 100_000},
    "resized": {"resized_height": 90, "resized_width": 300},
    "ignored": {"fps": 9.0, "nframes": 2, "max_frames": 2, "video_start": 1.0},
}
IMAGE_OPTIONS = {
    "plain": {},
    "min_pixels": {"min_pixels": 200_000},
    "max_pixels": {"max_pixels": 9000},
    "both": {"min_pixels": 5000, "max_pixels": 20_000},
    "resized": {"resized_height": 77, "resized_width": 300},
    "one_side": {"resized_width": 300},
}


def images(folder: Path) -> dict[str, Path]:
    """Images that the interface handles well, and what the others are when they are put right beforehand."""
    rgb = Image.fromarray(picture(5, 140, 210))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(np.linspace(0, 255, 140 * 210).reshape(140, 210).astype(np.uint8)))
    made = {
        "rgb.png": rgb,
        "rgb.jpg": rgb,
        "grey.png": rgb.convert("L"),
        "alpha.png": alpha,
        "palette.png": rgb.convert("P"),
        "bilevel.png": rgb.convert("1"),
        "cmyk.jpg": rgb.convert("CMYK"),
        "still.webp": rgb,
        "small.png": rgb.resize((9, 14)),
        "thin.png": rgb.resize((700, 4)),
        **{name: right for name, (_, right) in mended_images().items()},
    }
    for name, image in made.items():
        image.save(folder / name)
    return {name: folder / name for name in made}


def mended_images() -> dict[str, tuple[bytes | Image.Image, Image.Image]]:
    """By name, an image that the interface takes wrongly, and the same put right by other means."""
    rgb = Image.fromarray(picture(5, 140, 210))
    pairs: dict[str, tuple[bytes | Image.Image, Image.Image]] = {}
    for orientation, turn in (
        *((2, "FLIP_LEFT_RIGHT"), (3, "ROTATE_180"), (4, "FLIP_TOP_BOTTOM"), (5, "TRANSPOSE"), (6, "ROTATE_270")),
        *((7, "TRANSVERSE"), (8, "ROTATE_90")),
    ):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stream = io.BytesIO()
        rgb.save(stream, "PNG", exif=exif)
        pairs[f"exif{orientation}.png"] = (stream.getvalue(), rgb.transpose(Image.Transpose[turn]))
    hidden = np.array(rgb)
    hidden[:, :100] = (255, 0, 0)
    shown = hidden.copy()
    shown[:, :100] = 255
    keyed = Image.fromarray(hidden)
    keyed.info["transparency"] = (255, 0, 0)
    pairs["keyed.png"] = (keyed, Image.fromarray(shown))
    grey = np.array(rgb.convert("L"))
    pairs["deep.png"] = (Image.fromarray(grey.astype(np.uint16) * 257), Image.fromarray(grey))
    mask = Image.fromarray(np.where(np.arange(210) < 100, 0, 255).astype(np.uint8)[None].repeat(140, 0))
    veiled = Image.merge("LA", (Image.fromarray(grey), mask))
    pairs["veiled.png"] = (veiled, Image.fromarray(np.where(np.array(mask) == 0, 255, grey).astype(np.uint8)))
    return pairs


def arithmetic() -> list[dict]:
    rng = random.Random(7)
    jobs = []
    for n in range(300):
        h, w = (round(math.exp(rng.uniform(0, 8.5))) for _ in range(2))
        bounds = [None, None] if n % 3 else sorted((rng.randint(1, 10**6), rng.randint(1, 10**7)))
        jobs.append(job("smart_resize", f"size{n}", h, w, rng.choice([28, 32]), *bounds))
    for n in range(200):
        total, rate = rng.randint(1, 3000), rng.choice([10.0, 23.976, 25.0, 30000 / 1001, 60.0, 120.0])
        ele = rng.choice(
            [
                {},
                {"nframes": rng.randint(0, 50)},
                {"fps": rng.uniform(0.01, 80)},
                {"min_frames": rng.randint(0, 9), "max_frames": rng.randint(0, 2000)},
            ]
        )
        jobs.append(job("smart_nframes", f"count{n}", ele, total, rate))
        cut = {k: rng.uniform(-5, 1.3 * total / rate) for k in ("video_start", "video_end") if rng.random() < 0.7}
        jobs.append(job("range", f"range{n}", cut, total, rate))
    return jobs


def job(call: str, key: str, *args: object) -> dict:
    return {"call": call, "key": key, "args": args}


class Answers:
    def __init__(self, folder: Path) -> None:
        self.jobs = {j["key"]: j for j in json.loads((folder / "jobs.json").read_text())}
        self.results = json.loads((folder / "out.json").read_text())
        self.arrays = np.load(folder / "out.npz")

    @classmethod
    def fetch(cls, folder: Path) -> None:
        """Make the clips, ask everything, leave the answers in ``folder``."""
        (folder / "jobs.json").write_text(json.dumps(make_jobs(folder)))
        command = [ORACLE, str(WORKER), *(str(folder / name) for name in ("jobs.json", "out.npz", "out.json"))]
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MODEL_SEQ_LEN")}
        subprocess.run(command, check=True, capture_output=True, env=environment, timeout=900)


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    """The answers; the first of several test processes fetches them for all."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "oracle"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "out.json").exists():
            Answers.fetch(folder)
    answers = Answers(folder)
    yield answers
    answers.arrays.close()


def make_jobs(folder: Path) -> list[dict]:
    names = [n for n in ours.__all__ if n.isupper() and n != "FORCE_QWENVL_VIDEO_READER"]
    return [*arithmetic(), *video_jobs(folder), *still_jobs(folder), job("constants", "constants", names)]


def video_jobs(folder: Path) -> list[dict]:
    jobs = []
    for name, clip in CLIPS.items():
        path = str(write_clip(folder, clip))
        for label, options in chosen_options(name).items():
            jobs += video_questions(f"{name}|{label}", {"video": path, **options}, *patches(name, label))
    for path in REAL_VIDEOS:
        for label, options in REAL_OPTIONS.items():
            jobs += video_questions(f"{path.name}|{label}", {"video": str(path), **options}, 16)
    return jobs


def video_questions(key: str, ele: dict, *patches: int) -> list[dict]:
    return [job("fetch_video", f"{key}|{patch}", ele, patch) for patch in patches]


def still_jobs(folder: Path) -> list[dict]:
    """Of images, of lists of frames, and of a conversation with a video and an image."""
    jobs = []
    stills = images(folder)
    for name, path in stills.items():
        for label, options in IMAGE_OPTIONS.items():
            ele = {"image": str(path), **options}
            jobs += [job("fetch_image", f"{name}|{label}|{patch}", ele, patch) for patch in (14, 16)]
    frames = [str(stills[name]) for name in ("rgb.png", "grey.png", "alpha.png")]
    for label, options in FRAME_LISTS.items():
        jobs += video_questions(f"list|{label}", {"video": frames, **options}, 14, 16)
    uneven = [str(stills["rgb.png"]), str(stills["small.png"])]
    jobs += video_questions("list|uneven", {"video": uneven}, 16)
    content = [{"type": "video", "video": str(folder / "p_h264.mp4")}, {"image": str(stills["rgb.png"])}]
    messages = [{"role": "user", "content": content}]
    jobs.append(job("process", "process|plain", messages, {}))
    jobs.append(job("process", "process|meta", messages, {"return_video_metadata": True, "image_patch_size": 16}))
    return jobs


CALLS = {
    "smart_resize": ours.smart_resize,
    "smart_nframes": ours.smart_nframes,
    "range": ours.calculate_video_frame_range,
}
ERRORS = {"AssertionError": AssertionError, "ValueError": ValueError, "ZeroDivisionError": ZeroDivisionError}


@pytest.mark.parametrize("call", CALLS)
def test_arithmetic(oracle, call):
    checked = 0
    for key, one in oracle.jobs.items():
        if one["call"] != call:
            continue
        answer = oracle.results[key]
        if "error" in answer:
            with pytest.raises(ERRORS[answer["error"]]):
                CALLS[call](*one["args"])
        else:
            value = CALLS[call](*one["args"])
            assert (list(value) if isinstance(value, tuple) else value) == answer["value"], key
        checked += 1
    assert checked >= 200


def test_constants(oracle):
    for name, value in oracle.results["constants"]["value"].items():
        assert getattr(ours, name) == value, name


def cases() -> list[str]:
    return [f"{name}|{label}" for name in CLIPS for label in chosen_options(name)]


@pytest.mark.parametrize("case", cases())
def test_videos(oracle, monkeypatch, backend, case):
    monkeypatch.setattr(fetch_module, "FORCE_QWENVL_VIDEO_READER", backend)
    name, label = case.split("|")
    for patch in patches(name, label):
        key = f"{case}|{patch}"
        ele, _ = oracle.jobs[key]["args"]
        if label.startswith("drawn") and "error" in oracle.results[key]:
            with pytest.raises(ValueError, match=r"^p_h264\.mp4: |resize: "):
                ours.fetch_video(ele, patch)
            continue
        (video, metadata), rate = ours.fetch_video(ele, patch, True, True, dtype=torch.uint8)
        if name == "p_vfr.mp4" and (label == "range" or backend != "torchcodec"):
            # Its range is by mean rate, ours by real time; and FFmpeg 5 and 8 give the last frame another duration.
            check_variable_rate(video, metadata, label)
            continue
        answer = oracle.results[key]["value"]
        assert rate == pytest.approx(answer["sample_fps"], rel=1e-9)
        for field in ("frames_indices", "total_num_frames"):
            assert metadata[field] == answer["meta"][field]
        assert metadata["fps"] == pytest.approx(answer["meta"]["fps"], rel=1e-9)
        if backend == "torchcodec":
            assert (metadata["fps"], rate) == (answer["meta"]["fps"], answer["sample_fps"])
        if name in OTHER_FRAMES:
            check_bar_codes(video, metadata, oracle.arrays[key], first=(CLIPS[name].cut or (0, 0))[0])
        else:
            check_pixels(video.numpy(), oracle.arrays[key], loose=name in LOOSE)


@pytest.mark.parametrize("label", REAL_OPTIONS)
@pytest.mark.parametrize("name", [path.name for path in REAL_VIDEOS])
def test_real_videos(oracle, monkeypatch, backend, name, label):
    """Where it fails (no picture, one frame, damage, a change of size), others test what ours does."""
    monkeypatch.setattr(fetch_module, "FORCE_QWENVL_VIDEO_READER", backend)
    key = f"{name}|{label}|16"
    answer = oracle.results[key]
    if "error" in answer:
        pytest.skip(f"the interface fails: {answer['text']}")
    (video, metadata), rate = ours.fetch_video(oracle.jobs[key]["args"][0], 16, True, True, dtype=torch.uint8)
    theirs = answer["value"]
    assert rate == pytest.approx(theirs["sample_fps"], rel=1e-9)
    assert metadata["fps"] == pytest.approx(theirs["meta"]["fps"], rel=1e-9)
    assert (metadata["frames_indices"], metadata["total_num_frames"]) == (
        theirs["meta"]["frames_indices"],
        theirs["meta"]["total_num_frames"],
    )
    check_pixels(video.numpy(), oracle.arrays[key], loose=name in LOOSE)


def check_bar_codes(video: torch.Tensor, metadata: ours.VideoMetadata, theirs: np.ndarray, *, first: int) -> None:
    assert video.shape == theirs.shape
    assert numbers(video) == [first + index for index in metadata["frames_indices"]]


def check_variable_rate(video: torch.Tensor, metadata: ours.VideoMetadata, label: str) -> None:
    assert numbers(video) == metadata["frames_indices"]
    expected = [VARIABLE_TIMES[i] for i in metadata["frames_indices"]]
    assert metadata.timestamps == pytest.approx(expected, abs=2e-3)
    if label == "range":
        assert all(0.328 <= seconds <= 1.102 for seconds in metadata.timestamps)


def check_pixels(mine: np.ndarray, theirs: np.ndarray, *, loose: bool) -> None:
    assert mine.shape == theirs.shape
    difference = np.abs(mine.astype(np.int16) - theirs.astype(np.int16))
    assert difference.mean() <= (3 if loose else 0.25)
    assert (difference > 16).mean() <= (0.05 if loose else 0.0005)


def test_pixels_of_a_plain_video_are_identical(oracle, monkeypatch, backend):
    monkeypatch.setattr(fetch_module, "FORCE_QWENVL_VIDEO_READER", backend)
    for name in ("p_h264.mp4", "p_vp9.webm", "p_odd.webm", "p_turn90.mp4"):
        key = f"{name}|default|16"
        video = ours.fetch_video(oracle.jobs[key]["args"][0], 16)
        assert video.dtype == torch.float32
        assert np.array_equal(video.numpy().astype(np.uint8), oracle.arrays[key]), name


@pytest.mark.parametrize("label", FRAME_LISTS)
def test_a_list_of_frames(oracle, label):
    for patch in (14, 16):
        key = f"list|{label}|{patch}"
        (video, metadata), rate = ours.fetch_video(oracle.jobs[key]["args"][0], patch, True, True)
        answer = oracle.results[key]["value"]
        assert dict(metadata) == answer["meta"]
        assert rate == answer["sample_fps"]
        assert np.array_equal(video.numpy().astype(np.uint8), oracle.arrays[key])


def test_a_list_of_frames_of_several_sizes(oracle):
    assert oracle.results["list|uneven|16"]["error"] == "RuntimeError"
    with pytest.raises(ours.SizeError):
        ours.fetch_video(oracle.jobs["list|uneven|16"]["args"][0], 16)


def test_images(oracle):
    for key, one in oracle.jobs.items():
        if one["call"] != "fetch_image":
            continue
        mine = ours.fetch_image(*one["args"])
        if "error" in oracle.results[key]:  # of a side that its arithmetic sends to 0
            assert oracle.results[key]["text"] == "height and width must be > 0"
            assert min(mine.size) == 2 * one["args"][1]
            continue
        assert mine.mode == oracle.results[key]["value"]["mode"] == "RGB"
        assert np.array_equal(np.array(mine), oracle.arrays[key]), key


@pytest.mark.parametrize("name", mended_images())
def test_images_that_the_interface_takes_wrongly(oracle, name):
    """Orientation, transparency and depth: ours equals what it makes of the image put right."""
    wrong, _ = mended_images()[name]
    for patch in (14, 16):
        mine = np.array(ours.fetch_image({"image": wrong}, patch))
        assert np.array_equal(mine, oracle.arrays[f"{name}|plain|{patch}"])


@pytest.mark.parametrize("key", ["process|plain", "process|meta"])
def test_process_vision_info(oracle, key):
    messages, options = oracle.jobs[key]["args"]
    images, videos, kwargs = ours.process_vision_info(messages, return_video_kwargs=True, **options)
    answer = oracle.results[key]["value"]
    assert [list(image.size) for image in images] == answer["images"]
    assert [list((v[0] if isinstance(v, tuple) else v).shape) for v in videos] == answer["videos"]
    assert kwargs == answer["kwargs"]
