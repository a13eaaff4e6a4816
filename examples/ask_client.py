"""Ask about a clip with the package's own client, and print the answer while it comes.

Usage: python examples/ask_client.py CLIP_OR_URL [QUESTION] [http://127.0.0.1:8000]
"""

import sys

from tru_vlm.client import Client, ClientError, DeltaEvent, DoneEvent


def ask(video: str, question: str, base: str) -> None:
    with Client(base) as client:
        plan = client.plan(video, question, fps=2)
        print(f"{plan.sampling.num_frames} frames, {plan.tokens.total} of {plan.tokens.context} tokens")
        with client.stream(video, question, fps=2, temperature=0) as events:
            for event in events:
                if isinstance(event, DeltaEvent):
                    print(event.text, end="", flush=True)
                elif isinstance(event, DoneEvent):
                    times = event.answer.timings
                    print(f"\n[{event.answer.finish_reason}, first token after {times.time_to_first_token:.2f} s]")


if __name__ == "__main__":
    try:
        ask(
            sys.argv[1],
            sys.argv[2] if len(sys.argv) > 2 else "What happens in this video?",
            sys.argv[3] if len(sys.argv) > 3 else "http://127.0.0.1:8000",
        )
    except ClientError as error:
        sys.exit(str(error))
