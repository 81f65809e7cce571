"""The tables of bad input together: how many rows there are, and that every kind which must be tried is."""

import pytest

from robustness.bad_input import (
    test_bad_annotations,
    test_bad_checkpoints,
    test_bad_images,
    test_bad_machine,
    test_bad_recipes,
)

TABLES = {
    'annotations': [test_bad_annotations.ROWS],
    'images': [test_bad_images.ROWS, test_bad_images.PASSES],
    'checkpoints': [test_bad_checkpoints.ROWS],
    'recipes': [test_bad_recipes.ROWS],
    'notebooks': [test_bad_machine.NOTEBOOKS],
    'machine': [test_bad_machine.ROWS, test_bad_machine.NO_GPU],
}
MUST = {
    'annotations': [
        *('missing', 'empty file', 'truncated', 'not JSON', 'a list at the top', 'not UTF-8'),
        *('image id twice', 'annotation id twice', 'category id twice'),
        *('dangling image', 'dangling category'),
        *('box negative', 'box without width', 'box NaN', 'box outside'),
        *('annotations a dict', 'image id null', 'box of texts', 'class name a number'),
        *('no images', 'no objects', 'a million classes'),
    ],
    'images': [
        *('missing', 'truncated', 'truncated JPEG', 'no bytes', 'not an image', '1 x 1'),
        *('20,000 pixels', '20,000 pixels wide', '16-bit', 'CMYK', 'palette', 'grey'),
        *('turned by EXIF', 'turned by EXIF, annotated as it is seen'),
    ],
    'checkpoints': [
        f'{name}, {command}'
        for name in (
            *('missing', 'truncated', 'no bytes', 'a web page', 'another architecture'),
            *('other classes', 'weights that are NaN', 'optimizer only'),
        )
        for command in ('train', 'run')
    ]
    + ['the original layout without losses'],
    'recipes': [
        *('unknown key', 'wrong type', 'circle of _base_', 'missing _base_', 'unknown teacher'),
        *('teacher given twice', 'no teachers', 'stage out of range', 'negative schedule'),
        *(
            'levels that the FPN lacks',
            'a loss name without loss',
            'level and loss name given twice',
        ),
    ],
    'notebooks': ['unknown parameter', 'wrong type', 'kernel killed'],
    # A full disk has a test of its own.
    'machine': ['read-only folder', 'no GPU', 'more GPUs than there are', 'port taken'],
}


@pytest.mark.parametrize('kind', MUST)
def test_what_must_be_tried_is(kind):
    rows = [name for table in TABLES[kind] for name in table]
    assert set(MUST[kind]) <= set(rows) and len(rows) == len(set(rows))


def test_the_number_of_rows():
    counts = {kind: sum(map(len, tables)) for kind, tables in TABLES.items()}
    total = sum(counts.values())
    print(', '.join(f'{kind} {count}' for kind, count in counts.items()), f'- {total} rows')
    assert total >= 200
