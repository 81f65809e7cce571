"""Norms in convolutions, and fused convolutions, compute what the separate operations do."""

from __future__ import annotations

import copy

import pytest
import torch

from mtpd.engine import folded_norms, fused_convs, speed

# isort: split
from mmcv import ConfigDict
from mmcv.cnn import ConvModule, fuse_conv_bn
from mmdet.models import build_backbone
from torch import nn

RESNET = dict(type='ResNet', depth=50, norm_eval=True, base_channels=8, stem_channels=8)
BACKBONES = {
    'ResNet-50': RESNET,
    'ResNet-18': RESNET | dict(depth=18),
    'with a deep stem': RESNET | dict(type='ResNetV1d'),
    'ResNeXt-50': dict(type='ResNeXt', depth=50, groups=4, base_width=4, norm_eval=True),
    'deformable': RESNET
    | dict(dcn=dict(type='DCNv2', deform_groups=1), stage_with_dcn=(False, True, True, True)),
    'norms that take statistics': RESNET | dict(norm_eval=False),
}


def backbone(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = build_backbone(ConfigDict(BACKBONES[name]))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    model.train()  # which returns nothing
    return model


def outputs_and_gradients(model: nn.Module, device: str = 'cpu') -> tuple[list, dict]:
    torch.manual_seed(1)
    model.zero_grad()
    images = torch.randn(2, 3, 64, 96).to(device)
    outputs = model(images)
    sum(out.pow(2).mean() for out in outputs).backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    return [out.detach() for out in outputs], gradients


def assert_equal(
    plain: nn.Module, other: nn.Module, device: str = 'cpu', tolerance: float = 1e-4
) -> None:
    (wanted, by_weights), (outs, theirs) = (
        outputs_and_gradients(m, d) for m, d in ((plain, device), (other, device))
    )
    assert by_weights.keys() == theirs.keys()
    pairs = [*zip(wanted, outs, strict=True), *((v, theirs[k]) for k, v in by_weights.items())]
    for a, b in pairs:
        assert (a - b).norm() <= tolerance * a.norm() + 1e-7


@pytest.mark.parametrize('name', BACKBONES)
def test_norms_in_convolutions_give_the_same_outputs_and_gradients(name):
    plain = backbone(name)
    folded = copy.deepcopy(plain)
    names = list(folded.state_dict())
    count = folded_norms.fold_norms(folded)
    in_order = sum(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    behind_deformable = 13 if name == 'deformable' else 0
    assert count == in_order - behind_deformable
    assert list(folded.state_dict()) == names
    assert_equal(plain, folded)
    for model in (plain, folded):
        model.eval()
    assert_equal(plain, copy.deepcopy(folded))


def test_a_norm_in_its_convolution_passes_on_what_it_gets():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).eval()
    folded_norms.fold_norms(model)
    images = torch.randn(1, 3, 5, 5)
    assert torch.equal(
        model[1](images[:, :1].expand(-1, 4, -1, -1)), images[:, :1].expand(-1, 4, -1, -1)
    )


def test_a_hooked_convolution_keeps_its_output():
    model = backbone('ResNet-50')
    hooked, outputs = model.layer2[0].conv1, []
    folded_norms.fold_norms(model, {hooked})
    fused_convs.fuse_convs(model, {hooked})
    assert 'forward' in vars(model.layer2[1]) and 'forward' not in vars(model.layer2[0])
    hooked.register_forward_hook(lambda module, args, output: outputs.append((args[0], output)))
    model(torch.randn(1, 3, 64, 64))
    ((x, output),) = outputs
    assert torch.equal(output, nn.functional.conv2d(x, hooked.weight))


@pytest.mark.parametrize('name', BACKBONES)
def test_fused_convolutions_change_nothing_on_the_cpu(name):
    plain = backbone(name)
    fused = copy.deepcopy(plain)
    folded_norms.fold_norms(fused)
    fused_convs.fuse_convs(fused)
    assert_equal(plain, copy.deepcopy(fused))


@pytest.mark.gpu
@pytest.mark.parametrize('name', BACKBONES)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_fused_convolutions_on_a_gpu_give_the_same_outputs_and_gradients(
    name, layout, full_float32
):
    plain = backbone(name).cuda()
    fused = copy.deepcopy(plain)
    folded_norms.fold_norms(fused)
    fused_convs.fuse_convs(fused)
    if 'deformable' not in name:
        fused.to(memory_format=layout)
    # Norms that take statistics of 2 x 3 cells multiply what the layouts' kernels round differently.
    tolerance = 1e-3 if name == 'norms that take statistics' else 1e-4
    assert_equal(plain, copy.deepcopy(fused), 'cuda', tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('groups', [1, 4])
@pytest.mark.parametrize('residual', [False, True])
def test_one_kernel_is_the_sum_of_its_parts(dtype, groups, residual, full_float32):
    torch.manual_seed(0)
    conv = nn.Conv2d(32, 64, 3, stride=2, padding=1, groups=groups).cuda()
    x = torch.randn(2, 32, 24, 31, device='cuda', requires_grad=True)
    more = torch.randn(2, 64, 12, 16, device='cuda', requires_grad=True) if residual else None
    inputs = [x, conv.weight, conv.bias, *([more] if residual else [])]
    weights = torch.randn(2, 64, 12, 16, device='cuda')

    def separate() -> torch.Tensor:
        out = conv(x)
        return (out + (more.to(out.dtype) if residual else 0)).relu()

    def with_gradients(out: torch.Tensor) -> list[torch.Tensor]:
        return [out, *torch.autograd.grad((out * weights).sum(), inputs)]

    exact = with_gradients(separate())
    with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
        ours, theirs = fused_convs.conv_relu(x, conv, residual=more), separate()
    assert ours.dtype == theirs.dtype == dtype
    for a, b, c in zip(with_gradients(ours), with_gradients(theirs), exact, strict=True):
        off, allowed = (a.float() - c).norm(), (b.float() - c).norm()
        assert off <= 1.2 * allowed + 1e-5 * c.norm()


def test_a_convolution_without_norm_is_fused_and_one_with_another_activation_is_not():
    model = nn.Sequential(
        ConvModule(3, 4, 3), ConvModule(4, 4, 3, act_cfg=None), ConvModule(4, 4, 3, act_cfg=dict(type='GELU'))
    )  # fmt: skip
    fused_convs.fuse_convs(model)
    assert ['forward' in vars(module) for module in model] == [True, False, False]


@pytest.mark.parametrize(
    'name', [name for name in BACKBONES if name != 'norms that take statistics']
)
def test_merged_norms_are_mmcvs_to_the_bit(name):
    model = backbone(name)
    model.eval()
    images = torch.randn(1, 3, 96, 128)
    merged = folded_norms.with_merged_norms(model)
    wanted = fuse_conv_bn(copy.deepcopy(model))
    for a, b in zip(wanted(images), merged(images), strict=True):
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize(
    'more',
    [
        dict(conv_cfg=dict(type='ConvAWS')),
        dict(
            type='DetectoRS_ResNet',
            conv_cfg=dict(type='ConvAWS'),
            sac=dict(type='SAC', use_deform=True),
            stage_with_sac=(False, True, True, True),
        ),
    ],
    ids=['ConvAWS', 'SAC'],
)
def test_a_convolution_that_standardises_its_weight_keeps_its_norm(more):
    """DetectoRS' and ResNet-with-weight-standardisation's; mmcv's `fuse_conv_bn` folds them into something else."""
    torch.manual_seed(0)
    model = build_backbone(ConfigDict(RESNET | more))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
    model.eval()
    images = torch.randn(1, 3, 96, 128)
    wanted, merged = model(images), folded_norms.with_merged_norms(model)(images)
    wrong = fuse_conv_bn(copy.deepcopy(model))(images)
    for a, b, c in zip(wanted, merged, wrong, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
        assert (a - c).abs().max() > 0.1 * a.abs().max()


class _NormFirst(nn.Module):
    """Registers a norm behind a convolution and applies it before."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(0.5)
        self.norm.running_var.fill_(4)

    def forward(self, x):
        return (self.conv(self.norm(x)),)


def test_a_norm_that_is_applied_elsewhere_is_left_and_said(capsys):
    teacher = nn.Module()
    teacher.backbone = _NormFirst().eval()
    assert folded_norms.with_merged_norms(teacher.backbone) is None
    speed.fold_teacher(teacher)
    assert isinstance(teacher.backbone.norm, nn.BatchNorm2d)
    assert '_NormFirst gives other features' in capsys.readouterr().out
