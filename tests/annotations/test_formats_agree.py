"""One small set, written as VOC and as COCO, must give the same Examples."""

import json

import numpy as np

from ssd_tf.annotations import coco, voc

# Boxes as continuous pixels from 0: x0, y0, x1, y1, difficult, truncated.
SCENES = {
    "000001": (
        (375, 500),
        [("dog", 47, 239, 195, 371, True, False), ("person", 7, 11, 352, 498.5, False, True)],
    ),
    "000002": ((333, 500), [("train", 0, 0, 500, 333, False, False)]),
    "000003": ((120, 90), []),
}
CATEGORIES = {"dog": 18, "person": 44, "train": 70}


def _write_voc(folder):
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets/Main/all.txt").write_text("\n".join(SCENES))
    for source_id, ((height, width), objects) in SCENES.items():
        (folder / f"JPEGImages/{source_id}.jpg").write_bytes(b"")
        body = "".join(
            f"<object><name>{name}</name><truncated>{truncated:d}</truncated><difficult>{difficult:d}</difficult>"
            f"<bndbox><xmax>{x1}</xmax><xmin>{x0 + 1}</xmin><ymax>{y1}</ymax><ymin>{y0 + 1}</ymin></bndbox>"
            f"</object>"
            for name, x0, y0, x1, y1, difficult, truncated in objects
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (folder / f"Annotations/{source_id}.xml").write_text(f"<annotation>{size}{body}</annotation>")


def _write_coco(path):
    rows = [
        {"image_id": source_id, "category_id": CATEGORIES[name], "bbox": [x0, y0, x1 - x0, y1 - y0]}
        | {"iscrowd": 0, "difficult": int(difficult), "truncated": int(truncated)}
        for source_id, (_, objects) in SCENES.items()
        for name, x0, y0, x1, y1, difficult, truncated in objects
    ]
    content = {
        "images": [
            {"id": source_id, "file_name": f"{source_id}.jpg", "height": height, "width": width}
            for source_id, ((height, width), _) in SCENES.items()
        ],
        "annotations": [{"id": number} | row for number, row in enumerate(rows)],
        "categories": [{"id": number, "name": name} for name, number in CATEGORIES.items()],
    }
    path.write_text(json.dumps(content))


def _assert_agree(first, second):
    assert first.label_map.names == second.label_map.names == ("dog", "person", "train")
    assert len(first.examples) == len(second.examples) == len(SCENES)
    for one, other in zip(first.examples, second.examples, strict=True):
        for field in ("source_id", "image", "names", "unit", "size", "dropped"):
            assert getattr(one, field) == getattr(other, field), field
        for field in ("boxes", "difficult", "crowd", "truncated"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), field)


def test_voc_and_coco_agree(tmp_path):
    _write_voc(tmp_path)
    _write_coco(tmp_path / "instances.json")
    from_voc = voc.read(tmp_path, "all")
    from_coco = coco.read(tmp_path / "instances.json", tmp_path / "JPEGImages")
    _assert_agree(from_voc, from_coco)
    assert from_voc.examples[0].boxes.tolist() == [[239, 47, 371, 195], [11, 7, 498.5, 352]]
    assert from_voc.examples[0].size == (375, 500)
    assert from_voc.examples[0].difficult.tolist() == [True, False]
    assert from_voc.examples[0].truncated.tolist() == [False, True]


def test_voc_written_as_coco_is_the_same_set(tmp_path):
    _write_voc(tmp_path)
    from_voc = voc.read(tmp_path, "all")
    coco.write(tmp_path / "copy.json", from_voc.examples, from_voc.label_map)
    _assert_agree(from_voc, coco.read(tmp_path / "copy.json", tmp_path / "JPEGImages"))


def test_real_voc_written_as_coco_is_the_same_set(bccd, tmp_path):
    from_voc = voc.read(bccd, "val")
    coco.write(tmp_path / "copy.json", from_voc.examples, from_voc.label_map)
    found = coco.read(tmp_path / "copy.json", bccd / "JPEGImages")
    assert found.label_map == from_voc.label_map and len(found.examples) == 87
    for one, other in zip(from_voc.examples, found.examples, strict=True):
        assert (one.source_id, one.image, one.names, one.size) == (
            other.source_id,
            other.image,
            other.names,
            other.size,
        )
        np.testing.assert_array_equal(one.boxes, other.boxes)
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        np.testing.assert_array_equal(other.area, sides.prod(axis=1))
