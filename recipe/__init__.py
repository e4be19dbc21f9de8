"""The recipe: Mask2Former with Swin-B on Cityscapes, on Ascend NPUs, NVIDIA GPUs and CPUs.

The rooms, from the bottom up; each imports only from those below it,
as the import contract in pyproject.toml checks:

- ``core``: console, paths, files, processes. Imports nothing else of the package.
- ``upstream``: the pinned upstreams and their patches.
- ``setup``: environments. Nothing but tools/setup.sh needs it.
- ``data``, ``models``, ``engine``: what is trained, and how.
- ``doctor``, ``report``: checks of a machine before a training, and figures after it.
- ``predict``: trained models and what they predict.
- ``export``: trained models in other formats, and the models of other trainers.
- ``launch``, ``bench``: start a training, and measure one.
"""

__version__ = '1.0'
