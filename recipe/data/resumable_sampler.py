"""The endless stream of training samples, from any position."""

from typing import Iterator, List, Optional, Sized

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmseg.registry import DATA_SAMPLERS
from torch.utils.data import Sampler


class StreamIndex(int):
    """The index of a sample that also carries its position in the training stream.

    It is an ``int``, so any data set accepts it. Its position makes the augmentation of the sample the same in every
    process.

    Args:
        index: Index in the data set.
        seed: Seed of the sampler.
        position: Position in the stream of all ranks, counted from 0. No two samples of a training run share it.
    """

    seed: int
    position: int

    def __new__(cls, index: int, seed: int, position: int) -> 'StreamIndex':
        """Make the int and attach seed and position."""
        self = super().__new__(cls, index)
        self.seed = seed
        self.position = position
        return self

    def __reduce__(self):
        # int would pickle only its value on the way to a loader process
        return StreamIndex, (int(self), self.seed, self.position)


@DATA_SAMPLERS.register_module()
class ResumableInfiniteSampler(Sampler):
    """mmengine's ``InfiniteSampler``, able to start anywhere in its stream.

    With the same seed, rank and world size it yields the same indices as :class:`mmengine.dataset.InfiniteSampler`: one
    endless stream of permutations, dealt out to the ranks in turn. Skipping draws one permutation per skipped epoch and
    reads no sample.

    Args:
        dataset: The data set.
        shuffle: Whether each epoch is a new permutation.
        seed: Seed of the permutations, the same on all ranks. None: a random one that the ranks agree on.

    Attributes:
        start (int): Number of samples that all ranks together used before; the next iterator begins after them.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: Optional[int] = None) -> None:
        self.rank, self.world_size = get_dist_info()
        self.size = len(dataset)
        if self.size == 0:
            raise ValueError('the training data set is empty')
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.start = 0

    def _epochs(self) -> Iterator[List[int]]:
        """The order of the samples in the first, second, ... epoch."""
        generator = torch.Generator()
        generator.manual_seed(self.seed)
        while True:
            if self.shuffle:
                yield torch.randperm(self.size, generator=generator).tolist()
            else:
                yield list(range(self.size))

    def __iter__(self) -> Iterator[StreamIndex]:
        """Yield this rank's share of the stream, beginning at ``start``."""
        epochs = self._epochs()
        drawn = 0
        position = self.start + self.rank
        while True:
            epoch, offset = divmod(position, self.size)
            while drawn <= epoch:
                order = next(epochs)
                drawn += 1
            yield StreamIndex(order[offset], self.seed, position)
            position += self.world_size

    def __len__(self) -> int:
        """Number of samples in the data set."""
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: the stream runs through the epochs by itself."""
