"""What no server can skip for a new video: to decode it and to run the vision tower on its frames.

    python benchmarks/floor.py [--clips 12] [--clip 640x360@15] [--folder DIR]

CPU seconds of one thread, by this project's own code, on the clips and frames of ``serving.py``: two divided by their
sum is what two cores could answer at most if an answer cost nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from load import spread
from serving import CLIP, FPS, ROOT, clip_form, make_clips

HEIGHT, WIDTH = 96, 160  # what the demo model's processor makes of a clip of 16:9

Result = TypeVar("Result")


def cpu_seconds(run: Callable[[], Result]) -> tuple[float, Result]:
    """What a call takes, and what it gives."""
    begin = time.process_time()
    result = run()
    return time.process_time() - begin, result


def measure(paths: list[Path]) -> tuple[list[float], list[float]]:
    """CPU seconds of decoding each clip, and of the vision tower on its frames; the first clip is a warm-up."""
    from qwen_vl_utils import SamplingOptions, read_video
    from tru_vlm.engine.base import MediaInput
    from tru_vlm.engine.hf.config import EngineConfig
    from tru_vlm.engine.hf.loading import load_model
    from tru_vlm.engine.hf.vision import VisionEncoder
    from tru_vlm.processor.profile import load_profile

    profile = load_profile("demo")
    encoder = VisionEncoder(load_model(profile, EngineConfig("demo")).model.visual, profile, "cpu")
    sampling = SamplingOptions(fps=FPS, resized_height=HEIGHT, resized_width=WIDTH)
    decodes, towers = [], []
    for path in paths:
        seconds, video = cpu_seconds(lambda path=path: read_video(path, sampling=sampling, num_threads=1))
        decodes.append(seconds)
        media = MediaInput("video", video.frames.numpy(), path.name, tuple(video.pts_seconds), (), FPS)
        with torch.inference_mode():
            seconds, _ = cpu_seconds(lambda media=media: encoder.encode(media, 0, len(media.frames) // 2))
        towers.append(seconds)
    return decodes[1:], towers[1:]


def main() -> None:
    """Parse the arguments, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--clip", type=clip_form, default=CLIP, help="1920x1080@30, for instance")
    parser.add_argument("--folder", type=Path, help="keep the clips here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)) / "clips"
        folder.mkdir(parents=True, exist_ok=True)
        make_clips(folder, options.clips + 1, options.clip)
        decodes, towers = measure([folder / f"{number}.mp4" for number in range(options.clips + 1)])
    both = [decode + tower for decode, tower in zip(decodes, towers, strict=True)]
    print("| for a new video | CPU s |\n|---|---|")
    for name, seconds in (("decode and resize", decodes), ("vision tower", towers), ("both", both)):
        print(f"| {name} | {spread(seconds, '{:.3f}'.format)} |")


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT))
    main()
