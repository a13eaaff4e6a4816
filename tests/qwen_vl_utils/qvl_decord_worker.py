"""Runs our package with the real decord, under the interpreter that has it (TRU_ORACLE_PYTHON).

argv: jobs.json out.npz out.json. Each job is {"key": ..., "path": ..., "options": ...}; frames and numbers go out
under its key. With "-" alone it says whether decord loads.
"""

import json
import sys
from pathlib import Path

import numpy as np

from qwen_vl_utils import SamplingOptions, VideoError, backend_status, read_video


def decode(path: str, options: dict) -> tuple[np.ndarray, dict]:
    video = read_video(path, sampling=SamplingOptions(**options), backend="decord")
    return video.frames.numpy(), {
        "backend": video.backend,
        "frames_indices": video.frames_indices,
        "pts_seconds": video.pts_seconds,
        "notes": [note.code for note in video.notes],
    }


def main() -> None:
    if sys.argv[1:] == ["-"]:
        sys.stdout.write(backend_status()["decord"])
        return
    jobs_path, arrays_path, results_path = map(Path, sys.argv[1:])
    arrays, results = {}, {}
    for job in json.loads(jobs_path.read_text()):
        try:
            arrays[job["key"]], results[job["key"]] = decode(job["path"], job["options"])
        except VideoError as error:
            results[job["key"]] = {"error": type(error).__name__}
    np.savez(arrays_path, **arrays)
    results_path.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
