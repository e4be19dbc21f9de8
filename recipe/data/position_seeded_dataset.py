"""A data set whose augmentation of a sample depends on its position in the training stream."""

from typing import Any

import numpy as np
from mmseg.registry import DATASETS

from recipe.data import random_state
from recipe.data.resumable_sampler import StreamIndex
from recipe.data.unreadable import FileNamingDataset, UnreadableSampleError

_MAX_TRIES = 20


@DATASETS.register_module()
class PositionSeededDataset(FileNamingDataset):
    """Makes a sample's augmentation depend only on its position in the stream.

    Upstream's augmentation draws from the generators of whichever process prepares the sample. It depends on the number
    of
    loader processes and on all samples that they prepared before. Here ``random``, ``numpy.random`` and torch's CPU
    generator are seeded with the position that a :class:`StreamIndex` carries. They are restored after the sample: with
    ``num_workers=0`` they are the generators of the training process.

    A plain ``int`` as index is passed on without seeding.

    Args:
        dataset: Config of the data set.
        replace_unreadable: Whether a sample that cannot be read is replaced by another one, which also depends only on
            the
            position. The meta information ``unreadable`` of its data sample then says what was wrong.

    Raises:
        UnreadableSampleError: By indexing, if a sample cannot be read; names the file.
    """

    def __init__(self, dataset: dict, replace_unreadable: bool = False) -> None:
        super().__init__(dataset)
        self.replace_unreadable = replace_unreadable

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, StreamIndex):
            return super().__getitem__(index)
        with random_state.preserved():
            try:
                return self._sample(index, int(index))
            except UnreadableSampleError as error:
                if not self.replace_unreadable:
                    raise
                return self._replacement(index, str(error))

    def _sample(self, place: StreamIndex, index: int) -> Any:
        """Make a sample with the augmentation of a position in the stream."""
        random_state.seed_host_generators((place.seed, place.position))
        return super().__getitem__(index)

    def _replacement(self, place: StreamIndex, fault: str) -> Any:
        """Make a sample in place of one that cannot be read."""
        draws = np.random.default_rng((place.seed, place.position))
        for _ in range(_MAX_TRIES):
            try:
                sample = self._sample(place, int(draws.integers(len(self))))
            except UnreadableSampleError:
                continue
            sample['data_samples'].set_metainfo(dict(unreadable=fault))
            return sample
        raise UnreadableSampleError(
            f'{fault}; {_MAX_TRIES} other samples that were tried in its place cannot be read either'
        )
