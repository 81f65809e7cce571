"""Attention in windows gives what mmdet's gives, whatever the image's size."""

from __future__ import annotations

import copy

import pytest
import torch

from mtpd.engine import window_attention

# isort: split
from mmdet.models import build_backbone
from mmdet.models.backbones.swin import ShiftWindowMSA

WINDOW = 7
# Of windows that are full, that need padding on one side or both, and of less than one window.
SIZES = [(14, 21), (14, 20), (13, 21), (15, 16), (7, 7), (5, 3)]


def attention(shift: int, device: str = 'cpu') -> ShiftWindowMSA:
    torch.manual_seed(0)
    module = ShiftWindowMSA(32, 4, WINDOW, shift).eval().to(device)
    torch.nn.init.normal_(module.w_msa.relative_position_bias_table)
    return module


@pytest.mark.parametrize('size', SIZES, ids=str)
@pytest.mark.parametrize('shift', [0, 3])
def test_it_is_mmdets_attention(shift, size):
    module, tokens = attention(shift), torch.randn(3, size[0] * size[1], 32)
    with torch.no_grad():
        ours = window_attention.shifted_window_attention(module, tokens, size)
        torch.testing.assert_close(ours, module(tokens, size), atol=1e-6, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('shift', [0, 3])
def test_on_a_gpu_it_is_as_near_to_float32_as_mmdets(shift, dtype, full_float32):
    module, size = attention(shift, 'cuda'), (27, 33)
    tokens = torch.randn(2, size[0] * size[1], 32, device='cuda')
    with torch.no_grad():
        exact = module(tokens, size)
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
            theirs = module(tokens, size)
            window_attention.fuse_window_attention(module)
            ours = module(tokens, size)
    assert ours.dtype == theirs.dtype == dtype
    off, allowed = (ours.float() - exact).norm(), (theirs.float() - exact).norm()
    assert off <= 1.5 * allowed + 1e-5 * exact.norm()


@pytest.mark.gpu
def test_it_is_used_in_a_frozen_detector_alone(monkeypatch):
    calls = []
    plain = window_attention.shifted_window_attention
    monkeypatch.setattr(
        window_attention,
        'shifted_window_attention',
        lambda *args: calls.append(1) or plain(*args),
    )
    cfg = dict(type='SwinTransformer', embed_dims=32, depths=(2, 2, 1, 1), num_heads=(2, 2, 4, 4))
    swin = build_backbone(cfg).cuda()
    swin.eval()  # mmdet's returns None
    window_attention.fuse_window_attention(swin)
    images = torch.rand(1, 3, 70, 90, device='cuda')
    swin(images)[0].sum().backward()
    assert not calls
    with torch.no_grad():
        copy.deepcopy(swin)(images)
    assert len(calls) == 6


def test_a_hooked_part_is_left_as_it_is():
    hooked, other = attention(3), attention(0)
    window_attention.fuse_window_attention(
        torch.nn.ModuleList([hooked, other]), [hooked.w_msa.proj]
    )
    assert ['forward' in vars(module) for module in (hooked, other)] == [False, True]
