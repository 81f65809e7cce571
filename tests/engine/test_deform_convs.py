"""Deformable convolutions by Triton compute what mmcv's do, and their gradients.

Without a GPU Triton's interpreter runs the kernels: in a process of its own, as Triton asks for it when it is imported.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mtpd.engine import deform_convs, speed

# isort: split
from mmcv.ops import DeformConv2d, DeformConv2dPack, ModulatedDeformConv2dPack, deform_conv2d
from torch import Tensor, nn

# channels, outputs, groups, deformable groups, kernel, stride, padding, dilation, size of the image, how far offsets go
CASES = {
    'plain': (32, 24, 1, 1, 3, 1, 1, 1, (7, 9), 1),
    'groups': (128, 64, 16, 1, 3, 1, 1, 1, (4, 5), 1),
    'groups that stay': (96, 48, 6, 1, 3, 1, 1, 1, (5, 7), 1),
    'stride': (64, 32, 4, 1, 3, 2, 1, 1, (9, 12), 1),
    'dilation': (32, 16, 2, 1, 3, 1, 2, 2, (8, 7), 1),
    'far offsets': (16, 16, 1, 1, 3, 1, 1, 1, (6, 7), 20),
    'deformable groups': (64, 32, 1, 2, 3, 1, 1, 1, (6, 7), 2),
    'deformable groups in a block': (64, 32, 4, 4, 3, 2, 1, 1, (7, 7), 2),
    'window of other sides': (32, 40, 1, 1, (1, 3), (2, 1), (0, 2), (1, 2), (7, 8), 1),
}


def case(name: str, device: str = 'cpu') -> tuple:
    """Input, offset and weight in float32; the window; groups."""
    channels, outputs, groups, deform_groups, *sides, size, far = CASES[name]
    sides = [side if isinstance(side, tuple) else (side, side) for side in sides]
    window = deform_convs.Window(*sides, deform_groups)
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size)
    offset = torch.randn(2, deform_groups * 2 * sides[0][0] * sides[0][1], *window.output_size(x))
    weight = torch.randn(outputs, channels // groups, *sides[0])
    offset[0] = offset[0].round()  # on cells, and on the image's border
    x = x.to(memory_format=torch.channels_last)
    return *(part.to(device) for part in (x, far * offset, weight)), window, groups


def with_gradients(operator, *parts: Tensor) -> list[Tensor]:
    parts = [part.detach().requires_grad_() for part in parts]
    out = operator(*parts)
    torch.manual_seed(1)
    by_out = torch.randn(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, parts, by_out)]


def by_mmcv(x: Tensor, offset: Tensor, weight: Tensor, window, groups: int) -> list[Tensor]:
    def operator(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
        return deform_conv2d(x, offset, weight, *window[1:4], groups, window.deform_groups)

    return with_gradients(operator, *(part.float().contiguous() for part in (x, offset, weight)))


def by_triton(x: Tensor, offset: Tensor, weight: Tensor, window, groups: int) -> list[Tensor]:
    def operator(*parts: Tensor) -> Tensor:
        return deform_convs.deform_conv(*parts, window, groups)

    return with_gradients(operator, x, offset, weight)


def without_columns(x: Tensor, offset: Tensor, weight: Tensor, window, groups: int) -> Tensor:
    """The output by the kernel that stores no samples."""
    blocks = deform_convs.merge_groups(weight.to(x.dtype), groups)
    out = x.new_empty(len(x), *window.output_size(x), len(weight))
    deform_convs.convolve(x.permute(0, 2, 3, 1), offset, blocks, out, window)
    return out.permute(0, 3, 1, 2)


def error(ours: Tensor, exact: Tensor) -> float:
    assert ours.shape == exact.shape
    return float((ours.float() - exact).norm() / exact.norm())


def interpret() -> dict[str, list[float]]:
    """By case, how far off are output and gradients, and the output without stored samples.

    The first case also image by image, and each gradient by itself.
    """
    errors = {}
    for name in CASES:
        exact, inputs = by_mmcv(*case(name)), case(name)
        ours, wanted = [*by_triton(*inputs), without_columns(*inputs)], [*exact, exact[0]]
        if not errors:
            deform_convs.MOST_BYTES = 1
            ours += by_triton(*inputs)
            deform_convs.MOST_BYTES = 1 << 30
            ours += [one_gradient(i, *inputs) for i in range(3)]
            wanted += [*exact, *exact[1:]]
        errors[name] = [error(a, b) for a, b in zip(ours, wanted, strict=True)]
    return errors


def one_gradient(index: int, *inputs) -> Tensor:
    parts = [part.detach().requires_grad_(i == index) for i, part in enumerate(inputs[:3])]
    out = deform_convs.deform_conv(*parts, *inputs[3:])
    torch.manual_seed(1)
    return torch.autograd.grad(out, parts[index], torch.randn(out.shape))[0]


@pytest.fixture(scope='module')
def errors() -> dict[str, list[float]]:
    if importlib.util.find_spec('triton') is None:
        pytest.skip('needs triton')
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get('PYTHONPATH')])])
    env = os.environ | {'TRITON_INTERPRET': '1', 'PYTHONPATH': paths}
    done = subprocess.run([sys.executable, __file__], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_interpreted_kernels_give_mmcvs_outputs_and_gradients(name, errors):
    assert max(errors[name]) < 1e-5


def test_groups_in_a_block_have_zeros_between_them():
    torch.manual_seed(0)
    weight = torch.randn(12, 24, 2, 3, requires_grad=True)  # of 6 groups, 2 in a block
    blocks = deform_convs.merge_groups(weight, 6)
    assert blocks.shape == (3, 6, 48, 4)
    assert torch.equal(blocks[1, 4, 24:, 2:], weight[6:8, :, 1, 1].t())
    assert not blocks[:, :, :24, 2:].any() and not blocks[:, :, 24:, :2].any()
    blocks.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))


def test_what_the_kernels_do_not_take_stays_mmcvs():
    def supported(kind: type, *args: int, **kwargs: int) -> bool:
        return deform_convs.is_supported(kind(*args, 3, padding=1, **kwargs))

    assert supported(DeformConv2d, 256, 256) and supported(DeformConv2dPack, 512, 512, groups=64)
    assert supported(DeformConv2dPack, 64, 64, groups=4, deform_groups=4)
    assert not supported(DeformConv2d, 24, 24) and not supported(
        DeformConv2d, 64, 64, deform_groups=8
    )
    assert not supported(ModulatedDeformConv2dPack, 64, 64)


class Pair(nn.Module):
    """Both of mmcv's modules."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.pack = DeformConv2dPack(64, 64, 3, padding=1, groups=4)
        nn.init.normal_(self.pack.conv_offset.weight, std=0.05)
        self.conv = DeformConv2d(64, 32, 3, padding=1)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        return self.conv(self.pack(x).relu(), offset)


