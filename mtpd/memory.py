"""How much to lower what takes memory."""

from __future__ import annotations

SPARE = 0.9  # of the memory there is to be used


def advice(batch: int, processes: int, fixed: int, wanted: int, there: int) -> str:
    """What to set so that an update fits, in words.

    Args:
        batch: images of an update in all `processes`.
        fixed, wanted, there: bytes in a process that no image takes, that it wants with its images, and that it may have.
    """
    share = batch // processes
    images = int(share * max(0.0, SPARE * there - fixed) / max(1, wanted - fixed))
    if images >= 1:
        return f'lower schedule.batch_size to {min(images, share) * processes}.'
    side = (share * max(0.0, SPARE * there - fixed) / max(1, wanted - fixed)) ** 0.5
    if side <= 0:
        return 'not even the weights fit: choose smaller detectors.'
    return (
        f'set schedule.batch_size to {processes} and lower image.scale to {side:.0%} of its sides.'
    )
