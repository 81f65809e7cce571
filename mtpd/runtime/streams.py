"""CUDA streams beside the one in use, a stream for each purpose, device and process."""

from __future__ import annotations

import functools

import torch


def cuda_stream(purpose: str, priority: int = 0) -> torch.cuda.Stream:
    """The current device's stream for a purpose: always the same, and no part of a model, which stays copyable.

    Args:
        priority: -1 lets its kernels start before those that wait on others.
    """
    return _stream(purpose, torch.cuda.current_device(), priority)


@functools.cache
def _stream(purpose: str, device: int, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=priority)
