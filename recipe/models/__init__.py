"""Fast modules for Mask2Former, and ``accelerate()``, which puts them into a built model.

Imports ``core``.
"""

from recipe.models.fast_modules import accelerate, adopt

__all__ = ['accelerate', 'adopt']
