"""Ask about a clip over a WebSocket with `websockets`, and print the answer while it comes.

Usage: python examples/ask_socket.py CLIP [QUESTION] [http://127.0.0.1:8000]
"""

import base64
import json
import sys
from pathlib import Path

from websockets.sync.client import connect


def ask(clip: Path, question: str, base: str) -> None:
    video = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()
    with connect(base.replace("http", "ws", 1) + "/v1/inference/ws", max_size=None) as socket:
        request = {"id": "1", "video_url": video, "prompt": question, "generation_params": {"temperature": 0}}
        socket.send(json.dumps(request))
        for message in socket:
            event = json.loads(message)
            if event["type"] == "delta":
                print(event["text"], end="", flush=True)
            elif event["type"] == "error":
                sys.exit(event["error"]["message"])
            elif event["type"] == "done":
                print(f"\n[{event['finish_reason']}]")
                return


if __name__ == "__main__":
    ask(
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else "What happens in this video?",
        sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8000",
    )
