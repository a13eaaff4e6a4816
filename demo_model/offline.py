"""Asks the checkpoint directly through Transformers, without the server: for scores during training and for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from demo_model import WEIGHTS_DIR
from demo_model.generator import sampled_indices
from demo_model.questions import DEFAULT_QUESTION, stamp
from demo_model.training.frames import FACTOR, PATCH, patches, resized, target_size


def read_video(path: Path) -> tuple[NDArray[np.uint8], list[float]]:
    """The frames that the product would sample from a file, (n, h, w, 3) at the model's size, and their times in
    seconds.
    """
    import av

    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate or 25)
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    indices = sampled_indices(len(pictures), fps)
    frames = np.stack([pictures[index] for index in indices])
    return resized(frames, *target_size(*frames.shape[1:3])), [index / fps for index in indices]


class OfflineModel:
    """A checkpoint, computed in float32 whatever its stored type."""

    def __init__(self, folder: Path = WEIGHTS_DIR) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    def ask(self, path: Path, question: str = DEFAULT_QUESTION, max_tokens: int = 64) -> str:
        """The greedy answer about a video file."""
        return self.ask_frames(*read_video(path), question=question, max_tokens=max_tokens)

    @torch.inference_mode()
    def ask_frames(
        self, frames: NDArray[np.uint8], seconds: list[float], *, question: str = DEFAULT_QUESTION, max_tokens: int = 64
    ) -> str:
        """The greedy answer about an even number of frames at the model's size, (n, h, w, 3), and their times."""
        pairs = torch.from_numpy(np.ascontiguousarray(frames)).view(-1, 2, *frames.shape[1:])
        rows, columns = frames.shape[1] // FACTOR, frames.shape[2] // FACTOR
        block = f"<|vision_start|>{'<|video_pad|>' * (rows * columns)}<|vision_end|>"
        times = [(a + b) / 2 for a, b in zip(seconds[::2], seconds[1::2], strict=True)]
        video = "".join(stamp(time) + block for time in times)
        prompt = f"<|im_start|>user\n{video}{question}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([self.tokenizer(prompt)["input_ids"]])
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == self.model.config.video_token_id).int() * 2,
            pixel_values_videos=patches(pairs),
            video_grid_thw=torch.tensor([[len(pairs), frames.shape[1] // PATCH, frames.shape[2] // PATCH]]),
            max_new_tokens=max_tokens,
            do_sample=False,
        )
        text: str = self.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        return text
