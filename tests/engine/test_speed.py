"""The speed switches: each gives what the plain path gives, to a stated tolerance."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch

from helpers import tiny
from helpers.tiny import SMALL, batch, gradients, large_batch, retinanet
from mtpd.config.recipe import load_recipe
from mtpd.config.schema import SWITCHES
from mtpd.distill.distiller import Distiller, Teacher
from mtpd.engine import speed
from mtpd.engine.loop import train_model
from mtpd.errors import RecipeError
from mtpd.preflight import trial
from mtpd.preflight.trial import example_images
from mtpd.utils.paths import ROOT

# isort: split
from mmcv.ops import DeformConv2d, ModulatedDeformConv2d
from mmcv.parallel import collate
from torch import nn

sys.path.insert(0, str(ROOT / 'benchmarks'))

MINI = 'configs/mini/retinanet_r50__r101_rx101.py'
RECIPES = sorted(path.stem for path in (ROOT / 'configs/mini').glob('*__*.py'))
OFF = speed.Speed()


def mini(name: str, **options):
    return load_recipe(f'configs/mini/{name}.py', options)


def shaken(model: nn.Module) -> nn.Module:
    """With batch norms that do something."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.normal_()
    return model


def pair(switches: speed.Speed, **options) -> tuple[nn.Module, nn.Module]:
    """The same `Distiller` twice, plain and with `switches`."""
    made = []
    for chosen in (OFF, switches):
        torch.manual_seed(0)
        link = dict(
            student_module='neck.fpn_convs.0.conv',
            teacher_module=options.get('hook', 'neck.fpn_convs.0.conv'),
            methods=[
                dict(
                    type='MGD',
                    name='loss_mgd',
                    student_channels=16,
                    teacher_channels=options.get('channels', 16),
                    alpha=1e-3,
                )
            ],
        )
        mode = options.get('teacher_mode', 'eval')
        args = (retinanet(), retinanet(depth=34), [link])
        model = Distiller(*args, teacher_checkpoint='random', teacher_mode=mode)
        shaken(model.teacher)
        made.append(speed.apply_speed(model.train(), chosen, 'cpu'))
    return made[0], made[1]


def test_auto_is_what_pays_on_the_device_and_a_choice_stays():
    kind = 'bf16' if speed.has_bfloat16('cpu') else 'fp32'
    everywhere = dict(channels_last=True, fold_teacher=True, fused_optimizer=True)
    assert speed.resolve_speed(None, 'cpu') == OFF._replace(
        precision=kind, keep_memory=True, **everywhere
    )
    chosen = {'precision': 'bf16', 'channels_last': False, 'fold_teacher': 'auto'}
    assert speed.resolve_speed(chosen, 'cpu') == OFF._replace(
        **everywhere | {'precision': 'bf16', 'channels_last': False, 'keep_memory': True}
    )
    on_a_gpu = speed.resolve_speed({'precision': 'fp32'}, 'cuda')
    assert on_a_gpu == speed.Speed('fp32', *[True] * len(SWITCHES))._replace(keep_memory=False)
    streams = dict.fromkeys(speed.CUDA_ONLY, True)
    assert not any(speed.resolve_speed(streams, 'cpu')._asdict()[name] for name in streams)
    off = speed.resolve_speed({'precision': 'tf32', **dict.fromkeys(SWITCHES, False)}, 'cpu')
    assert off == OFF


def test_a_recipe_is_refused_with_all_its_wrong_switches():
    options = {'speed.precision': 'fp16', 'speed.channels_last': 'maybe', 'speed.fold_teacher': 'x'}
    with pytest.raises(RecipeError) as error:
        load_recipe(MINI, options)
    text = str(error.value)
    assert "speed.precision is 'fp16': one of 'auto', 'fp32', 'tf32', 'bf16' is needed" in text
    assert "speed.channels_last is 'maybe': one of 'auto', True, False is needed" in text
    assert "speed.fold_teacher is 'x'" in text
    with pytest.raises(
        RecipeError, match=r"speed\.fold_teacher is 3 \(int\): one of 'auto', True, False is"
    ):
        load_recipe(MINI, {'speed.fold_teacher': 3})
    with pytest.raises(RecipeError, match=r'speed\.fold_teachers'):
        load_recipe(MINI, {'speed.fold_teachers': True})


