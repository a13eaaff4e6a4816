"""Steps that only continue answers: all rows at once, in fixed shapes, as CUDA graphs replay them on a card.

What runs here is everything but the capture: the same buffers, the same forward pass, and the kernels in Triton's
interpreter.
"""

import os
import subprocess

import pytest
import torch
from engine_helpers import drive, request, video
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, require
from torch._subclasses.fake_tensor import FakeTensorMode

from tru_vlm.engine.hf import decode_steps
from tru_vlm.engine.hf.decode_attention import DecodeLayout, attend_decode, check_attend_decode
from tru_vlm.engine.hf.decode_steps import step_sizes
from tru_vlm.engine.hf.kv_cache import KvShape

ITEMS = (
    request("a", video(1), max_tokens=9, ignore_eos=True),
    request("b", prompt="Hi there", max_tokens=30, ignore_eos=True),
    request("c", video(2, 8), max_tokens=14, ignore_eos=True),
    request("d", video(1), prompt="Which colour?", max_tokens=5),
    request("e", prompt="What is this?", max_tokens=22, ignore_eos=True, temperature=0.8, seed=3),
)


def texts(engine, arrivals=None):
    return {name: outcome.text for name, outcome in drive(engine, ITEMS, arrivals=arrivals).items()}


@pytest.mark.parametrize("arrivals", [None, [0, 3, 6, 9, 12], [9, 0, 0, 4, 1]])
def test_answers_are_those_of_row_by_row(make_engine, arrivals):
    numbers = {"prefill_chunk_tokens": 24, "max_batch_size": 5}
    expected = texts(make_engine(**numbers), arrivals)
    engine = make_engine(batched_decode=True, **numbers)
    assert engine.description.decoding == "all rows at once"
    assert texts(engine, arrivals) == expected


def test_rows_that_fill_up_a_step_touch_nobodys_cache(make_engine):
    engine = make_engine(batched_decode=True, max_batch_size=5, kv_cache_tokens=512)
    cache = engine._runner._cache
    for pool in (*cache.keys, *cache.values):
        pool.fill_(float("nan"))
    texts(engine, [0, 0, 0, 1, 2])
    used = engine._blocks.block_tokens
    written = ~cache.keys[0].isnan().any(dim=(1, 2))
    assert bool(written[-used:].any()), "the spare block is where they write"
    assert texts(engine) == texts(make_engine(max_batch_size=5))


def test_a_size_for_every_number_of_rows():
    assert step_sizes(1) == [1]
    assert step_sizes(3) == [1, 2, 3]
    assert step_sizes(8) == [1, 2, 4, 8]
    assert step_sizes(20) == [1, 2, 4, 8, 16, 20]


def test_tables_cross_to_the_device_only_when_they_change(make_engine, monkeypatch):
    written = []
    write = decode_steps.DecodeSteps._write_table
    engine = make_engine(batched_decode=True, max_batch_size=2, num_speculative_tokens=0)
    steps = engine._runner._decode_steps

    def counting(self, index, table):
        before = self._written[index]
        write(self, index, table)
        written.append(self._written[index] is not before)

    monkeypatch.setattr(decode_steps.DecodeSteps, "_write_table", counting)
    drive(engine, [request("a", prompt="Hi", max_tokens=20, ignore_eos=True)])
    assert len(written) == 19, "the first token comes from the prefill"
    assert sum(written) == 1
    assert steps is not None


def test_a_step_never_waits_for_a_value_of_the_device(make_engine):
    """A CUDA graph cannot: with fake tensors, whoever asks for a value gets an error."""
    engine = make_engine(batched_decode=True, max_batch_size=4)
    steps = engine._runner._decode_steps
    steps._fill([], 4)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode():
        logits = engine._runner._decode(steps._input(4))
    assert logits.shape == (4, engine._vocabulary)


