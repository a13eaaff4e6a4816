"""Runs Transformers' own Qwen3VLProcessor on the cases in a folder; test_oracle.py starts it where torchvision imports.

Arguments: checkpoint folder, and a folder of cases (case_*.json, case_*.npz), to which out_*.npz are written.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor


def main(checkpoint: str, folder: Path) -> None:
    processor = AutoProcessor.from_pretrained(checkpoint)
    assert type(processor).__name__ == "Qwen3VLProcessor", type(processor)
    for file in sorted(folder.glob("case_*.json")):
        case = json.loads(file.read_text())
        frames = np.load(file.with_suffix(".npz"))
        np.savez(folder / f"out_{file.stem}.npz", **run(processor, case, frames))


def run(processor, case, frames):
    videos, images, metadata = [], [], []
    for index, medium in enumerate(case["media"]):
        array = frames[f"media_{index}"]
        if medium["kind"] == "image":
            images.append(Image.fromarray(array[0].transpose(1, 2, 0)))
            continue
        videos.append(torch.from_numpy(array))
        indices = list(medium["frames_indices"])
        metadata.append({"fps": medium["fps"], "frames_indices": indices, "total_num_frames": indices[-1] + 1})
    text = processor.apply_chat_template(case["messages"], tokenize=False, add_generation_prompt=True)
    extra = {"videos": videos, "video_metadata": metadata} if videos else {}
    extra |= {"images": images} if images else {}
    inputs = processor(text=[text], do_sample_frames=False, do_resize=False, return_tensors="pt", **extra)
    return {name: value.numpy() for name, value in inputs.items()}


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