@pytest.mark.parametrize('name', RECIPES)
def test_a_folded_teacher_in_channels_last_gives_the_same_features(name):
    recipe = mini(name)
    for teacher in recipe.pool:
        cfg = recipe.model(teacher)
        cfg.backbone.init_cfg = None
        torch.manual_seed(0)
        plain = shaken(Teacher(cfg)).eval()
        images = torch.randn(2, 3, 96, 128)
        with torch.no_grad():
            expected = plain(images)
            before = sum(isinstance(m, nn.BatchNorm2d) for m in plain.backbone.modules())
            speed.fold_teacher(plain)
            plain.to(memory_format=torch.channels_last)
            speed.keep_operators_plain(plain, device='cpu')
            features = plain(images)
        after = sum(isinstance(m, nn.BatchNorm2d) for m in plain.backbone.modules())
        deformable = sum(
            isinstance(m, ModulatedDeformConv2d | DeformConv2d) for m in plain.modules()
        )
        assert after == min(before, deformable)  # theirs stay
        assert not any(p.requires_grad for p in plain.parameters())
        for a, b in zip(expected, features, strict=True):
            assert ((a - b).norm() / a.norm()) < 1e-5


@pytest.mark.parametrize('switch', ['channels_last', 'fold_teacher'])
def test_losses_and_gradients_are_those_of_the_plain_path(switch):
    plain, fast = pair(OFF._replace(**{switch: True}))
    (expected, plain_grads), (losses, fast_grads) = gradients(plain), gradients(fast)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert plain_grads.keys() == fast_grads.keys()
    for key, value in plain_grads.items():
        torch.testing.assert_close(fast_grads[key], value, rtol=1e-3, atol=1e-5 * value.abs().max())


def test_what_is_folded_and_laid_out():
    _, fast = pair(speed.resolve_speed(None, 'cpu'))

    def batch_norms(module):
        return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())

    assert batch_norms(fast.teacher.backbone) == 0
    assert batch_norms(fast.student.backbone) == 20

    def channels_last(module):
        return all(
            m.weight.is_contiguous(memory_format=torch.channels_last)
            for m in module.modules()
            if isinstance(m, nn.Conv2d)
        )

    assert channels_last(fast.teacher)
    assert channels_last(fast.student.neck)
    assert channels_last(fast.student.bbox_head)
    assert not channels_last(fast.student.backbone)  # unsafe on the CPU


def test_a_teacher_in_train_mode_or_hooked_inside_is_not_folded():
    switches = OFF._replace(fold_teacher=True)
    for options in ({'teacher_mode': 'train'}, {'hook': 'backbone.layer2.0.conv1'}):
        _, fast = pair(switches, **options)
        assert any(isinstance(m, nn.BatchNorm2d) for m in fast.teacher.backbone.modules())


@pytest.mark.parametrize('kind', ['AdamW', 'SGD'])
def test_the_fused_optimizer_makes_the_same_updates(kind):
    from mmcv.runner import build_optimizer

    cfg = dict(type=kind, lr=1e-2, weight_decay=0.05)
    ends = []
    for fused in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
        options = speed.optimizer_config(cfg, OFF._replace(fused_optimizer=fused))
        optimizer = build_optimizer(model, dict(options))
        assert optimizer.defaults['fused'] is (True if fused else None) or not fused
        for _ in range(50):
            optimizer.zero_grad()
            model(torch.ones(3, 8)).square().sum().backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)


def test_an_optimizer_that_says_how_it_works_or_has_no_such_kernel_is_left_alone():
    on = OFF._replace(fused_optimizer=True)
    for cfg in (dict(type='AdamW', lr=1, foreach=True), dict(type='RMSprop', lr=1)):
        assert speed.optimizer_config(cfg, on) == cfg
    assert speed.optimizer_config(dict(type='SGD', lr=1), on) == dict(type='SGD', lr=1, fused=True)


