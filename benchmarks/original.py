"""The original code's distillation step, rebuilt from its description to be measured against: see `distill_step.py`.

In it the teacher is a whole detector in the module tree, which the runner puts into train mode; hooks keep features as
buffers, looked up among all buffers in each update; MGD draws its masks on the CPU.
"""

from mtpd.runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import torch
from mmcv import ConfigDict
from mmdet.models import BaseDetector, build_detector
from torch import Tensor, nn

from mtpd.config.recipe import Recipe
from mtpd.engine.distill_config import distill_cfg
from mtpd.runtime import target_assignment


class MaskedGeneration(nn.Module):
    """MGD of equal channels."""

    def __init__(self, channels: int, alpha: float, mask_ratio: float):
        super().__init__()
        self.alpha, self.mask_ratio = alpha, mask_ratio
        self.generation = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        n, _, h, w = teacher.shape
        drawn = torch.rand((n, 1, h, w)).to(student.device)
        mask = torch.where(drawn > 1 - self.mask_ratio, 0, 1).to(student.device)
        made = self.generation(student * mask)
        return self.alpha * nn.functional.mse_loss(made, teacher, reduction='sum') / n


class Original(BaseDetector):
    """A student distilled by MGD, as the original code does it; weights are random."""

    def __init__(self, recipe: Recipe, teacher: str):
        super().__init__()
        student_cfg, teacher_cfg = recipe.model('student'), recipe.model(teacher)
        self.links = distill_cfg(recipe, student_cfg, teacher_cfg)
        for cfg in (student_cfg, teacher_cfg):
            cfg.backbone.init_cfg = None
        self.teacher = build_detector(ConfigDict(teacher_cfg))
        self.student = build_detector(ConfigDict(student_cfg))
        self.student.init_weights()
        self.distill_losses = nn.ModuleDict()
        for link in self.links:
            (method,) = link['methods']
            if method['type'] != 'MGD' or method['student_channels'] != method['teacher_channels']:
                raise SystemExit('only MGD between equal numbers of channels has been rebuilt')
            self.distill_losses[method['name']] = MaskedGeneration(
                method['student_channels'], method['alpha'], method['mask_ratio']
            )
            self.keep('student', link['student_module'])
            self.keep('teacher', link['teacher_module'])

    def keep(self, who: str, path: str) -> None:
        name = f'{who}_{path}'.replace('.', '_')
        self.register_buffer(name, None)
        module = dict(getattr(self, who).named_modules())[path]
        module.register_forward_hook(lambda _, __, output: self.register_buffer(name, output))

    def forward_train(self, img: Tensor, img_metas: list, **gt) -> dict:
        with torch.no_grad():
            self.teacher.extract_feat(img)
        with target_assignment.original_assignment():
            losses = self.student.forward_train(img, img_metas, **gt)
        features = dict(self.named_buffers())
        for link in self.links:
            name = link['methods'][0]['name']
            losses[name] = self.distill_losses[name](
                features[f'student_{link["student_module"]}'.replace('.', '_')],
                features[f'teacher_{link["teacher_module"]}'.replace('.', '_')],
            )
        return losses

    def extract_feat(self, imgs):
        raise NotImplementedError  # it only trains

    simple_test = aug_test = extract_feat
