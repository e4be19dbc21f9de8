"""What parity tests share."""

import pytest
import torch


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    """On such small tensors more threads only wait for each other, and some sums would depend on their order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def double_precision(monkeypatch):
    """Compute in float64.

    In float32 a rounding error grows to some permille of the loss within fifty steps, since matching and the choice of
    points are not continuous. In float64 what remains is a difference of the mathematics.
    """
    torch.set_default_dtype(torch.float64)
    # by which masks and images are turned into floats
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    yield
    torch.set_default_dtype(torch.float32)