@pytest.fixture
def with_triton(monkeypatch):
    """Modules are replaced as where Triton is."""
    monkeypatch.setattr(deform_convs, 'find_triton', lambda: sys)


@pytest.mark.parametrize('size', [(6, 7), (2, 2)])
def test_replaced_modules_on_the_cpu_are_mmcvs_in_any_layout_and_type(size, with_triton):
    plain = Pair()
    replaced = copy.deepcopy(plain)
    deform_convs.replace_deform_convs(replaced)
    deform_convs.replace_deform_convs(replaced)
    assert all(deform_convs.is_replaced(m) for m in (replaced.pack, replaced.conv))
    assert not deform_convs.is_replaced(replaced.pack.conv_offset)
    replaced = copy.deepcopy(replaced).to(memory_format=torch.channels_last)
    x, offset = torch.randn(2, 64, *size), torch.randn(2, 18, *size)
    if size == (2, 2):
        plain, replaced = plain.conv, replaced.conv
    wanted = plain(x, offset)
    x = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(replaced(x, offset), wanted)
    with torch.autocast('cpu', torch.bfloat16):
        assert replaced(x.bfloat16(), offset).dtype == torch.float32
    with torch.no_grad():
        for parameter in replaced.parameters():
            parameter.zero_()
    assert wanted.any() and not replaced(x, offset).any()


