"""Sets the precision of float32 products, whose default differs between devices."""

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
