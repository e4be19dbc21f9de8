"""Leaves out what an import would load for the sake of models that the recipe does not have."""

import sys


def leave_out_transformers() -> None:
    """Have mmdet find no transformers in this process, which it imports for text models: two seconds of a start."""
    sys.modules.setdefault('transformers', None)  # type: ignore[arg-type]  # how Python marks what cannot be imported