def test_replaced_modules_stay_under_autocast_and_a_teachers_in_bfloat16(with_triton):
    plain, replaced = Pair(), Pair()
    deform_convs.replace_deform_convs(replaced)
    for model in (plain, replaced):
        model.to(memory_format=torch.channels_last)
        speed.keep_in_bfloat16(model)
        speed.keep_operators_plain(model, device='cpu')
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    assert {p.dtype for p in replaced.parameters()} == {torch.bfloat16}
    assert plain.conv.weight.is_contiguous() and not replaced.conv.weight.is_contiguous()
    assert plain.pack._forward_pre_hooks and not replaced.pack._forward_pre_hooks


def test_kernels_that_do_not_compile_leave_the_work_to_mmcv_for_good(monkeypatch, caplog):
    def fail(*args: object) -> None:
        raise RuntimeError('Failed to find C compiler.\nSet CC.')

    monkeypatch.setattr(deform_convs, '_broken', [])
    monkeypatch.setattr(deform_convs, '_tried', set())
    monkeypatch.setattr(deform_convs, '_can_run', lambda *args: not deform_convs._broken)
    monkeypatch.setattr(deform_convs, 'deform_conv', fail)
    monkeypatch.setattr(deform_convs, 'find_triton', lambda: sys)
    conv = DeformConv2d(64, 32, 3, padding=1)
    replaced = copy.deepcopy(conv)
    deform_convs.replace_deform_convs(replaced)
    x, offset = torch.randn(2, 64, 6, 7), torch.randn(2, 18, 6, 7)
    for _ in range(2):
        assert torch.equal(replaced(x, offset), conv(x, offset))
    (record,) = caplog.records
    assert record.getMessage().endswith('RuntimeError: Failed to find C compiler.')


@pytest.mark.gpu
@pytest.mark.parametrize('name', CASES)
def test_on_a_gpu_outputs_and_gradients_are_mmcvs(name, full_float32):
    inputs = case(name, 'cuda')
    for ours, exact in zip(by_triton(*inputs), by_mmcv(*inputs), strict=True):
        assert error(ours, exact) < 1e-4
    assert error(without_columns(*inputs), by_mmcv(*inputs)[0]) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize('name', CASES)
def test_on_a_gpu_in_bfloat16_they_are_near_mmcvs(name, full_float32):
    x, offset, weight, *rest = case(name, 'cuda')
    x, weight = x.bfloat16(), weight.bfloat16()
    ours, exact = by_triton(x, offset, weight, *rest), by_mmcv(x, offset, weight, *rest)
    assert [part.dtype for part in ours] == [
        torch.bfloat16,
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    ]
    for a, b in zip(ours, exact, strict=True):
        assert error(a, b) < 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(
    ('channels', 'groups', 'size', 'stride'),
    [(256, 1, (50, 84), 1), (512, 64, (50, 84), 1), (1024, 64, (50, 84), 2), (2048, 64, (25, 42), 1), (512, 1, (25, 42), 1)],
)  # fmt: skip
def test_on_a_gpu_the_papers_layers_are_mmcvs(channels, groups, size, stride, full_float32):
    torch.manual_seed(0)
    plain = DeformConv2dPack(channels, channels, 3, stride=stride, padding=1, groups=groups).cuda()
    nn.init.normal_(plain.conv_offset.weight, std=0.02)
    replaced = copy.deepcopy(plain)
    deform_convs.replace_deform_convs(replaced)
    x = torch.randn(2, channels, *size, device='cuda')
    exact = with_gradients(lambda x: plain(x), x)
    x = x.to(memory_format=torch.channels_last)
    for a, b in zip(with_gradients(lambda x: replaced(x), x), exact, strict=True):
        assert error(a, b) < 1e-4
    replaced(x).relu_().sum().backward()  # in place, as RepPoints' head does it
    assert replaced.weight.grad.any()
    replaced.bfloat16()
    with torch.autocast('cuda', torch.bfloat16):
        out = replaced(x.bfloat16())
    assert not deform_convs._broken
    assert out.dtype == torch.bfloat16 and out.is_contiguous(memory_format=torch.channels_last)
    # The offsets, up to two cells, are computed in bfloat16.
    assert error(out, exact[0]) < 3e-2


if __name__ == '__main__':
    print(json.dumps(interpret()))
