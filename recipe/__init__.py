"""The recipe: Mask2Former with Swin-B on Cityscapes, on Ascend NPUs, NVIDIA GPUs and CPUs.

The rooms, from the bottom up; each imports only from those below it,
as the import contract in pyproject.toml checks:

- ``core``: console, paths, files, processes. Imports nothing else of the package.
- ``upstream``: the pinned upstreams and their patches.
- ``setup``: environments. Nothing but tools/setup.sh needs it.
- ``data``, ``models``, ``engine``: what is trained, and how.
- ``doctor``, ``report``: checks of a machine before a training, and figures after it.
- ``predict``: trained models and what they predict.
- ``evaluate``: metrics of a trained model, and the archive for the test server.
- ``export``: trained models in other formats, and the models of other trainers.
- ``launch``, ``bench``: start a training or an evaluation, and measure one.

``from recipe import load`` loads a trained model, see ``recipe.predict.segmenter.load``.
"""

__version__ = '1.0'


def __getattr__(name: str) -> object:
    """``recipe.load``, imported when it is asked for: the bare rooms have no torch."""
    if name == 'load':
        from recipe.predict.segmenter import load

        return load
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
