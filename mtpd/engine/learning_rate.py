"""The learning rate of a training, from the recipe's `schedule`.

Baseline, teachers and stages have the same policy, each over its own updates.

| setting | meaning |
|---|---|
| `optimizer.lr` | the rate of step and cosine policies |
| `lr` | mmcv's policy; OneCycle has its rate in `lr.max_lr` |
| `arm_lr` | the largest rate of a stage, where it is to be another one than the baseline's |
| `lr_batch_size` | the images of an update that the rates are stated for; other batches scale them linearly |

The schedules are in `configs/_base_/schedules/`.
"""

from __future__ import annotations

from typing import Any

from ..errors import MtpdError

# The settings of mmcv's policies that are learning rates: OneCycle's peak, and the lowest rate of others. The rest are
# ratios to the optimizer's `lr`, such as `warmup_ratio` and `gamma`.
RATES_OF_POLICIES = ('max_lr', 'min_lr')


def optimizer_and_policy(
    schedule: dict, updates: int, peak: float | None = None
) -> tuple[dict, dict]:
    """mmcv's configs of the optimizer and of the policy for a training of so many updates.

    Args:
        schedule: a recipe's settings. They stay as they are.
        peak: the largest learning rate, if not the schedule's: `arm_lr` for a stage.

    Raises:
        MtpdError: `peak` or `lr_batch_size` asks for another learning rate, and none is stated.
    """
    optimizer, lr = schedule['optimizer'], schedule['lr']
    if peak is not None:
        optimizer, lr = with_peak_rate(optimizer, lr, peak)
    meant = schedule.get('lr_batch_size')
    if meant not in (None, schedule['batch_size']):
        optimizer, lr = scale_rates(optimizer, lr, schedule['batch_size'], meant)
    return optimizer, policy_in_updates(lr, updates)


def scale_rates(optimizer: dict, lr: dict, batch: int, meant: int) -> tuple[dict, dict]:
    """Learning rates scaled linearly to another batch; prints the largest one, before and after.

    Args:
        optimizer: mmcv's config of the optimizer. It stays as it is.
        lr: mmcv's config of the policy. It stays as it is.
        batch: images of an update.
        meant: images of an update for which the rates are stated.

    Returns:
        Copies of both configs with the scaled rates.

    Raises:
        MtpdError: no rate is stated.
    """
    stated = _stated_rate(optimizer, lr)
    scaled_optimizer, scaled_lr = _multiply_rates(optimizer, lr, batch / meant)
    scaled = peak_rate(scaled_optimizer, scaled_lr)
    print(
        f'learning rate {_rate_text(scaled)}: {_rate_text(stated)} is for {meant} images an update'
    )
    return scaled_optimizer, scaled_lr


def with_peak_rate(optimizer: dict, lr: dict, peak: float) -> tuple[dict, dict]:
    """Copies of both configs, all rates multiplied so that `peak` is the largest.

    Args:
        optimizer, lr: as in `scale_rates`.

    Raises:
        MtpdError: the largest rate is a list, a dict, not stated, or not above 0.
    """
    stated = _stated_rate(optimizer, lr)
    if not isinstance(stated, (int, float)) or stated <= 0:
        raise MtpdError(
            f'schedule.arm_lr={peak:g} cannot replace the learning rate {_rate_text(stated)}: state one number '
            'above 0, or leave arm_lr out.'
        )
    return _multiply_rates(optimizer, lr, peak / stated)


def _stated_rate(optimizer: dict, lr: dict) -> Any:
    stated = peak_rate(optimizer, lr)
    if stated is None:
        raise MtpdError(
            'the optimizer states no lr, so there is no learning rate to scale. Add it.'
        )
    return stated


def _multiply_rates(optimizer: dict, lr: dict, factor: float) -> tuple[dict, dict]:
    optimizer, lr = dict(optimizer), dict(lr)
    for settings, keys in ((optimizer, ('lr',)), (lr, RATES_OF_POLICIES)):
        for key in keys:
            if settings.get(key) is not None:
                settings[key] = _scaled_rates(settings[key], factor)
    return optimizer, lr


def peak_rate(optimizer: dict, lr: dict) -> Any:
    """The largest learning rate of a training, None where none is stated.

    It is OneCycle's `max_lr`, which may be a list of rates, one for each parameter group, or a dict; a cyclic policy's largest
    multiple of the optimizer's `lr`; else that rate.
    """
    rate = lr.get('max_lr', optimizer.get('lr'))
    if str(lr.get('policy')).lower() == 'cyclic' and isinstance(rate, (int, float)):
        return rate * max(1, *lr.get('target_ratio', (10, 1e-4)))
    return rate


def _scaled_rates(rates: Any, factor: float) -> Any:
    """A rate, or a list or dict of rates, multiplied."""
    if isinstance(rates, dict):
        return {key: _scaled_rates(value, factor) for key, value in rates.items()}
    if isinstance(rates, (list, tuple)):
        return [_scaled_rates(value, factor) for value in rates]
    return rates * factor


def _rate_text(rates: Any) -> str:
    return f'{rates:g}' if isinstance(rates, (int, float)) else str(rates)


def policy_in_updates(lr: dict, updates: int) -> dict:
    """mmcv's config of a learning rate policy for a training of so many updates.

    A `step` between 0 and 1 is a share of the updates, and becomes a number of them, 1 at least. OneCycle's `pct_start`, the share
    in which the rate rises, is raised to two updates.
    """
    if 'pct_start' in lr and updates > 2:  # mmcv divides by the rising updates less one
        return {**lr, 'pct_start': max(lr['pct_start'], 2 / updates)}
    steps = lr.get('step')
    if isinstance(steps, (list, tuple)):
        return {**lr, 'step': [_in_updates(step, updates) for step in steps]}
    if isinstance(steps, float):
        return {**lr, 'step': [_in_updates(steps, updates)]}
    return dict(lr)  # a whole number is an interval


def _in_updates(step: float, updates: int) -> float:
    return max(1, round(step * updates)) if 0 < step < 1 else step
