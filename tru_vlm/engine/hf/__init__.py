"""Transformers' Qwen3-VL with iteration-level batching: requests join and leave between any two steps.

``engine`` composes; ``scheduler`` decides (never sees a tensor); ``kv_cache`` keeps; ``vision`` and ``model_runner``
compute; ``attention`` is what Transformers calls in each layer; ``sampling`` and ``detokenizer`` make text.
"""
