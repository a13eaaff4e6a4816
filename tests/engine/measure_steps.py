"""Measures decode steps on the demo model: the whole step, the part outside the model's forward pass, its products.

CPU time of one thread, so that a busy machine disturbs little: ``python tests/engine/measure_steps.py [rows]``.
"""

import statistics
import sys
import time
from dataclasses import dataclass

import torch
from engine_helpers import request, video

from tru_vlm.engine.hf.config import EngineConfig
from tru_vlm.engine.hf.engine import HfEngine


@dataclass
class StepTimes:
    """Medians in milliseconds of CPU time."""

    step: float
    outside_model: float
    products: float


class Timed:
    """A callable that adds up its own CPU time."""

    def __init__(self, wrapped):
        self.wrapped, self.seconds = wrapped, 0.0

    def __call__(self, *args, **kwargs):
        started = time.process_time()
        try:
            return self.wrapped(*args, **kwargs)
        finally:
            self.seconds += time.process_time() - started


def measure(engine: HfEngine, rows: int, steps: int = 60) -> StepTimes:
    """Decode steps of so many rows, each with a video of about 250 tokens."""
    runner = engine._runner
    model, head = Timed(runner._text_model), Timed(runner._lm_head)
    for index in range(rows):
        engine.submit(request(f"r{index}", video(index, 20, 128, 128), max_tokens=10_000, ignore_eos=True))
    while any(row.num_generated < 3 for row in engine._rows.values()):
        engine.step()
    runner._text_model, runner._lm_head = model, head
    times = []
    for _ in range(steps):
        inside = model.seconds + head.seconds
        started = time.process_time()
        engine.step()
        step = time.process_time() - started
        times.append((step, step - (model.seconds + head.seconds - inside)))
    runner._text_model, runner._lm_head = model.wrapped, head.wrapped
    for request_id in list(engine._rows):
        engine.abort(request_id)
    engine.step()
    whole, outside = (1000 * statistics.median(column) for column in zip(*times, strict=True))
    return StepTimes(whole, outside, 1000 * products_alone(model.wrapped, rows, steps))


@torch.inference_mode()
def products_alone(text_model, rows: int, steps: int) -> float:
    """Seconds for the step's matrix products."""
    linears = [module for module in text_model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = [torch.randn(rows, linear.in_features) for linear in linears]
    times = []
    for _ in range(steps):
        started = time.process_time()
        for linear, values in zip(linears, inputs, strict=True):
            linear(values)
        times.append(time.process_time() - started)
    return statistics.median(times)


def main() -> None:
    torch.set_num_threads(1)
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    engine = HfEngine.load(EngineConfig("demo", kv_cache_tokens=rows * 10_500, max_batch_size=rows))
    times = measure(engine, rows)
    sys.stdout.write(
        f"{rows} rows: step {times.step:.2f} ms, outside the model {times.outside_model:.2f} ms, "
        f"matrix products alone {times.products:.2f} ms\n"
    )


if __name__ == "__main__":
    main()
