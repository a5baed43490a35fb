"""Whether an error says that memory was not enough, and how to make room after it."""

from __future__ import annotations

import gc

import torch

_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "failed to allocate", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory, of a GPU or of this machine, was not enough.

    >>> is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")), is_out_of_memory(MemoryError())
    (True, True)
    >>> is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    True
    >>> is_out_of_memory(RuntimeError("shapes do not match"))
    False
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def free_memory() -> None:
    """Give memory that nothing uses back; call it outside of the `except` block, whose error holds tensors."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