@settings(max_examples=40)
@given(data=st.data())
def test_attention_over_blocks_is_attention_over_the_sequence(data):
    lengths = data.draw(st.lists(st.integers(1, 70), min_size=1, max_size=5))
    group, kv_heads, block = data.draw(st.sampled_from([(1, 2, 16), (2, 2, 8), (4, 1, 4)]))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    blocks = 80 // block
    pools = [torch.full((blocks * block * len(lengths), kv_heads, 16), float("inf")) for _ in range(2)]
    tables = torch.randperm(blocks * len(lengths), generator=random).view(len(lengths), -1).int()
    query = torch.randn(len(lengths), group * kv_heads, 16, generator=random)
    expected = []
    for row, length in enumerate(lengths):
        index = torch.arange(length)
        slots = tables[row].long()[index // block] * block + index % block
        for pool in pools:
            pool[slots] = torch.randn(length, kv_heads, 16, generator=random)
        keys, values = (pool[slots].transpose(0, 1).repeat_interleave(group, 0) for pool in pools)
        weights = (torch.einsum("hd,hld->hl", query[row], keys) * 0.25).softmax(-1)
        expected.append(torch.einsum("hl,hld->hd", weights, values))
    layout = DecodeLayout(tables, torch.tensor(lengths), block, 1)
    got = attend_decode(query, *pools, layout, scaling=0.25)
    torch.testing.assert_close(got, torch.stack(expected))


def test_a_kernel_that_is_wrong_is_found_at_the_start(monkeypatch):
    shape = KvShape(num_layers=1, num_kv_heads=2, head_dim=64, dtype=torch.float32)
    check_attend_decode(8, shape, 16, "cpu")
    right = torch.ops.tru_vlm.attend_decode
    calls = []

    def wrong(*arguments):
        calls.append(1)
        return right(*arguments) * (1 if len(calls) % 2 else 1.01)

    monkeypatch.setattr(torch.ops.tru_vlm, "attend_decode", wrong)
    with pytest.raises(RuntimeError, match="the decode kernel is off by"):
        check_attend_decode(8, shape, 16, "cpu")


KERNELS = """
import importlib.util, sys, torch
spec = importlib.util.spec_from_file_location("decode_kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
sys.modules["decode_kernels"] = kernels
spec.loader.exec_module(kernels)

random = torch.Generator().manual_seed(0)
for heads, kv_heads, head_dim, lengths, splits, dtype in [
    (4, 2, 64, [1, 64, 65, 200], 1, torch.float32),
    (4, 2, 64, [1, 64, 65, 200], 5, torch.float32),
    (6, 1, 32, [129], 3, torch.float32),
    (32, 8, 128, [5, 300], 8, torch.float16),
]:
    keys, values = (torch.randn(64 * 16, kv_heads, head_dim, generator=random).to(dtype) for _ in range(2))
    query = torch.randn(len(lengths), heads, head_dim, generator=random).to(dtype)
    tables = torch.stack([torch.randperm(64, generator=random)[:20] for _ in lengths]).int()
    expected = []
    for row, length in enumerate(lengths):
        index = torch.arange(length)
        slots = tables[row].long()[index // 16] * 16 + index % 16
        own = (pool[slots].transpose(0, 1).repeat_interleave(heads // kv_heads, 0).float() for pool in (keys, values))
        row_keys, row_values = own
        weights = (torch.einsum("hd,hld->hl", query[row].float(), row_keys) * head_dim**-0.5).softmax(-1)
        expected.append(torch.einsum("hl,hld->hd", weights, row_values))
    got = kernels.attend(
        query, keys, values, tables, torch.tensor(lengths), scaling=head_dim**-0.5, block_tokens=16, splits=splits
    )
    tolerance = 2e-3 if dtype == torch.float16 else 1e-5
    torch.testing.assert_close(got.float(), torch.stack(expected), atol=tolerance, rtol=1e-3)
"""


def test_the_kernels_compute_attention():
    """In Triton's interpreter, which runs kernels on the CPU (it has no bfloat16 matrix product).

    The oracle's torch is a build for CUDA and brings Triton; the project's own torch does not where it is for the CPU.
    """
    python = os.environ.get("TRU_ORACLE_PYTHON")
    has_triton = python and subprocess.run([python, "-c", "import triton"], capture_output=True, check=False)
    require(has_triton and has_triton.returncode == 0, "TRU_ORACLE_PYTHON names no interpreter with triton")
    done = subprocess.run(
        [python, "-c", KERNELS, str(ROOT / "tru_vlm/engine/hf/decode_kernels.py")],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
