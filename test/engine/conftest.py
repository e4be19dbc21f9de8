"""Registers what a config of equip() names, as custom_imports does in a training."""

from recipe.engine import components  # noqa: F401
