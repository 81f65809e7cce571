"""Whether mmcv's compiled ops can use the GPU that torch sees, which most detectors need; and the kit's own Triton kernels."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import types

import torch
from mmcv import _ext

from ..install import ops
from ..utils import machine

REPORTED_VARIABLE = 'MTPD_CPU_REPORTED'  # inherited by the processes that a command starts


@functools.cache
def gpu_obstacle() -> str | None:
    """Why the installed ops can't run on torch's GPU, and what to do; None where they can, or torch sees no GPU.

    The compiled library tells whether it was built with CUDA, and the record of `mtpd install-ops` for which GPUs.
    """
    if not torch.cuda.is_available():
        return None
    cuda, arch, reason = ops.recorded_target()
    failure = f'. The last build failed: {reason.split(". ")[0]}' if reason else ''
    if _ext.get_compiling_cuda_version() == 'not available':
        return (
            "mmcv's ops are built for the CPU only; `mtpd install-ops` builds them for the GPU"
            + failure
        )
    capability = torch.cuda.get_device_capability()
    if cuda and arch and not machine.supports_capability(arch, capability):
        return (
            f"mmcv's ops are built for GPUs of architecture {arch}, but {torch.cuda.get_device_name()} is of "
            f'{capability[0]}.{capability[1]}; `mtpd install-ops` builds them for it' + failure
        )
    return None


def report_cpu() -> None:
    """Prints, once a command, that 'auto' takes the CPU although there is a GPU, and why."""
    if not os.environ.get(REPORTED_VARIABLE):
        os.environ[REPORTED_VARIABLE] = '1'
        print(f'device auto takes the CPU: {gpu_obstacle()}.', file=sys.stderr, flush=True)


@functools.cache
def triton_kernels(module: str) -> types.ModuleType | None:
    """One of the kit's modules of Triton kernels, such as 'mtpd.runtime.focal_kernel'; None where Triton can't be imported."""
    try:
        return importlib.import_module(module)
    except Exception:  # a Triton of another release, or for another machine, may raise anything
        return None
