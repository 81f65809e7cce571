"""What is wrong with a plain mmdet config, besides its files: said before anything is trained, each with its fix."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
import copy
import inspect
import sys
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from typing import Any

from mmcv import Config
from mmcv.runner import HOOKS, LoggerHook
from mmcv.utils import build_from_cfg
from mmdet.core import DistEvalHook, EvalHook
from mmdet.datasets import PIPELINES, CocoDataset
from mmdet.models.dense_heads import GARPNHead, RPNHead
from mmdet.models.roi_heads import FusedSemanticHead
from mmdet.models.seg_heads.base_semantic_head import BaseSemanticHead
from torch import nn

from ..config.files import CLASS_AGNOSTIC_PARTS
from ..distill.initialization import warm_start
from ..engine.hooks import EMA_HOOKS
from ..errors import MtpdError, unknown_name
from ..preflight import checks
from ..preflight.detectors import other_task

METRICS = ('bbox', 'segm', 'proposal', 'proposal_fast')  # that mmdet has for COCO's format
RUNNERS = {'EpochBasedRunner': 'max_epochs', 'IterBasedRunner': 'max_iters'}  # and their lengths


def settings_problems(cfg: Config) -> list[str]:
    """What is wrong with the settings of a training: its schedule, its hooks and its evaluation."""
    return [
        *_schedule_problems(cfg),
        *_hook_problems(cfg),
        *(_evaluation_problems(cfg.evaluation) if cfg.get('evaluation') else ()),
    ]


def _schedule_problems(cfg: Config) -> Iterator[str]:
    for key in ('runner', 'optimizer', 'optimizer_config', 'lr_config'):
        if cfg.get(key) is None:
            yield f'{key} is missing, so the config can be tested but not trained.'
    if runner := cfg.get('runner'):
        length = RUNNERS.get(runner.get('type'))
        if length is None:
            yield unknown_name('runner.type', str(runner.get('type')), RUNNERS)
        elif not isinstance(runner.get(length), int):
            yield f'runner.{length}, the length of the training by {runner.type}, is missing.'
        for key in runner.keys() - {'type', length} if length else ():
            if key not in RUNNERS.values():
                yield unknown_name('key', f'runner.{key}', [f'runner.{length}'])
            elif runner[key] is not None:
                yield (
                    f'runner has {key} and {length}, and {runner.type} counts by {length} alone. '
                    f'Give --cfg-options runner.{key}=None'
                )
    if policy := cfg.get('lr_config'):
        yield from checks.policy_problems('lr_config', policy)
    step = cfg.get('optimizer_config') or {}
    yield from checks.clip_problems('optimizer_config.grad_clip', step.get('grad_clip'))
    if 'type' in step:
        yield from checks.refusal(
            'optimizer_config', step, lambda: build_from_cfg(copy.deepcopy(step), HOOKS)
        )
    if any(phase[0] != 'train' for phase in cfg.get('workflow') or ()):
        yield (
            f'workflow is {cfg.workflow}: no losses are computed on the validation split here, `evaluation` measures it. '
            'Give --cfg-options "workflow=[(\'train\',1)]"'
        )
    if cfg.get('resume_from'):
        yield (
            f'resume_from is {cfg.resume_from}, but a training goes on only from its own --work-dir, by the same '
            f'command. Give --cfg-options resume_from=None (and load_from={cfg.resume_from}, to begin with its weights)'
        )


def _hook_problems(cfg: Config) -> Iterator[str]:
    loggers = list((cfg.get('log_config') or {}).get('hooks') or ())
    wrong = {}
    for number, logger in enumerate(loggers):
        if problems := checks.logger_problems('log_config.hooks', logger):
            wrong[number] = problems
    rest = [dict(hook) for number, hook in enumerate(loggers) if number not in wrong]
    for problems in wrong.values():
        yield f'{problems[0]} Or leave it out: --cfg-options "log_config.hooks={rest}"'
    hooks = custom_hooks(cfg)
    wrong = {number: text for number, hook in enumerate(hooks) if (text := _leave_out(cfg, hook))}
    rest = [dict(hook) for number, hook in enumerate(hooks) if number not in wrong]
    for text in wrong.values():
        yield f'{text} Or leave it out: --cfg-options "custom_hooks={rest}"'
    for hook in rest:
        settings = {key: value for key, value in hook.items() if key != 'priority'}
        problems = checks.refusal(
            'custom_hooks', hook, lambda s=settings: build_from_cfg(copy.deepcopy(s), HOOKS)
        )
        yield from problems


def _leave_out(cfg: Config, hook: dict) -> str:
    """Why a custom hook, whose settings may be right, is of no use here; empty where it is."""
    kind = HOOKS.get(hook.get('type', ''))
    if kind and issubclass(kind, LoggerHook):
        return ''.join(checks.logger_problems('custom_hooks', hook))
    counts_epochs = (cfg.get('runner') or {}).get('type') != 'IterBasedRunner'
    if counts_epochs or not kind or not issubclass(kind, EMA_HOOKS):
        return ''
    return (
        f'custom_hooks: {hook["type"]} puts its average of the weights into the detector only at the end of an epoch, and an '
        'IterBasedRunner has no epochs: the average would be neither measured nor saved. Train with an EpochBasedRunner, '
        'whose lr_config, checkpoint_config and evaluation count epochs.'
    )


def custom_hooks(cfg: Config) -> list[dict]:
    """The config's custom hooks; mmcv takes one alone, too."""
    hooks = cfg.get('custom_hooks') or []
    return [hooks] if isinstance(hooks, dict) else list(hooks)


