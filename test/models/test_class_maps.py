"""Class maps part by part: the same as from masks of full size."""

import pytest
import torch
from torch.nn import functional

from recipe.models import class_maps


def at_once(cls_logits, mask_logits, size):
    """As mmsegmentation does it."""
    masks = functional.interpolate(mask_logits, size=size, mode='bilinear', align_corners=False)
    scores = functional.softmax(cls_logits, dim=-1)[..., :-1]
    return torch.einsum('bqc, bqhw->bchw', scores, masks.sigmoid())


@pytest.mark.parametrize('size', [(48, 40), (24, 20), (12, 60), (50, 41), (9, 7)])
@pytest.mark.parametrize('room', [1, 20 * 40 * 4 * 5 * 2, 2**30])
def test_parts_are_the_whole(monkeypatch, size, room):
    torch.manual_seed(0)
    monkeypatch.setitem(class_maps._PART_NUMEL, 'cpu', room)
    cls_logits, mask_logits = torch.randn(2, 20, 6).double(), torch.randn(2, 20, 12, 20).double() * 5
    expected = at_once(cls_logits, mask_logits, size)
    # the products of other widths may be added up in another order
    torch.testing.assert_close(class_maps.class_scores(cls_logits, mask_logits, size), expected, rtol=1e-9, atol=1e-9)


def test_no_more_than_a_part_is_enlarged_at_a_time(monkeypatch):
    monkeypatch.setitem(class_maps._PART_NUMEL, 'cpu', 1)
    seen = []
    enlarge = functional.interpolate
    monkeypatch.setattr(
        functional, 'interpolate', lambda *args, **rest: seen.append(enlarge(*args, **rest)) or seen[-1]
    )
    class_maps.class_scores(torch.randn(1, 5, 4), torch.randn(1, 5, 64, 8), (256, 32))
    assert len(seen) == 16 and max(one.shape[2] for one in seen) <= 6 * 4


def test_with_gradients_it_is_one_graph():
    cls_logits, mask_logits = torch.randn(1, 5, 4, requires_grad=True), torch.randn(1, 5, 64, 8, requires_grad=True)
    class_maps.class_scores(cls_logits, mask_logits, (256, 32)).sum().backward()
    assert mask_logits.grad.abs().sum() > 0


def test_of_several_classes_the_first_is_taken():
    logits = torch.zeros(19, 64, 64)
    logits[3:7, :, 32:] = 1
    assert torch.equal(class_maps.most_likely(logits), logits.argmax(0, keepdim=True))
    assert class_maps.most_likely(logits).unique().tolist() == [0, 3]
    drawn = torch.randint(0, 3, (19, 100, 100)).float()
    assert torch.equal(class_maps.most_likely(drawn), drawn.argmax(0, keepdim=True))
    drawn[4, 50, 50] = float('nan')
    assert class_maps.most_likely(drawn)[0, 50, 50] == 4
