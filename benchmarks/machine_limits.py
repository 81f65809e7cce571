"""What a device reaches at most: matrix products and copies of memory."""

import time

import torch


def ceilings(device: str) -> dict[str, float]:
    """TFLOP/s of matrix products in float32 and bfloat16, GB/s (read and written) of copies; the best of five."""
    size = 8192 if device == 'cuda' else 2048
    rates = {}
    for name, dtype in (('fp32', torch.float32), ('bf16', torch.bfloat16)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates[f'tflops_{name}'] = 2 * size**3 / _best(lambda a=a, b=b: a @ b, device) / 1e12
    a = torch.ones((1 << 30 if device == 'cuda' else 1 << 26) // 4, device=device)
    b = torch.empty_like(a)
    rates['copy_gb_a_second'] = 2 * a.nbytes / _best(lambda: b.copy_(a), device) / 1e9
    return rates


def _best(work, device: str) -> float:
    """Seconds."""
    taken = []
    for _ in range(6):  # the first is not like the others
        began = time.perf_counter()
        work()
        if device == 'cuda':
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])