def _stated_metrics(evaluation: dict) -> list[str]:
    stated = evaluation.get('metric', 'bbox')
    return [stated] if isinstance(stated, str) else list(stated)


def _evaluation_problems(evaluation: dict) -> Iterator[str]:
    metrics = _stated_metrics(evaluation)
    if wrong := [name for name in metrics if name not in METRICS]:
        rest = [name for name in metrics if name not in wrong] or ['bbox']
        fix = f'"evaluation.metric={rest}"' if len(rest) > 1 else f'evaluation.metric={rest[0]}'
        yield (
            f'evaluation.metric is {", ".join(metrics)}: COCO has {", ".join(METRICS)}; mAP and recall are those of VOC. '
            f'Give --cfg-options {fix}'
        )
    elif not {'bbox', 'segm'} & set(metrics):
        yield (
            f'evaluation.metric is {", ".join(metrics)}, of proposals: detectors are measured by bbox or segm. '
            'Give --cfg-options evaluation.metric=bbox'
        )
    interval = evaluation.get('interval', 1)
    if not isinstance(interval, int) or interval < 1:
        yield (
            f'evaluation.interval is {interval!r}: a number from 1 on is needed. Without evaluations during the '
            'training: --cfg-options evaluation=None'
        )
    best = evaluation.get('save_best')
    if best and best != 'auto' and best.partition('_')[0] not in METRICS:
        metric = metrics[0] if metrics[0] in METRICS else 'bbox'
        yield (
            f"evaluation.save_best is {best!r}, which is not one of COCO's numbers. "
            f'Give --cfg-options evaluation.save_best={metric}_mAP'
        )
    functions = (EvalHook, DistEvalHook, *EvalHook.__mro__[1:2], *DistEvalHook.__mro__[1:2])
    known = set().union(*(inspect.signature(function).parameters for function in functions))
    known |= inspect.signature(CocoDataset.evaluate).parameters.keys()
    for key in evaluation:
        if key not in known:
            yield f'evaluation: {unknown_name("key", key, sorted(known))}'


# Data loaders and pipelines


def settle_loaders(cfg: Config) -> None:
    """Takes out of a config's data loaders what has a meaning with data workers alone, where they have none."""
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.data[name]
        if loader.get('workers_per_gpu') == 0:
            for key in ('persistent_workers', 'prefetch_factor'):
                loader.pop(key, None)


def use_coco_metrics(cfg: Config) -> None:
    """Leaves out the metrics of other formats than COCO's; prints which are measured then."""
    evaluation = cfg.get('evaluation') or {}
    stated = _stated_metrics(evaluation)
    metrics = [name for name in stated if name in METRICS] or ['bbox']
    if metrics != stated:
        text = f"evaluation.metric {', '.join(stated)}: COCO's {', '.join(metrics)} are measured"
        print(text, file=sys.stderr)  # standard output may be for JSON alone
        evaluation['metric'] = metrics