@pytest.mark.parametrize('name', RECIPES)
@pytest.mark.parametrize('kind_of', ['off', 'default', 'as on a GPU'])
def test_bfloat16_trains_every_kind_of_detector(name, kind_of):
    """Losses near those of float32, and full-precision gradients for the same weights."""
    switches, whole = speed.resolve_speed(None, 'cpu'), kind_of == 'as on a GPU'
    if kind_of == 'off':
        switches = OFF
    recipe, results, dtypes = mini(name), [], {}
    for kind in ('fp32', 'bf16'):
        torch.manual_seed(0)
        model = trial.untrained_detector(recipe, 'student', recipe.pool[0]).train()
        for module in model.modules():
            if getattr(module, 'drop_prob', None):
                module.drop_prob = 0.0
        speed.apply_speed(model, switches._replace(precision='fp32' if whole else kind), 'cpu')
        if whole and kind == 'bf16':  # the student's backbone too
            speed.use_bfloat16(model, model.student, 'cpu', backbone=True)
        if kind == 'bf16':
            for path, module in model.named_modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.register_forward_hook(
                        lambda m, a, out, path=path: dtypes.update({path: out.dtype})
                    )
        results.append(gradients(model, **large_batch('mask' in name)))
        assert not torch.is_autocast_enabled('cpu')
    half = {path for path, dtype in dtypes.items() if dtype == torch.bfloat16}
    dtypes.clear()
    data = large_batch(masks=False)
    with torch.no_grad():  # as evaluation during training does
        model.eval().simple_test(data['img'], data['img_metas'])
    assert dtypes and set(dtypes.values()) == {torch.float32}
    (expected, plain_grads), (losses, grads) = results
    assert losses.keys() == expected.keys()
    for key, value in expected.items():
        assert losses[key] == pytest.approx(value, rel=0.1, abs=0.05), key
    assert grads.keys() == plain_grads.keys()
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in grads.values())
    assert any(path.startswith('student.neck') for path in half)
    assert any('_head' in path for path in half)
    assert any('generation' in path for path in half)
    assert any(path.startswith('student.backbone') for path in half) == whole
    assert not any('reppoints_pts_' in path and path.endswith('_out') for path in half)


def test_in_bfloat16_the_gradient_from_a_map_one_cell_wide_is_that_of_float32():
    """torch 2.13's own reads memory that was never written, on processors that multiply in bfloat16."""
    images = [
        torch.randn(2, channels, side, side) for channels, side in ((16, 4), (32, 2), (64, 1))
    ]

    def gradient(precision: str) -> torch.Tensor:
        cfg = retinanet()
        cfg['neck'].update(num_outs=4, add_extra_convs='on_input')
        model = tiny.detector(cfg, seed=0).train()
        model = speed.apply_speed(model, speed.Speed(precision=precision), 'cpu')
        used = [torch.full((count,), math.nan) for count in (64, 256, 2304, 4096, 65536)]
        del used  # what is allocated next begins with them
        sum(level.float().square().sum() for level in model.neck(images)).backward()
        return model.neck.fpn_convs[3].conv.weight.grad

    wanted = gradient('fp32')
    for _ in range(5):
        assert torch.allclose(gradient('bf16'), wanted, atol=0.02 * float(wanted.abs().max()))


def test_autocast_ends_with_the_module_also_where_it_fails():
    class Fails(nn.Module):
        def forward(self, x):
            assert torch.is_autocast_enabled('cpu')
            raise ValueError('on purpose')

    module = Fails()
    speed.AutocastScope('cpu', True).on(module)
    with pytest.raises(ValueError, match='on purpose'):
        module(torch.ones(1))
    assert not torch.is_autocast_enabled('cpu')


def test_a_scope_of_full_precision_takes_float32_inside_one_of_bfloat16():
    seen = []

    class Inner(nn.Module):
        def forward(self, x, other=None):
            seen.extend([torch.is_autocast_enabled('cpu'), x[0].dtype, other.dtype])
            return x[0]

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.conv = Inner(), nn.Conv2d(1, 1, 1)

        def forward(self, x):
            made = self.conv(x)
            assert made.dtype == torch.bfloat16
            inner_output = self.inner([made], other=made)
            return {'again': (self.conv(inner_output), [inner_output])}

    module = Outer()
    speed.AutocastScope('cpu', True, full_output=True).on(module)
    speed.AutocastScope('cpu', False).on(module.inner)
    out = module(torch.ones(1, 1, 2, 2))
    assert seen == [False, torch.float32, torch.float32]
    assert out['again'][0].dtype == torch.float32  # of the convolution, which gave bfloat16


def test_with_everything_off_the_losses_are_the_originals():
    """Against the rebuilt original, with nothing masked: it masks other cells of the same draws."""
    from original import Original

    recipe = load_recipe(
        MINI, {'distill.settings.mgd.mask_ratio': 0.0, 'distill.teacher_mode': 'train'}
    )
    torch.manual_seed(0)
    theirs = Original(recipe, 'r101').train()
    ours = trial.untrained_detector(recipe, 'student', 'r101')
    ours.teacher_mode = 'train'
    ours.student.load_state_dict(theirs.student.state_dict())
    ours.distill_losses.load_state_dict(theirs.distill_losses.state_dict())
    wanted = ours.teacher.state_dict()
    ours.teacher.load_state_dict(
        {k: v for k, v in theirs.teacher.state_dict().items() if k in wanted}
    )
    ours = speed.apply_speed(ours.train(), OFF, 'cpu')
    data = dict(batch(num_classes=10))
    (expected, their_grads), (losses, our_grads) = (
        gradients(theirs, **data),
        gradients(ours, **data),
    )
    assert losses == pytest.approx(expected, rel=1e-6)
    their_grads = {k: v for k, v in their_grads.items() if not k.startswith('teacher.')}
    assert their_grads.keys() == our_grads.keys()
    for key, value in their_grads.items():
        torch.testing.assert_close(our_grads[key], value)


