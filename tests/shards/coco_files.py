"""Pictures with annotations, as COCO has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from shards.sources.coco import CocoOptions

CATEGORIES = [{"id": 3, "name": "dog"}, {"id": 1, "name": "cat"}]


def box(x: int, y: int, width: int, height: int) -> list[list[int]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(number: int, image: int, category: int, segmentation: object, **more: object) -> dict:
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, **more}


class Instances:
    """Pictures in SPLIT2017, annotations in instances_SPLIT2017.json."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.options = CocoOptions(f"{root}/{{split}}2017", f"{root}/instances_{{split}}2017.json")

    def write(self, split: str, files: list[str], annotations: list[dict], **more: object) -> Path:
        images = []
        for number, name in enumerate(files, start=1):
            images.append({"id": number, "file_name": name, "height": 6, "width": 8})
            if ".." not in name and not name.startswith("/"):
                path = self.root / f"{split}2017" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
                Image.fromarray(pixels).save(path, "JPEG")
        content = {"info": {"a": ["}", '"']}, "images": images, "annotations": annotations, "categories": CATEGORIES}
        path = self.root / f"instances_{split}2017.json"
        path.write_text(json.dumps(content | more))
        return path