def pipeline_problems(node: dict | list, key: str) -> Iterator[str]:
    """What mmdet refuses of the data pipelines of a dataset config, and steps whose files it does not name.

    Args:
        key: where `node` is in the config.
    """
    if isinstance(node, (list, tuple)):
        for number, item in enumerate(node):
            yield from pipeline_problems(item, f'{key}.{number}')
        return
    for number, step in enumerate(node.get('pipeline') or ()):
        yield from _step_problems(step, f'{key}.pipeline.{number}', node)
    for name in ('dataset', 'datasets'):
        yield from pipeline_problems(node.get(name) or [], f'{key}.{name}')


def _step_problems(step: dict, key: str, dataset: dict) -> Iterator[str]:
    if step.get('type') == 'LoadProposals':
        yield (
            f'{key} is LoadProposals. It unpickles files, which could run code: choose a detector '
            'that proposes boxes itself, such as mmdet::faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'
        )
    elif step.get('with_seg') and not dataset.get('seg_prefix'):
        yield (
            f'{key} loads semantic maps (with_seg), but the dataset names none (seg_prefix): choose a detector '
            'without them, such as mmdet::htc/htc_without_semantic_r50_fpn_1x_coco.py'
        )
    elif step.get('denorm_bbox'):
        yield (
            f'{key} takes boxes as fractions of the image (denorm_bbox), but COCO has pixels. '
            f'Give --cfg-options {key}.denorm_bbox=False'
        )
    else:
        try:
            build_from_cfg(copy.deepcopy(step), PIPELINES)
        except Exception as error:  # each step raises types of its own
            yield f'{key} ({step.get("type")}) is refused: {error}'


# The detector


def optimizer_problems(cfg: Config, model: nn.Module) -> list[str]:
    """What is refused of the config's optimizer, which may depend on the detector."""
    if not cfg.get('optimizer'):
        return []
    return checks.optimizer_problems('optimizer', cfg.optimizer, model)


def detector_problems(
    cfg: Config, model: nn.Module, classes: Iterable[str], split: str
) -> list[str]:
    """What is wrong with the config's detector for a split with these classes."""
    if task := other_task(cfg.model):
        return [f'{task} Choose a detector, such as mmdet::mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py']
    return class_count_problems(cfg, model, tuple(classes), split)


def class_count_problems(
    cfg: Config, model: nn.Module, classes: tuple[str, ...], split: str
) -> list[str]:
    """Heads that are sized for another number of classes, with the options that size them for `classes`."""
    counts = {
        name: module.num_classes
        for name, module in model.named_modules()
        if isinstance(getattr(module, 'num_classes', None), int) and _names_objects(name, module)
    }
    wrong = {name: count for name, count in counts.items() if count != len(classes)}
    if not wrong:
        return []
    keys = {key: None for name in wrong if (key := _class_count_key(cfg.model, name))}
    names = ', '.join([*classes[:3], '...'] if len(classes) > 3 else classes)
    fix = ' '.join(f'{key}={len(classes)}' for key in keys) or 'data.root=FOLDER'
    return [
        f'the model has {" or ".join(map(str, sorted(set(wrong.values()))))} classes in {", ".join(keys or wrong)}, and '
        f'data.{split} has {len(classes)} ({names}). Give --cfg-options {fix}'
    ]


def _names_objects(name: str, module: nn.Module) -> bool:
    """Whether the classes of a module (its name in the model) are those of the objects."""
    other = (RPNHead, GARPNHead, FusedSemanticHead, BaseSemanticHead)
    return bool(name) and not (
        set(name.split('.')) & set(CLASS_AGNOSTIC_PARTS) or isinstance(module, other)
    )


def _class_count_key(model: dict, name: str) -> str | None:
    """The key in a config of the number of classes of the model's part `name`; None where the config has no such part."""
    node: Any = model
    parts = ['model']
    for part in name.split('.'):
        if isinstance(node, (list, tuple)):
            node = node[int(part)]
        elif part in node:
            node = node[part]
        elif part.isdigit():
            continue  # one config for all stages
        else:
            return None
        parts.append(part)
    key = 'num_things_classes' if 'num_things_classes' in node else 'num_classes'
    return '.'.join([*parts, key])


def load_from_problems(cfg: Config, model: nn.Module) -> list[str]:
    """What is wrong with the weights that a training begins with; changes the weights of `model`."""
    if not cfg.get('load_from'):
        return []
    try:
        warm_start(model, cfg.load_from)
    except (MtpdError, OSError, HTTPException) as error:
        return [f'load_from: {error}. Or start without it: --cfg-options load_from=None']
    return []
