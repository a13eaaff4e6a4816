"""Trains the demo model from nothing: `python -m demo_model.train --out demo_model/weights`.

Stages: pool (clips are rendered once) → vision (tower alone) → features (cached) → language.
The pool and the tower are kept in --work and not made again. Takes hours on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration

from demo_model import WEIGHTS_DIR
from demo_model.model import build_model, save_checkpoint
from demo_model.tokenizer import build_tokenizer
from demo_model.training.features import encode_pool
from demo_model.training.language import Schedule, Trainer
from demo_model.training.pool import build_clip, build_pool
from demo_model.training.vision import pair_tables, train_vision

NUM_CLIPS = 10_000
NUM_HELD_OUT = 440
HELD_OUT_SEED = 5_000_000  # of the clips that the log's evaluations use; the pool's seeds are below
VISION_ROUNDS = ((1500, 8e-4), (800, 7e-4), (800, 4e-4), (1300, 6e-4), (2800, 6e-4))  # steps, highest learning rate
RESUME_VISION_ROUNDS = VISION_ROUNDS[-1:]
RESUME_PEAK = 8e-4  # highest learning rate of the language model when training goes on


class Log:
    """Prints lines and appends them to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        """Writes one line."""
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def vision_stage(
    model: Qwen3VLForConditionalGeneration,
    shards: list[Path],
    work: Path,
    *,
    rounds: tuple[tuple[int, float], ...],
    log: Log,
) -> None:
    """Trains the tower, or takes the one that is there; freezes it."""
    path = work / "visual.pt"
    if path.exists():
        model.model.visual.load_state_dict(torch.load(path))
    else:
        tables = pair_tables(shards)
        for steps, peak in rounds:
            train_vision(model.model.visual, tables, steps=steps, peak=peak, log=log)
        torch.save(model.model.visual.state_dict(), path)
    model.model.visual.requires_grad_(requires_grad=False)


def language_stage(
    model: Qwen3VLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    *,
    shards: list[Path],
    out: Path,
    schedule: Schedule,
    log: Log,
) -> None:
    """Trains the language model on cached features; each better model goes to out."""
    held_out = [build_clip(HELD_OUT_SEED + number) for number in range(NUM_HELD_OUT)]

    def on_better(score: float) -> None:
        save_checkpoint(model, tokenizer, out)
        log(f"saved (score {score:.3f})")

    trainer = Trainer(model, tokenizer, encode_pool(model.model.visual, shards), held_out, log=log, on_better=on_better)
    trainer.evaluate()  # so that a resumed run never replaces its start by something worse
    trainer.train(schedule)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR, help="folder for the checkpoint")
    parser.add_argument("--work", type=Path, default=Path("demo_model_work"), help="folder for pool and tower")
    parser.add_argument("--language-steps", type=int, default=2500)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    arguments = parser.parse_args()
    log = Log(Path(__file__).parent / "training_log.txt")
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    shards = build_pool(arguments.work / "pool", NUM_CLIPS)
    if arguments.resume:
        start = Qwen3VLForConditionalGeneration.from_pretrained(arguments.out, dtype=torch.float32)
        model.load_state_dict(start.state_dict())
        schedule = Schedule(steps=arguments.language_steps, peak=RESUME_PEAK, short_steps=0)
    else:
        schedule = Schedule(steps=arguments.language_steps)
    rounds = RESUME_VISION_ROUNDS if arguments.resume else VISION_ROUNDS
    vision_stage(model, shards, arguments.work, rounds=rounds, log=log)
    language_stage(model, tokenizer, shards=shards, out=arguments.out, schedule=schedule, log=log)


if __name__ == "__main__":
    main()
