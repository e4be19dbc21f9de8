"""Captures, restores and seeds the random state of a process."""

import random
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Sequence

import numpy as np
import torch


def _generators_of(device: torch.device):
    """The module that holds a device's random state (``torch.cuda``, ...)."""
    return getattr(torch, device.type)


def capture(device: Optional[torch.device] = None) -> dict:
    """Copy the state of every random generator that training draws from.

    Args:
        device (torch.device, optional): The accelerator of this process.
            None or a CPU: host generators only. Defaults to None.

    Returns:
        dict: ``python``, ``numpy`` and ``torch`` (uint8 tensor on the CPU),
        and for an accelerator ``device_type`` and ``device`` (uint8 tensor
        on the CPU).
    """
    state = dict(python=random.getstate(), numpy=np.random.get_state(), torch=torch.get_rng_state())
    if device is not None and device.type != 'cpu':
        state['device_type'] = device.type
        state['device'] = _generators_of(device).get_rng_state(device).cpu()
    return state


def fault(state: Any) -> Optional[str]:
    """Say why :func:`restore` should not be given a state from a file.

    numpy accepts any position in its table of 624 words and reads what is there.

    Args:
        state (Any): A candidate for a state that :func:`capture` returned.

    Returns:
        str, optional: What is wrong with it, None if nothing is.
    """
    try:
        version, words, gauss = state['python']
        random.Random().setstate((version, tuple(words), gauss))
        kind, table, place, has_gauss, cached = state['numpy']
        words = isinstance(table, np.ndarray) and (table.dtype.str[1:], table.shape)
        if (
            (kind, words) != ('MT19937', ('u4', (624,)))
            or not all(type(value) is int for value in (place, has_gauss))
            or not 0 <= place <= 624
        ):
            return 'of numpy'
        np.random.RandomState().set_state((kind, table, place, has_gauss, float(cached)))
        torch.Generator().set_state(state['torch'].cpu())
        if not isinstance(state.get('device_type', ''), str) or not isinstance(
            state.get('device', state['torch']), torch.Tensor
        ):
            return 'of the device'
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as e:
        return f'{type(e).__name__}: {e}'
    return None


def restore(state: dict, device: Optional[torch.device] = None) -> None:
    """Set every generator to a state that :func:`capture` returned.

    Args:
        state (dict): What :func:`capture` returned, also after a round trip
            through a file.
        device (torch.device, optional): The accelerator of this process. Its
            generator is set only if the state was captured on the same type
            of device. Defaults to None.
    """
    version, words, gauss = state['python']
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(state['numpy']))
    # A checkpoint loaded with map_location=<accelerator> has moved the states there, and set_rng_state takes only CPU
    # tensors.
    torch.set_rng_state(state['torch'].cpu())
    if device is not None and state.get('device_type') == device.type:
        _generators_of(device).set_rng_state(state['device'].cpu(), device)


@contextmanager
def preserved(device: Optional[torch.device] = None) -> Iterator[None]:
    """Leave all generators as they were, whatever the block draws from them.

    Args:
        device (torch.device, optional): See :func:`capture`.
    """
    state = capture(device)
    try:
        yield
    finally:
        restore(state, device)


def seed_host_generators(entropy: Sequence[int]) -> None:
    """Seed ``random``, ``numpy.random`` and torch's CPU generator.

    The seeds are mixed by :class:`numpy.random.SeedSequence`, so that streams
    for neighbouring integers are independent of each other.

    Args:
        entropy (Sequence[int]): Non-negative integers.
    """
    words = np.random.SeedSequence(tuple(entropy)).generate_state(10)
    random.seed(words[:4].tobytes())
    np.random.seed(words[4:8])
    # Not torch.manual_seed: it would reseed the accelerators as well, and samples may be prepared in the training
    # process itself.
    torch.default_generator.manual_seed(int(words[8]) << 32 | int(words[9]))
