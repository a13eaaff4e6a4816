"""The engine for production on CUDA: vLLM's ``AsyncLLM``, fed with our own frames and our own prompt ids.

vLLM is imported inside functions, so that this package can be read, typed and partly tested where it is not installed.
"""
