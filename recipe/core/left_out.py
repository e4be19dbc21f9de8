"""Leaves out what an import would load for the sake of models that the recipe does not have."""

import sys
from types import ModuleType
from typing import Any, NoReturn

_TRACKING = 'mmdet.utils.mot_error_visualize'


def leave_out_other_models() -> None:
    """Have mmdet load neither transformers nor matplotlib in this process: 2.4 and 0.5 processor seconds of its start.

    mmdet needs them for models that read text, and to draw the errors of trackers. Call this before mmdet is imported.
    """
    sys.modules.setdefault('transformers', None)  # type: ignore[arg-type]  # how Python marks what cannot be imported
    if _TRACKING not in sys.modules:
        tracking: Any = ModuleType(_TRACKING)
        tracking.imshow_mot_errors = _imshow_mot_errors
        sys.modules[_TRACKING] = tracking


def _imshow_mot_errors(*args: Any, **kwargs: Any) -> NoReturn:
    raise NotImplementedError('the recipe leaves imshow_mot_errors and matplotlib out of launchers and ranks')
