"""The train loop and its parts."""

from recipe.engine.loops.resumable_loop import ResumableIterBasedTrainLoop
from recipe.engine.loops.step_times import StepTimes

__all__ = ['ResumableIterBasedTrainLoop', 'StepTimes']
