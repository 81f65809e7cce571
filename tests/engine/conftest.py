"""What tests of this room share."""

import pytest
import torch


@pytest.fixture
def full_float32(monkeypatch):
    """A GPU does not round the factors of float32 products."""
    for switch in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(switch, 'allow_tf32', False)
