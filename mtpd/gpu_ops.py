"""Whether mmcv's compiled ops can use the GPU that torch sees: the ops of most detectors have to run where the model is."""

from __future__ import annotations

from . import compat  # noqa: F401  (before mmcv)

# isort: split
import functools
import sys

import torch
from mmcv import _ext

from . import machine, ops


@functools.cache
def obstacle() -> str | None:
    """Why the installed ops can't run on torch's GPU, and what to do; None where they can, or torch sees none.

    The compiled library says whether it was built with CUDA. For which GPUs, `mtpd install-ops` has noted.
    """
    if not torch.cuda.is_available():
        return None
    cuda, arch, reason = ops.recorded()
    if _ext.get_compiling_cuda_version() == 'not available':
        before = f'. The last time it could not: {reason}' if reason else ''
        return (
            "mmcv's ops here are for the CPU only; `mtpd install-ops` builds them for the GPU"
            + before
        )
    capability = torch.cuda.get_device_capability()
    if cuda and arch and not machine.runs_on(arch, capability):
        return (
            f"mmcv's ops here are built for GPUs of architecture {arch}, and {torch.cuda.get_device_name()} is of "
            f'{capability[0]}.{capability[1]}; `mtpd install-ops` builds them for it'
            + (f'. The last time it could not: {reason}' if reason else '')
        )
    return None


@functools.cache
def report_cpu() -> None:
    """Say, once a process, that 'auto' takes the CPU although there is a GPU, and why."""
    print(f'device auto takes the CPU: {obstacle()}.', file=sys.stderr, flush=True)
