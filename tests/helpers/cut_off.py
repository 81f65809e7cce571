"""Trainings that are cut off, and what they leave, compared."""

from __future__ import annotations

import torch

from mtpd.runtime import checkpoints


class Cut(Exception):
    """The power fails."""


def cut(build, updates, deed):
    """A model whose training does `deed` within the update after `updates`."""

    def built():
        model = build()
        step, done = model.train_step, []

        def train_step(*args, **kwargs):
            result = step(*args, **kwargs)
            done.append(1)
            if len(done) > updates:
                deed()
            return result

        model.train_step = train_step
        return model

    return built


def fail():
    raise Cut


def same(one, other):
    """Asserts that two resumable checkpoints are equal to the last bit."""
    one, other = (checkpoints.load_checkpoint(path) for path in (one, other))
    assert one['meta'] == other['meta']
    assert one['state_dict'].keys() == other['state_dict'].keys()
    for key, value in one['state_dict'].items():
        assert torch.equal(value, other['state_dict'][key]), key
    assert one['optimizer']['param_groups'] == other['optimizer']['param_groups']
    for key, state in one['optimizer']['state'].items():
        for name, value in state.items():
            assert torch.equal(value, other['optimizer']['state'][key][name]), (key, name)
