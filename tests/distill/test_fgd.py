"""FGD's masks, attention and relation, by hand; its values and gradients are in test_losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.loss_cases import attention, fgd_masks
from mtpd.distill.losses import FGD
from mtpd.distill.losses.fgd import foreground_background_masks
from mtpd.errors import MtpdError


def metas(*sizes, padded=(32, 48)):
    return [dict(img_shape=(*size, 3), pad_shape=(*padded, 3)) for size in sizes]


def only(**weights):
    """FGD of two channels with one of its terms."""
    return FGD(2, 2, **dict(alpha=0, beta=0, gamma=0, relation=0) | weights)


def boxes(*rows):
    return [torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)]


def test_masks_of_many_boxes_follow_the_definition_cell_by_cell():
    rng = np.random.default_rng(0)
    start = rng.uniform(-20, 80, (2, 12, 2))
    rows = np.concatenate([start, start + rng.uniform(0.5, 30, (2, 12, 2))], axis=2)
    sizes = [(64, 96), (57.0, 80.0)]
    feature = torch.zeros(2, 3, 7, 12, dtype=torch.float64)
    masks = foreground_background_masks(feature, list(torch.from_numpy(rows)), sizes)
    for i in range(2):
        wanted = fgd_masks(rows[i], sizes[i], 7, 12)
        assert len(np.unique(wanted[0])) > 5
        for mask, numbers in zip(masks, wanted, strict=True):
            np.testing.assert_allclose(mask[i, 0].numpy(), numbers, rtol=1e-12)


def test_a_box_covers_whole_cells_and_the_smallest_box_wins():
    feature = torch.zeros(1, 2, 4, 6)  # stride 8
    fg, bg = foreground_background_masks(feature, boxes([8, 8, 23, 15], [0, 0, 48, 32]), [(32, 48)])
    expected = torch.full((4, 6), 1 / (5 * 7))  # the second box ends where the map does: one more
    expected[1:3, 1:4] = 1 / 6
    torch.testing.assert_close(fg[0, 0], expected)
    assert bg.sum() == 0


def test_a_box_along_the_cells_is_not_widened_by_rounding():
    """13 cells of 32 pixels: in float32, 224 / 416 * 13 is above 7."""
    feature = torch.zeros(1, 2, 3, 13)
    for k in range(13):
        fg, _ = foreground_background_masks(feature, boxes([32 * k, 1, 32 * k, 2]), [(96, 416)])
        assert fg[0, 0, 0].nonzero().flatten().tolist() == [k]


def test_foreground_and_background_by_hand():
    """Constant features have attention 1 everywhere: what is left is a mask's sum times C."""
    teacher, student = torch.zeros(1, 2, 4, 6), torch.ones(1, 2, 4, 6)
    given = dict(gt_bboxes=boxes([8, 8, 23, 15]), img_metas=metas((32, 48)))
    assert only(alpha=1)(student, teacher, **given).item() == pytest.approx(2)
    assert only(beta=1)(student, teacher, **given).item() == pytest.approx(2)
    student[0, :, 1:3, 1:4] = 0  # equal inside the box
    assert only(alpha=1)(student, teacher, **given).item() == 0
    assert only(beta=1)(student, teacher, **given).item() == pytest.approx(2)
    given['gt_bboxes'] = boxes()
    assert only(alpha=1)(student, teacher, **given).item() == 0
    assert only(beta=1)(student, teacher, **given).item() == pytest.approx(2 * 18 / 24)
    given['gt_bboxes'] = boxes([-9, -9, 90, 90])
    assert only(beta=1)(student, teacher, **given).item() == 0