@pytest.mark.gpu
def test_the_teachers_stream_and_bfloat16_on_a_gpu_give_the_plain_losses():
    losses = []
    for switches in (OFF, OFF._replace(teacher_stream=True), speed.resolve_speed(None, 'cuda')):
        torch.manual_seed(0)
        model = (
            trial.untrained_detector(mini('retinanet_r50__r101_rx101'), 'student', 'r101')
            .cuda()
            .train()
        )
        speed.apply_speed(model, switches, 'cuda')
        assert model.teacher.own_stream == switches.teacher_stream
        data = large_batch(masks=False)
        data['img'] = data['img'].cuda()
        for key in ('gt_bboxes', 'gt_labels'):
            data[key] = [value.cuda() for value in data[key]]
        losses.append(gradients(model, **data)[0])
    plain, streamed, default = losses
    assert streamed == pytest.approx(plain, rel=1e-4)
    assert default == pytest.approx(plain, rel=0.1, abs=0.05)


DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]


def everything(device: str) -> speed.Speed:
    """What pays on a GPU, without streams on the CPU, where there are none."""
    switches = speed.resolve_speed({'precision': 'bf16'}, 'cuda')
    on_the_cpu = dict(teacher_stream=False, target_stream=False)
    return switches if device == 'cuda' else switches._replace(**on_the_cpu)


def to_device(data: dict, device: str) -> dict:
    moved = data | {'img': data['img'].to(device)}
    return moved | {k: [v.to(device) for v in data[k]] for k in ('gt_bboxes', 'gt_labels')}


@pytest.mark.parametrize('device', DEVICES)
def test_a_copy_of_what_is_prepared_trains_by_itself(device):
    torch.manual_seed(0)
    model = trial.untrained_detector(mini('retinanet_r50__r101_rx101'), 'student', 'rx101').to(
        device
    )
    speed.apply_speed(model.train(), everything(device), device)
    data = to_device(large_batch(masks=False), device)
    copied = copy.deepcopy(model)
    losses, by_weight = gradients(copied, **data)
    assert by_weight and all(p.grad is None for p in model.parameters())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    again, _ = gradients(model, **data)
    assert again == pytest.approx(losses, rel=1e-5 if device == 'cpu' else 1e-2)


@pytest.mark.parametrize('device', DEVICES)
def test_gradients_lie_in_memory_as_their_weights_do(device):
    """Else processes that share a training copy each gradient."""
    torch.manual_seed(0)
    model = trial.untrained_detector(mini('retinanet_r50__r101_rx101'), 'student', 'rx101').to(
        device
    )
    speed.apply_speed(model.train(), everything(device), device)
    _, by_weight = gradients(model, **to_device(large_batch(masks=False), device))
    strides = {name: p.stride() for name, p in model.named_parameters() if name in by_weight}
    assert any(len(stride) == 4 and stride[1] == 1 for stride in strides.values())
    assert {name: gradient.stride() for name, gradient in by_weight.items()} == strides


@pytest.mark.parametrize('name', ['retinanet_r50__r101_rx101', 'reppoints_r50__r101_rx101dcn'])
def test_a_teacher_kept_in_bfloat16_gives_autocasts_numbers(name):
    recipe = mini(name)
    cfg = recipe.model(recipe.pool[-1])
    cfg.backbone.init_cfg = None
    torch.manual_seed(0)
    cast = shaken(Teacher(cfg)).eval()
    bfloat16 = copy.deepcopy(cast)
    speed.keep_in_bfloat16(bfloat16)
    for teacher in (cast, bfloat16):
        speed.keep_operators_plain(teacher, device='cpu')
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        for a, b in zip(cast(images), bfloat16(images), strict=True):
            assert torch.equal(a, b)
    weights = [m.weight for m in bfloat16.modules() if type(m) is nn.Conv2d]
    assert sum(w.dtype == torch.bfloat16 for w in weights) > 10


