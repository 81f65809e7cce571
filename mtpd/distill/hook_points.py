"""Which modules of two detectors are compared: found by a forward pass, matched by stride.

The original compares the outputs of an FPN's last convolutions. Here that convolution is found in any neck that ends in one;
of other necks it is the module that gives the level, such as an encoder's last block.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import NamedTuple

import torch
from mmcv import ConfigDict
from mmcv.cnn import ConvModule
from torch import Tensor, nn

from ..errors import MtpdError
from .distiller import Teacher

SIDES = (
    256,
    512,
)  # of the image, in pixels: two cells at stride 128; SSD takes no smaller one than 300


class Level(NamedTuple):
    """A feature map that a detector's neck gives, or its backbone where there is no neck.

    Attributes:
        stride: pixels of a cell.
        module: path of the module to compare; None where a function gives the level, as a pooling.
        channels: of the module's output.
        behind: what comes between the module and the level: 'GN', 'ReLU', ...
    """

    stride: int
    module: str | None
    channels: int
    behind: tuple[str, ...] = ()


class Outputs(NamedTuple):
    """What a forward pass of backbone and neck gives.

    Attributes:
        levels: in the neck's order.
        channels: of each module that gives one feature map, by its path.
    """

    levels: tuple[Level, ...]
    channels: dict[str, int]

    def index(self, stride: int) -> int | None:
        """The number of the level of a stride; None where there is none."""
        strides = [level.stride for level in self.levels]
        return strides.index(stride) if stride in strides else None


def measured_outputs(model: dict) -> Outputs:
    """The outputs of a detector's mmdet config, measured by a forward pass with random weights.

    Raises:
        MtpdError: backbone and neck cannot be built, or take no image.
    """
    parts = {key: model.get(key) for key in ('backbone', 'neck')}
    return _measured_outputs(repr(parts), _Config(parts))


class _Config:
    """A config that is left out of a cache's key."""

    def __init__(self, value: dict):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config)

    def __hash__(self) -> int:
        return 0


@functools.lru_cache(maxsize=64)
def _measured_outputs(_: str, config: _Config) -> Outputs:
    devices = ['meta', 'cpu']  # on 'meta' there are shapes alone; some layers need numbers
    devices += ['cuda'] if torch.cuda.is_available() else []  # and some operators a GPU
    for device in devices:
        for side in SIDES:
            try:
                with torch.random.fork_rng(devices=()), torch.device(device):
                    return _run(Teacher(ConfigDict(config.value)).eval(), side)
            except Exception as error:  # mmdet raises a dozen types
                problem = error
    if operator := re.match(
        r'(\w+?)(?:_forward)?_impl: implementation for device cpu', str(problem)
    ):
        raise MtpdError(
            f'backbone or neck needs a GPU: mmcv has the operator {operator[1]} for GPUs alone.'
        ) from problem
    raise MtpdError(
        f'backbone and neck take no image of {side} x {side} pixels: {type(problem).__name__}: {problem}'
    ) from problem


@torch.no_grad()
def _run(model: nn.Module, side: int) -> Outputs:
    outputs: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()

    def note(path: str, module: nn.Module, args: tuple, output: object) -> None:
        calls[path] += 1
        if isinstance(output, Tensor) and output.dim() == 4:
            outputs.pop(path, None)  # in the order of calls
            outputs[path] = output

    hooks = [
        module.register_forward_hook(functools.partial(note, path))
        for path, module in model.named_modules()
        if path
    ]
    try:
        levels = model(torch.zeros(1, 3, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    levels = [levels] if isinstance(levels, Tensor) else list(levels)
    modules = dict(model.named_modules())
    outputs = {path: output for path, output in outputs.items() if calls[path] == 1}
    return Outputs(
        tuple(_level(feature, side, modules, outputs) for feature in levels),
        {path: output.shape[1] for path, output in outputs.items()},
    )


def _level(
    feature: Tensor, side: int, modules: dict[str, nn.Module], outputs: dict[str, Tensor]
) -> Level:
    """Of what a neck gives; `outputs`: of modules that are called once, in the order of calls."""
    stride, channels = round(side / feature.shape[2]), feature.shape[1]
    same = [path for path, output in outputs.items() if output is feature]
    for path in same:
        owner = path.rpartition('.')[0]
        if isinstance(modules.get(owner), ConvModule):
            return Level(stride, f'{owner}.conv', channels, _behind(modules[owner]))
    if same:
        return Level(stride, same[-1], channels)  # the whole block, not its last layer
    # A function gives it: an addition, or another neck behind an FPN.
    necks = [*modules['neck']] if isinstance(modules['neck'], nn.Sequential) else [modules['neck']]
    for place in [f'neck.{number}.' for number in range(len(necks))] + ['neck.']:
        convs = [
            path
            for path, output in outputs.items()
            if path.startswith(place)
            and isinstance(modules[path.rpartition('.')[0]], ConvModule)
            and isinstance(modules[path], nn.Conv2d)
            and output.shape == feature.shape
        ]
        if convs:
            return Level(stride, convs[-1], channels, (type(necks[-1]).__name__,))
    return Level(stride, None, channels)


def _behind(module: ConvModule) -> tuple[str, ...]:
    parts = {
        'norm': module.norm if module.with_norm else None,
        'act': module.activate if module.with_activation else None,
    }
    order = module.order[module.order.index('conv') + 1 :]
    return tuple(type(parts[name]).__name__ for name in order if parts[name])
