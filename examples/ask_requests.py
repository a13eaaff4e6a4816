"""Ask about a clip with `requests`, and print the answer while it comes.

Usage: python examples/ask_requests.py CLIP [QUESTION] [http://127.0.0.1:8000]
"""

import json
import sys
from pathlib import Path

import requests


def ask(clip: Path, question: str, base: str) -> None:
    form = {"prompt": question, "temperature": "0", "stream": "true"}
    with clip.open("rb") as file:
        response = requests.post(
            f"{base}/v1/inference/upload", files={"video": file}, data=form, stream=True, timeout=600
        )
    if response.status_code != 200:
        sys.exit(f"{response.status_code}: {response.json()['error']['message']}")
    event = ""
    for line in response.iter_lines(chunk_size=None, decode_unicode=True):
        if line.startswith("event: "):
            event = line.removeprefix("event: ")
        elif line.startswith("data: "):
            show(event, json.loads(line.removeprefix("data: ")))


def show(event: str, data: dict) -> None:
    if event == "delta":
        print(data["text"], end="", flush=True)
    elif event == "done":
        times = data["timings"]
        print(f"\n[{data['finish_reason']}, first token after {times['time_to_first_token']:.2f} s]")
    elif event == "error":
        sys.exit(f"\n{data['error']['message']}")


if __name__ == "__main__":
    ask(
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else "What happens in this video?",
        sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8000",
    )