def test_a_swin_teacher_kept_in_bfloat16_is_as_near_to_float32_as_under_autocast():
    recipe = mini('retinanet_r50__swint_swins')
    cfg = recipe.model(recipe.pool[-1])
    cfg.backbone.init_cfg = None
    torch.manual_seed(0)
    full = Teacher(cfg).eval()
    bfloat16, images = copy.deepcopy(full), torch.randn(2, 3, 96, 128)
    speed.keep_in_bfloat16(bfloat16)
    between: list[torch.dtype] = []
    bfloat16.backbone.stages[1].blocks[0].register_forward_hook(
        lambda m, a, out: between.append(out.dtype)
    )
    with torch.no_grad():
        exact = full(images)
        with torch.autocast('cpu', torch.bfloat16):
            cast, ours = full(images), bfloat16(images)
    assert between == [torch.bfloat16]
    for a, b, c in zip(ours, cast, exact, strict=True):
        assert (a.float() - c).norm() < 1.5 * (b.float() - c).norm()


def tf32() -> tuple[bool, bool]:
    """Whether a GPU's convolutions and matrix products round their factors."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize('before', [(True, False), (True, True), (False, False)])
@pytest.mark.parametrize('asked', ['fp32', 'tf32', 'bf16'])
def test_factors_are_rounded_as_asked_in_the_block_only(before, asked):
    backends, usual = (torch.backends.cudnn, torch.backends.cuda.matmul), tf32()
    try:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
        with pytest.raises(KeyboardInterrupt), speed.tf32_products(asked):
            assert tf32() == (asked != 'fp32',) * 2
            raise KeyboardInterrupt
        assert tf32() == before
    finally:
        for backend, value in zip(backends, usual, strict=True):
            backend.allow_tf32 = value


@pytest.mark.parametrize(('asked', 'rounded'), [('fp32', False), ('tf32', True), ('bf16', True)])
def test_trainings_and_trials_have_their_precision(tmp_path, tiny_coco, asked, rounded):
    """And the original's way, all switches off, has that of its torch."""
    data = {'data.root': str(tiny_coco(tmp_path / 'coco')), 'speed.precision': asked}
    recipe, seen = load_recipe(MINI, SMALL | data), []

    def watched(model):
        forward = model.forward_train
        model.forward_train = lambda *a, **k: (seen.append(tf32()), forward(*a, **k))[1]
        return model

    assert tf32() == (True, False)  # torch's own
    train_model(
        recipe,
        lambda: watched(trial.untrained_detector(recipe, 'student', None)),
        recipe.model('student'),
        tmp_path / 'run',
        1,
        0,
    )
    for switches in (speed.resolve_speed(recipe.cfg.speed, 'cpu'), OFF):
        model = watched(trial.untrained_detector(recipe, 'student', None))
        images = example_images(recipe, tmp_path, 1, 0, masks=False)
        trial.Update(model, recipe, switches._replace(keep_memory=False), 'cpu')(
            collate([images[0]], 1)
        )
    assert seen == [(rounded, rounded), (rounded, rounded), (True, True)]
    assert tf32() == (True, False)


@pytest.mark.gpu
@pytest.mark.parametrize('asked', ['fp32', 'tf32'])
def test_full_precision_on_a_gpu(asked):
    """Sums of 2,304 products: float32 is off by less than 2^-17 of them, factors of 10 bits by more than 2^-14."""
    torch.manual_seed(0)
    image, weight = torch.randn(2, 256, 32, 32).cuda(), torch.randn(64, 256, 3, 3).cuda()
    exact = torch.conv2d(image.double(), weight.double())
    with speed.tf32_products(asked):
        off = float((torch.conv2d(image, weight) - exact).norm() / exact.norm())
    assert off < 2**-17 if asked == 'fp32' else off > 2**-14


def test_what_ends_a_training_does_not_leave_bfloat16_behind():
    class Ended(nn.Conv2d):
        def forward(self, x):
            super().forward(x)
            raise KeyboardInterrupt

    ended = Ended(2, 2, 1)
    speed.AutocastScope('cpu', True).on(ended)
    image = torch.ones(1, 2, 3, 3)
    with pytest.raises(KeyboardInterrupt), speed.restored_autocast('cpu'):
        ended(image)
    assert not torch.is_autocast_enabled('cpu') and speed._autocast_depth() == 0
    plain = nn.Conv2d(2, 2, 1)
    assert plain(image).dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16), speed.restored_autocast('cpu'):
        assert plain(image).dtype == torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16):
        with speed.restored_autocast('cpu'):
            pass
        assert plain(image).dtype == torch.bfloat16  # as it was before
    assert plain(image).dtype == torch.float32
