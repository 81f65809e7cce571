"""CUDA streams: one for each purpose, device and process."""

from __future__ import annotations

import functools

import torch


def cuda_stream(purpose: str, priority: int = 0) -> torch.cuda.Stream:
    """The current device's stream for a purpose. It is no attribute of a model, which can so be copied.

    Args:
        priority: kernels of streams with -1 start before those of streams with 0.
    """
    return _stream(purpose, torch.cuda.current_device(), priority)


@functools.cache
def _stream(purpose: str, device: int, priority: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=priority)
