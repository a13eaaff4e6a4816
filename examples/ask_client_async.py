"""Ask several questions about a clip at once, with the package's own client for asyncio.

Usage: python examples/ask_client_async.py CLIP_OR_URL [QUESTION] [http://127.0.0.1:8000]
"""

import asyncio
import sys

from tru_vlm.client import AsyncClient


async def ask(video: str, questions: list[str], base: str) -> None:
    async with AsyncClient(base) as client:
        answers = await asyncio.gather(*(client.ask(video, question, temperature=0) for question in questions))
    for question, answer in zip(questions, answers, strict=True):
        print(f"{question}  {answer.text}  [{answer.timings.total:.2f} s]")


if __name__ == "__main__":
    first = sys.argv[2] if len(sys.argv) > 2 else "What happens in this video?"
    asyncio.run(
        ask(
            sys.argv[1],
            [first, "What colour is it?", "What shape is it?"],
            sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8000",
        )
    )
