"""Libraries that only some formats need. They are not part of the stacks: requirements/export.txt has them."""

from __future__ import annotations

import importlib.util
from typing import Dict, Tuple

from recipe.core import console

NEEDED: Dict[str, Tuple[str, ...]] = {
    'onnx': ('onnx', 'onnxruntime'),
    'pt2': (),
    'safetensors': ('safetensors',),
    'huggingface': ('safetensors', 'transformers'),
}


def require(use: str, *libraries: str) -> None:
    """Check that libraries are installed; nothing is imported.

    Args:
        use: What needs them, for the message.
        libraries: Names of packages.

    Raises:
        console.UserError: One is missing.
    """
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise console.UserError(
            f'{use} needs {", ".join(missing)}, not installed here',
            'install it with: python -m pip install -r requirements/export.txt',
        )


def require_exporter() -> None:
    """Check that this torch has torch.export as the recipe uses it.

    Raises:
        console.UserError: It has not.
    """
    import inspect

    import torch

    if 'strict' not in inspect.signature(getattr(torch.export, 'export', len)).parameters:
        raise console.UserError(
            f'--format=pt2: torch {torch.__version__} is too old to export the model',
            'copy the checkpoint to a machine with a newer stack, a CPU is enough',
        )
