"""Skips steps whose loss or gradient is not finite, and writes them to files for a replay."""

from recipe.engine.nonfinite.dump import BadStep, read_dump, write_dump, write_weights
from recipe.engine.nonfinite.guarded_step import GuardedStep

__all__ = ['BadStep', 'GuardedStep', 'read_dump', 'write_dump', 'write_weights']
