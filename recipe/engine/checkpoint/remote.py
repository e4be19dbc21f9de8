"""Downloads checkpoints, then reads them like local files.

mmengine passes downloaded files to ``torch.load``, which runs code in them before torch 2.6.
"""

import os
import os.path as osp
import re
from typing import Any, Callable, Optional, Union

import torch
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader

from recipe.engine.checkpoint.errors import CheckpointError
from recipe.engine.checkpoint.load import load_from_local

# OpenMMLab's file names end with the first digits of the sha256. torch's own expression would match the "b" of
# swin-b.pth.
_HASH = re.compile(r'-([0-9a-f]{8,64})\.pth$')
MapLocation = Union[str, torch.device, Callable, None]


def load_url(url: str, model_dir: Optional[str] = None, map_location: MapLocation = None, progress: bool = True) -> Any:
    """Download a checkpoint, unless it is in torch's cache, and load it.

    In mmengine it replaces torch's function of the same name. mmengine calls it for ``http://``, ``https://``,
    ``torchvision://``, ``open-mmlab://`` and ``mmcls://``.

    Args:
        url (str): URL of the file.
        model_dir (str, optional): Folder for the file. Defaults to None: torch's own cache folder.
        map_location (str or torch.device or Callable, optional): Same as in
            :func:`torch.load`. Defaults to None.
        progress (bool): Whether to show the progress. Defaults to True.

    Returns:
        dict: The checkpoint.

    Raises:
        CheckpointError: The file is not a checkpoint, or holds something other than data.
        urllib.error.URLError: It cannot be downloaded.
    """
    folder = model_dir or osp.join(torch.hub.get_dir(), 'checkpoints')
    os.makedirs(folder, exist_ok=True)
    path = osp.join(folder, osp.basename(url.split('?')[0].split('#')[0]))
    if not osp.exists(path):
        match = _HASH.search(path)
        # torch writes to a temporary file, compares the hash and renames it.
        torch.hub.download_url_to_file(url, path, match[1] if match else None, progress=progress)
    return load_from_local(path, map_location)


mmengine_checkpoint.load_url = load_url


@CheckpointLoader.register_scheme(prefixes=[r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'], force=True)
def refuse(filename: str, map_location: MapLocation = None, **kwargs: Any) -> Any:
    """Refuse stores whose files mmengine would pass to ``torch.load`` unchecked.

    Raises:
        CheckpointError: Always.
    """
    raise CheckpointError(filename, 'is in a store that is not supported here: download the file and name that')


@CheckpointLoader.register_scheme(prefixes=('open-mmlab://', 'openmmlab://'), force=True)
def load_from_openmmlab(filename: str, map_location: MapLocation = None) -> Any:
    """Load a checkpoint by its name in mmengine's list of models.

    Args:
        filename (str): With the prefix ``open-mmlab://`` or ``openmmlab://``.
        map_location (str or torch.device or Callable, optional): Same as in
            :func:`torch.load`. Defaults to None.

    Returns:
        dict: The checkpoint.

    Raises:
        CheckpointError: As in :func:`load_from_local`.
        KeyError: The list does not hold the name.
    """
    name = filename.split('://', 1)[1]
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    place = mmengine_checkpoint.get_external_models()[name]
    if not place.startswith(('http://', 'https://')):
        # The user's own list may name files relative to its folder.
        place = osp.join(mmengine_checkpoint._get_mmengine_home(), place)
    return CheckpointLoader.load_checkpoint(place, map_location)
