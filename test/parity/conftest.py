"""One thread: on such small tensors more only wait for each other, and some sums would depend on their order."""

import pytest
import torch


@pytest.fixture(scope='session', autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
