"""mmdet's CocoDataset with classes matched by name, and any file's ids."""

from __future__ import annotations

from ..runtime import compat  # noqa: F401  (before mmcv)

# isort: split
from pathlib import Path

from mmdet.datasets import DATASETS
from mmdet.datasets import CocoDataset as MmdetCocoDataset
from mmdet.datasets.api_wrappers import COCO

from ..errors import MtpdError
from .annotations import read_name
from .coco import read_annotations


@DATASETS.register_module(name='CocoDataset', force=True)
class CocoDataset(MmdetCocoDataset):
    """Takes the place of mmdet's `CocoDataset`, which numbers classes by their order in the file, and counts with its ids.

    Here label k is the k-th of `classes`, in every file: `coco` has its objects under category id k + 1. So files with
    other orders can be joined, and mmdet's own evaluation of a training has the right classes. Objects of other classes
    are left out. Ids are those of `annotations`.
    """

    def load_annotations(self, ann_file: str) -> list[dict]:
        """Raises MtpdError for a file without any of the classes, and as `read_annotations`."""
        table = read_annotations(Path(ann_file))
        names = [read_name(name) for name in self.CLASSES]
        numbers = {name: number for number, name in enumerate(names, 1)}
        categories = {item['id']: numbers.get(item['name']) for item in table['categories']}
        if not any(categories.values()):
            raise MtpdError(
                f'annotation file {ann_file} has none of the classes {", ".join(names[:5])}: it has '
                f'{", ".join(item["name"] for item in table["categories"][:5])}.'
            )
        # Copies: pycocotools writes into what it counts.
        self.coco = COCO()
        self.coco.dataset = {
            'images': [dict(item) for item in table['images']],
            'categories': [{'id': number, 'name': name} for name, number in numbers.items()],
            'annotations': [
                {**item, 'category_id': categories[item['category_id']]}
                for item in table['annotations']
                if categories[item['category_id']]
            ],
        }
        self.coco.createIndex()
        self.coco.img_ann_map = self.coco.imgToAnns  # mmdet's names
        self.coco.cat_img_map = self.coco.catToImgs
        self.cat_ids = list(numbers.values())
        self.cat2label = {number: number - 1 for number in self.cat_ids}
        self.img_ids = [item['id'] for item in table['images']]
        # What detections.json is written with.
        self.file_image_ids = {item['id']: item['file_id'] for item in table['images']}
        self.file_category_ids = {
            categories[item['id']]: item['file_id']
            for item in table['categories']
            if categories[item['id']]
        }
        infos = self.coco.dataset['images']
        for info in infos:
            info['filename'] = info['file_name']
        return infos

    def detections(self, results: list) -> dict[str, list[dict]]:
        """mmdet's results for each image as COCO's detections, with the ids of `coco`: by metric, 'bbox' and maybe 'segm'."""
        if results and isinstance(results[0], tuple):
            return dict(zip(('bbox', 'segm'), self._segm2json(results), strict=True))
        return {'bbox': self._det2json(results)}

    def with_file_ids(self, detections: list[dict]) -> list[dict]:
        """The same with the annotation file's ids of images and categories; what has none of them is left out."""
        return [
            {
                **item,
                'image_id': self.file_image_ids[item['image_id']],
                'category_id': self.file_category_ids[item['category_id']],
            }
            for item in detections
            if item['category_id'] in self.file_category_ids
        ]
