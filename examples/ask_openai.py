"""Ask about a clip with OpenAI's client, print the answer while it comes, and ask once more about the same clip.

Usage: python examples/ask_openai.py CLIP [QUESTION] [http://127.0.0.1:8000]
"""

import base64
import sys
from pathlib import Path

from openai import OpenAI


def ask(clip: Path, question: str, base: str) -> None:
    client = OpenAI(base_url=f"{base}/v1", api_key="none")
    model = client.models.list().data[0].id
    url = "data:video/mp4;base64," + base64.b64encode(clip.read_bytes()).decode()  # or an http(s) URL
    content = [
        {"type": "video_url", "video_url": {"url": url, "fps": 2}},
        {"type": "text", "text": question},
    ]
    messages = [{"role": "user", "content": content}]
    stream = client.chat.completions.create(model=model, messages=messages, temperature=0, stream=True)
    answer = ""
    for chunk in stream:
        for choice in chunk.choices:
            answer += choice.delta.content or ""
            print(choice.delta.content or "", end="", flush=True)
    print()
    messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": "What colour is it?"}]
    second = client.chat.completions.create(model=model, messages=messages, temperature=0)
    usage = second.usage
    print(second.choices[0].message.content)
    print(f"[{usage.prompt_tokens_details.cached_tokens} of {usage.prompt_tokens} tokens were not computed again]")


if __name__ == "__main__":
    ask(
        Path(sys.argv[1]),
        sys.argv[2] if len(sys.argv) > 2 else "What happens in this video?",
        sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8000",
    )
