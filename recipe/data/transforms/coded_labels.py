"""A transform that loads labels of any coding: numbers of 8 or 16 bits, palettes, colours, instance ids."""

from typing import Dict, Optional, Sequence

from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmseg.registry import TRANSFORMS

from recipe.data.picture_faults import PictureError
from recipe.data.sets.coding import Decoder
from recipe.data.transforms import png


@TRANSFORMS.register_module()
class LoadCodedAnnotations(BaseTransform):
    """Loads a label and turns what its pixels hold into train ids. Replaces ``LoadAnnotations``.

    Required Keys:

    - seg_map_path
    - seg_fields

    Added Keys:

    - gt_seg_map (np.uint8, (H, W))

    Args:
        coding (str): How labels are coded, see ``recipe.data.sets.file.CODINGS``.
        codes (Sequence): Pairs of what a pixel holds and its train id, see ``recipe.data.sets.file.DataSet.codes``.
        instances (Sequence[int], optional): See ``recipe.data.sets.file.DataSet.instances``. Defaults to None.
        backend_args (dict, optional): Arguments of ``mmengine.fileio``. Defaults to None.
    """

    def __init__(
        self,
        coding: str,
        codes: Sequence[Sequence[int]],
        instances: Optional[Sequence[int]] = None,
        backend_args: Optional[Dict] = None,
    ) -> None:
        self.is_rgb = coding == 'rgb'
        self.decoder = Decoder(coding, codes, instances)
        self.backend_args = backend_args

    def transform(self, results: Dict) -> Dict:
        """Load the label.

        Raises:
            ValueError: It is damaged, or holds a value that the set does not name; names the file.
        """
        path = results['seg_map_path']
        try:
            results['gt_seg_map'] = self._decode(fileio.get(path, backend_args=self.backend_args))
        except PictureError as error:
            raise ValueError(f'cannot read {path}: {error}') from None
        results['seg_fields'].append('gt_seg_map')
        return results

    def _decode(self, data: bytes):
        header = None if self.is_rgb else png.read_header(data)
        if header is not None and header.channels == 1:  # grey, 8 bits: there is a faster decoder
            try:
                pixels = png.decode_rows(data, header.height)
            except ValueError:
                pixels = None  # Pillow decides whether the file is damaged
            if pixels is not None:
                return self.decoder.train_ids(pixels)
        return self.decoder.decode(data)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(is_rgb={self.is_rgb})'