def test_boxes_stay_with_their_objects_on_padded_images_and_are_shifted_as_in_the_original():
    """The second image is 24 pixels wide in a batch of 48: as the original scales, x doubles."""
    teacher, student = torch.zeros(2, 2, 4, 6), torch.zeros(2, 2, 4, 6)
    student[1, :, 1:3, 1:3] = 1
    object_ = boxes([9, 9, 15, 15])[0]
    given = dict(gt_bboxes=[torch.zeros(0, 4), object_], img_metas=metas((32, 48), (32, 24)))
    assert only(alpha=1)(student, teacher, **given).item() == pytest.approx(2 / 2)
    original = only(alpha=1, box_scale='img_shape')
    # floor(2.25) to ceil(3.75): columns 2 to 4, of which only 2 has the object.
    assert original(student, teacher, **given).item() == pytest.approx(2 * 2 / 6 / 2)
    # mmdet pads each image to its divisor, then the batch to its largest image.
    given['img_metas'][1]['pad_shape'] = (32, 24, 3)
    assert only(alpha=1)(student, teacher, **given).item() == pytest.approx(2 / 2)


def test_the_teachers_attention_weights_the_difference():
    student, teacher = torch.randn(2, 1, 2, 4, 6)
    given = dict(gt_bboxes=boxes(), img_metas=metas((32, 48)))
    cells, channels = attention(teacher[0].numpy(), 0.5)
    error = (student - teacher)[0].numpy() ** 2 * cells * channels[:, None, None]
    assert only(beta=1)(student, teacher, **given).item() == pytest.approx(error.sum() / 24)


def test_relation_starts_as_plain_difference_and_both_its_blocks_are_trained():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, 6, 4, 6)
    given = dict(gt_bboxes=[torch.zeros(0, 4)] * 2, img_metas=metas((32, 48), (32, 48)))
    loss = FGD(6, 6, alpha=0, beta=0, gamma=0, relation=1)
    before = {name: p.detach().clone() for name, p in loss.named_parameters()}
    optimizer = torch.optim.SGD(loss.parameters(), lr=1e-3)
    value = loss(student, teacher, **given)
    assert value.item() == pytest.approx((student - teacher).pow(2).sum().item() / 2, rel=1e-5)
    for _ in range(2):  # at first only the last convolutions move
        optimizer.zero_grad()
        loss(student, teacher, **given).backward()
        optimizer.step()
    assert loss(student, teacher, **given) < value
    for name in ('channel_add_conv_s.0.weight', 'channel_add_conv_t.0.weight'):
        assert not torch.equal(loss.get_parameter(name), before[name])


def test_relation_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    loss = FGD(6, 6, alpha=0, beta=0, gamma=0, relation=1)
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter, std=3)
    feature = torch.randn(1, 6, 32, 48)
    given = dict(gt_bboxes=boxes(), img_metas=metas((32, 48)))
    expected = loss(feature, feature, **given).item()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert loss(feature, feature, **given).item() == pytest.approx(expected, rel=1e-5)


def test_it_has_the_originals_weight_names():
    blocks = [f'channel_add_conv_{who}.{layer}' for who in 'st' for layer in (0, 1, 3)]
    names = ['conv_mask_s', 'conv_mask_t', *blocks]
    wanted = {f'{name}.{kind}' for name in names for kind in ('weight', 'bias')}
    state = FGD(4, 4).state_dict()
    assert state.keys() == wanted
    assert FGD(3, 4).state_dict().keys() == wanted | {'align.weight', 'align.bias'}
    assert state['channel_add_conv_s.1.weight'].shape == (2, 1, 1)


@pytest.mark.parametrize(
    'given, words',
    [
        ({}, ['gt_bboxes and img_metas', 'another distillation method']),
        ({'gt_bboxes': boxes()}, ['gt_bboxes and img_metas']),
        (
            {'gt_bboxes': boxes() * 3, 'img_metas': metas((8, 8))},
            ['3 entries in gt_bboxes', '1 in img_metas', '1 images'],
        ),
        (
            {'gt_bboxes': boxes(), 'img_metas': [{'img_shape': (8, 8, 3)}]},
            ["lack 'pad_shape'", 'box_scale'],
        ),
    ],
)
def test_missing_annotations_are_named(given, words):
    with pytest.raises(MtpdError) as error:
        FGD(2, 2)(torch.zeros(1, 2, 4, 6), torch.zeros(1, 2, 4, 6), **given)
    assert all(word in str(error.value) for word in words), error.value
