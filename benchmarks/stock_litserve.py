"""Qwen3-VL on stock LitServe with batching, as its documentation teaches: one of the peers of ``serving.py``.

Runs in an environment of its own (LitServe, Transformers and a torchvision that imports), never in the product's.

    python stock_litserve.py --checkpoint FOLDER --port PORT --max-batch-size N
"""

# No `from __future__ import annotations`: LitServe reads decode_request's, to know that the body is JSON.
import argparse
import urllib.request
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import litserve as ls
import litserve.server
import torch
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration


class VideoQuestions(ls.LitAPI):
    """Fetch, decode and ask; LitServe makes the batches."""

    def __init__(self, checkpoint: str, max_batch_size: int) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=0.05)
        self.checkpoint = checkpoint

    def setup(self, device: str) -> None:
        """Load the model."""
        self.processor = AutoProcessor.from_pretrained(self.checkpoint)
        self.processor.tokenizer.padding_side = "left"
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(self.checkpoint, dtype=torch.float32).to(device)

    def decode_request(self, request: dict[str, Any]) -> dict[str, Any]:
        """A conversation with the video on disk."""
        with (
            urllib.request.urlopen(request["video_url"]) as response,
            NamedTemporaryFile(suffix=".mp4", delete=False) as file,
        ):
            file.write(response.read())
        content = [{"type": "video", "path": file.name}, {"type": "text", "text": request["prompt"]}]
        return {"conversation": [{"role": "user", "content": content}], "path": file.name, **request}

    def batch(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """As they are: the processor batches conversations."""
        return inputs

    def predict(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Generate for the whole batch, to its longest wish."""
        inputs = self.processor.apply_chat_template(
            [item["conversation"] for item in batch],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            processor_kwargs={"num_frames": batch[0]["num_frames"]},
        ).to(self.model.device)
        output = self.model.generate(
            **inputs, max_new_tokens=max(item["max_tokens"] for item in batch), do_sample=False
        )
        for item in batch:
            Path(item["path"]).unlink()
        start = inputs["input_ids"].shape[1]
        prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        return [
            {"text": self.processor.decode(row[start:], skip_special_tokens=True), "prompt_tokens": count}
            for row, count in zip(output, prompt_tokens, strict=True)
        ]

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """One answer each."""
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        """JSON."""
        return output


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch-size", type=int, default=8)
    options = parser.parse_args()
    # LitServe 0.2.19 offers its routes over MCP too where `mcp` is installed, and does not start with mcp 2.
    litserve.server._MCP_AVAILABLE = False  # noqa: SLF001
    api = VideoQuestions(options.checkpoint, options.max_batch_size)
    ls.LitServer(api, accelerator="cpu", timeout=600).run(port=options.port, generate_client_file=False)
