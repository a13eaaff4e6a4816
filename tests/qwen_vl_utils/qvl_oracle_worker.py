"""Runs under the interpreter that has the package from PyPI (TRU_ORACLE_PYTHON), never under ours.

argv: jobs.json out.npz out.json. Each job is {"call": name, "args": ..., "key": ...}; results go out under its key.
"""

import json
import os
import sys
from pathlib import Path

os.environ["FORCE_QWENVL_VIDEO_READER"] = "torchcodec"  # before the import, which reads it

import numpy as np

from qwen_vl_utils import vision_process as oracle

ARRAYS = {}


def fetch_video(key, ele, patch):
    (video, meta), rate = oracle.fetch_video(
        ele, image_patch_size=patch, return_video_sample_fps=True, return_video_metadata=True
    )
    assert str(video.dtype) == "torch.float32"
    ARRAYS[key] = video.numpy().astype(np.uint8)
    return {"meta": meta, "sample_fps": rate}


def fetch_image(key, ele, patch):
    image = oracle.fetch_image(ele, image_patch_size=patch)
    ARRAYS[key] = np.array(image)
    return {"mode": image.mode}


def process(key, conversations, kwargs):
    images, videos, extra = oracle.process_vision_info(conversations, return_video_kwargs=True, **kwargs)
    shapes = None
    if videos is not None:
        shapes = [list((v[0] if isinstance(v, tuple) else v).shape) for v in videos]
    return {"images": None if images is None else [i.size for i in images], "videos": shapes, "kwargs": extra}


def constants(key, names):
    return {name: getattr(oracle, name) for name in names}


CALLS = {
    "fetch_video": fetch_video,
    "fetch_image": fetch_image,
    "process": process,
    "constants": constants,
    "smart_resize": lambda key, *args: oracle.smart_resize(*args),
    "smart_nframes": lambda key, *args: oracle.smart_nframes(*args),
    "range": lambda key, *args: oracle.calculate_video_frame_range(*args),
}


def main():
    jobs_path, arrays_path, results_path = map(Path, sys.argv[1:])
    results = {}
    for job in json.loads(jobs_path.read_text()):
        try:
            results[job["key"]] = {"value": CALLS[job["call"]](job["key"], *job["args"])}
        except Exception as error:  # noqa: BLE001 - what it raises is the result
            results[job["key"]] = {"error": type(error).__name__, "text": str(error)}
    np.savez(arrays_path, **ARRAYS)
    results_path.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
