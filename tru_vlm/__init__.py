"""TRU V2: a self-hosted server that answers questions about a video.

The packages follow the life of a request, from the outside in::

    api -> intake | video | processor | engine -> telemetry -> settings | types | errors

``api`` is the only one that knows HTTP and LitServe, ``video`` the only door to ``qwen_vl_utils``, and nothing
outside ``engine`` and ``processor`` knows the model family.  ``import-linter`` holds this in CI.
"""

__version__ = "2.0.0"
