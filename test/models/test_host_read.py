"""The host read of a training step, which other parts join."""

import numpy as np
import torch

from recipe.models.host_read import HostRead


def test_what_joins_the_host_read_arrives_in_order():
    read, told = HostRead(), []

    def late(values):
        told.append(values.tolist())

    read.join(torch.tensor([7.0]), lambda values: told.append(values.tolist()))
    read.join(torch.tensor([8.0, 9.0]), late)
    costs = [torch.arange(6.0).view(1, 2, 3), torch.zeros(1, 2, 0)]
    first, second = read.read(costs)
    np.testing.assert_array_equal(first, np.arange(6).reshape(1, 2, 3))
    assert second.shape == (1, 2, 0)
    assert told == [[7.0], [8.0, 9.0]]
    np.testing.assert_array_equal(read.read(costs)[0].ravel(), np.arange(6))
    assert len(told) == 2  # nobody joins twice
    read.join(torch.tensor([1.0]), late)
    assert read.leave(late) and not read.leave(late)
    read.read(costs)
    assert len(told) == 2
