from typing import Any

import numpy as np
from mmseg.registry import DATASETS

from recipe.data import random_state
from recipe.data.resumable_sampler import StreamIndex
from recipe.data.unreadable import UnreadableSampleError, naming_the_file

_MOST_TRIES = 20


@DATASETS.register_module()
class PositionSeededDataset:
    """Makes a sample's augmentation depend on its place in the stream alone.

    Upstream the augmentation draws from the generators of whichever process
    prepares the sample, so it depends on the number of loader processes and
    on everything these prepared before. Here ``random``, ``numpy.random`` and
    torch's CPU generator are seeded with the position that a
    :class:`StreamIndex` carries, and set back after the sample: with
    ``num_workers=0`` they are the generators of the training process.

    Everything else is forwarded to the wrapped data set. A plain ``int`` as
    index is handed on unseeded.

    Args:
        dataset (dict): Config of the data set.
        replace_unreadable (bool): Whether a sample that cannot be read is
            replaced by another one, which follows from its position as well.
            The meta information ``unreadable`` of its data sample then holds
            what was wrong. Defaults to False.

    Raises:
        UnreadableSampleError: By indexing, where a sample cannot be read;
            names the file.
    """

    def __init__(self, dataset: dict, replace_unreadable: bool = False) -> None:
        self.dataset = DATASETS.build(dataset)
        self.replace_unreadable = replace_unreadable

    def __getattr__(self, name: str) -> Any:
        # Special methods are not forwarded: torch looks for __getitems__,
        # which would go round the seeding, and unpickling asks for
        # __setstate__ before there is a data set to forward to.
        if name.startswith('__') or 'dataset' not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, StreamIndex):
            return self.dataset[index]
        with random_state.preserved():
            try:
                return self._sample(index, int(index))
            except UnreadableSampleError as e:
                if not self.replace_unreadable:
                    raise
                return self._another(index, str(e))

    def _sample(self, place: StreamIndex, index: int) -> Any:
        """Make a sample with the augmentation of a place in the stream."""
        random_state.seed_host_generators((place.seed, place.position))
        with naming_the_file(self.dataset, index):
            return self.dataset[index]

    def _another(self, place: StreamIndex, fault: str) -> Any:
        """A sample in place of one that cannot be read."""
        draws = np.random.default_rng((place.seed, place.position))
        for _ in range(_MOST_TRIES):
            try:
                sample = self._sample(place, int(draws.integers(len(self))))
            except UnreadableSampleError:
                continue
            sample['data_samples'].set_metainfo(dict(unreadable=fault))
            return sample
        raise UnreadableSampleError(f'{fault}; neither can {_MOST_TRIES} others that were tried in its place')
