"""A data set that a dataset.json describes. Its config holds what it needs, so the run does not depend on the file."""

from pathlib import Path
from typing import Any, Dict, List, Sequence

from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS

from recipe.data.sets import pairs
from recipe.data.sets.file import split_of


@DATASETS.register_module()
class FileDataset(BaseSegDataset):
    """The pairs of one split, sorted by the path of the picture.

    Args:
        split (dict): See ``recipe.data.sets.file.Split.as_dict``.
        image_suffixes (Sequence[str]): Ends of the names of pictures.
        label_suffix (str): End of the names of labels.
        **kwargs: Arguments of ``BaseSegDataset``; ``metainfo`` has the names and colours of the classes.
    """

    def __init__(self, split: Dict[str, Any], image_suffixes: Sequence[str], label_suffix: str, **kwargs) -> None:
        self.split = split_of(split)
        self.image_suffixes = tuple(image_suffixes)
        self.label_suffix = label_suffix
        super().__init__(data_prefix={}, **kwargs)

    def load_data_list(self) -> List[dict]:
        """List the pairs.

        Raises:
            console.UserError: A folder or list file is missing.
        """
        found = pairs.find(Path(str(self.data_root)), self.split, self.image_suffixes, self.label_suffix)
        return [
            {
                'img_path': pair.image,
                'seg_map_path': pair.label,
                'label_map': None,
                'reduce_zero_label': False,
                'seg_fields': [],
            }
            for pair in found.pairs
        ]
