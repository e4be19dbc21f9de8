"""Makes models on a CPU take the path of an accelerator, so that its functions compute values."""

from __future__ import annotations

import sys
from typing import Any

from recipe.models import residual_branch


def take(monkeypatch: Any, kind: str) -> None:
    """Take the path of a kind of device, ``cuda`` or ``npu``, until the end of the test.

    Attention in windows, deformable attention and sums before norms keep their own form, since the kernels of the
    accelerators are not there.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith('recipe.models.') and name != 'recipe.models.execution' and hasattr(module, 'device_kind'):
            monkeypatch.setattr(module, 'device_kind', lambda device: kind)
    from recipe.models import add_norm, deform_attn, token_attention

    monkeypatch.setattr(add_norm, '_triton_works', lambda device: False)
    monkeypatch.setattr(token_attention, '_triton_works', lambda *_: False)
    monkeypatch.setattr(deform_attn, '_takes_triton', lambda value: False)
    implementation = deform_attn._implementation
    monkeypatch.setattr(deform_attn, '_implementation', lambda device_type: implementation('cpu'))
    monkeypatch.setattr(residual_branch, '_computes_kept_samples', lambda x: False)
