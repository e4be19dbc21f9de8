"""Sets how torch rounds: the precision of float32 products, and the order of sums on a CPU."""

from typing import Any

import torch


def set_tf32(device: str, allowed: bool) -> None:
    """Allow or forbid TF32 (NVIDIA) and HF32 (Ascend) in matrix products and convolutions.

    Both round float32 operands to 10 or 11 bits of mantissa. By default torch and torch_npu allow them in convolutions
    only. A CPU has neither.

    Args:
        device: ``npu``, ``cuda`` or ``cpu``.
        allowed: Whether they are allowed, in both kinds of products.
    """
    if device == 'cuda':
        torch.backends.cuda.matmul.allow_tf32 = allowed
        torch.backends.cudnn.allow_tf32 = allowed
    elif device == 'npu':
        torch.npu.matmul.allow_hf32 = allowed
        torch.npu.conv.allow_hf32 = allowed


def make_sums_repeatable() -> None:
    """Have several threads of a CPU add up the gradient of an indexed table in one order."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    if hasattr(torch.utils, 'deterministic'):  # since torch 2.2
        # Filling only helps to find uses of uninitialized memory, and costs time.
        deterministic: Any = torch.utils.deterministic
        deterministic.fill_uninitialized_memory = False
