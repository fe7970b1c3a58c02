"""COCO files: reading, writing, results, and files that must not be trusted."""

import copy
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest

from ssd_tf.annotations import coco
from ssd_tf.annotations.annotation_set import BoxRules
from ssd_tf.errors import ConfigError, DataError, SsdError
from ssd_tf.structures import Detections, Example, LabelMap


def make_content():
    """Two annotated images, one negative; category ids with gaps, out of order."""
    return {
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": 640, "height": 480},
            {"id": 10, "file_name": "a.jpg", "width": 30, "height": 20},
            {"id": 3, "file_name": "sub/empty.jpg", "width": 8, "height": 6},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 9,
                "category_id": 90,
                "bbox": [10, 20.5, 30, 40],
                "area": 700.25,
                "iscrowd": 0,
            },
            {"id": 2, "image_id": 9, "category_id": 18, "bbox": [0, 0, 640, 480], "area": 5, "iscrowd": 1},
            {"id": 7, "image_id": 10, "category_id": 18, "bbox": ["1", "2.5", 3, 4]},
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 18, "name": "dog"},
            {"id": 1, "name": "person"},
        ],
    }


def write_json(folder, content):
    path = folder / "instances.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read(folder, content, **options):
    return coco.read(write_json(folder, content), folder / "images", **options)


def assert_equal(first, second):
    """Compares two Examples, box by box to the last bit."""
    for field in ("source_id", "image", "names", "unit", "size", "dropped"):
        assert getattr(first, field) == getattr(second, field), field
    for field in ("boxes", "difficult", "crowd", "truncated"):
        np.testing.assert_array_equal(getattr(first, field), getattr(second, field), field)
    assert (first.area is None) == (second.area is None)
    if first.area is not None:
        np.testing.assert_array_equal(first.area, second.area)


# ---------------------------------------------------------------- reading


def test_instances_by_hand(tmp_path):
    found = read(tmp_path, make_content())
    assert found.label_map == LabelMap(("person", "dog", "toothbrush"), (1, 18, 90))
    assert [example.source_id for example in found.examples] == ["10", "3", "9"]
    ten, empty, nine = found.examples
    assert nine.boxes.tolist() == [[20.5, 10, 60.5, 40], [0, 0, 480, 640]]
    assert nine.names == ("toothbrush", "dog") and nine.size == (480, 640)
    assert nine.crowd.tolist() == [False, True] and not nine.difficult.any()
    assert nine.area.tolist() == [700.25, 5]  # as annotated, not the box's
    assert ten.boxes.tolist() == [[2.5, 1, 6.5, 4]] and ten.area.tolist() == [12]
    assert nine.image == os.path.join(tmp_path, "images", "b.jpg")
    assert empty.image == os.path.join(tmp_path, "images", "sub", "empty.jpg") and empty.names == ()
    assert found.problems == () and found.notes == ("1 image without annotations (first: empty.jpg)",)


@pytest.mark.parametrize("area, expected", [(None, 12), ("nan", 12), (-1, 12), ("abc", 12), (0, 0), ("2.5", 2.5)])
def test_area_that_is_no_number_becomes_the_boxs(tmp_path, area, expected):
    content = make_content()
    content["annotations"][2]["area"] = area
    assert read(tmp_path, content).examples[0].area.tolist() == [expected]


def test_zero_sides_are_dropped_and_named(tmp_path):
    content = make_content()
    content["annotations"][0]["bbox"] = [10, 20.5, 0, 40]
    content["annotations"][2]["bbox"] = [1, 2, 3, 0]
    found = read(tmp_path, content)
    ten, _, nine = found.examples
    assert nine.names == ("dog",) and nine.area.tolist() == [5] and nine.crowd.tolist() == [True]
    assert nine.dropped == (
        "degenerate box (zero area): annotation 1 'toothbrush' 10 20.5 0 40: image 9 in instances.json",
    )
    assert ten.dropped == ("degenerate box (zero area): annotation 7 'dog' 1 2 3 0: image 10 in instances.json",)
    assert ten.boxes.shape == (0, 4) and found.problems == ()


def test_negative_sides_can_be_swapped(tmp_path):
    content = make_content()
    content["annotations"][0]["bbox"] = [40, 20.5, -30, 40]
    ten, _, nine = read(tmp_path, content, rules=BoxRules(fix_boxes="swap")).examples
    assert nine.boxes.tolist()[0] == [20.5, 10, 60.5, 40] and ten.swapped == ()
    assert nine.swapped == (
        "inverted box, edges swapped: annotation 1 'toothbrush' 40 20.5 -30 40: image 9 in instances.json",
    )


def test_fractions_of_the_image(tmp_path):
    content = make_content()
    for row in content["annotations"]:
        row["bbox"] = [0.25, 0.5, 0.5, 0.125]
    found = read(tmp_path, content, rules=BoxRules("normalised"))
    assert [example.unit for example in found.examples] == ["normalised"] * 3
    assert found.examples[0].boxes.tolist() == [[0.5, 0.25, 0.625, 0.75]]
    assert found.examples[0].area is None is found.examples[2].area  # the box's, once the image's size is known


def test_images_without_annotations_are_refused_where_pairs_are_required(tmp_path):
    with pytest.raises(DataError) as caught:
        read(tmp_path, make_content(), require_pairs=True)
    assert str(caught.value) == (
        "1 image without annotations (first: empty.jpg) (--require_pairs): instances.json"
    )
    content = make_content()
    content["images"].pop()
    assert len(read(tmp_path, content, require_pairs=True).examples) == 2


def test_outlines_are_dropped_while_the_file_is_parsed(tmp_path):
    content = make_content()
    content["annotations"][0]["segmentation"] = [[1.5] * 10]
    content["images"][0]["coco_url"] = "x"
    images, annotations, _ = coco._read_tables(write_json(tmp_path, content), "instances.json")
    assert "segmentation" not in annotations[0] and annotations[0]["bbox"] == [10, 20.5, 30, 40]
    assert images[0] == {"id": 9, "file_name": "b.jpg", "height": 480, "width": 640}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": None}, "annotation 1: no bbox"),
        ({"bbox": [1, 2, 3]}, "annotation 1: bbox is not a list of 4 numbers"),
        ({"bbox": {"x": 1}}, "annotation 1: bbox is not a list of 4 numbers"),
        ({"bbox": [1, 2, -3, 4]}, "annotation 1: width -3 < 0"),
        ({"bbox": [1, 2, 3, -0.5]}, "annotation 1: height -0.5 < 0"),
        ({"bbox": ["abc", 2, 3, 4]}, "annotation 1: x is not a finite number: 'abc'"),
        ({"bbox": [1, 2, 3, True]}, "annotation 1: height is not a finite number: True"),
        ({"bbox": [1e308, 2, 1.7e308, 4]}, "annotation 1: x is far outside of any image: 1e+308"),
    ],
)
def test_bad_boxes_are_problems(tmp_path, change, message):
    content = make_content()
    content["annotations"][0].update(change)
    found = read(tmp_path, content)
    assert [(p.kind, p.source, p.message) for p in found.problems] == [
        ("bad annotation", "image 9 in instances.json", f"{message}: image 9 in instances.json")
    ]
    assert [example.source_id for example in found.examples] == ["10", "3"]


def test_unknown_category_ids_are_problems(tmp_path):
    content = make_content()
    content["annotations"][0]["category_id"] = 91
    content["annotations"][2]["category_id"] = 91
    for classes in ((), ("dog",)):
        found = read(tmp_path, content, classes=classes)
        assert [(problem.kind, problem.message) for problem in found.problems] == [
            ("unknown class", "unknown class 'category_id 91' in 2 files: image 9 in instances.json"),
            ("unknown class", "unknown class 'category_id 91' in 2 files: image 10 in instances.json"),
        ]
        assert [example.source_id for example in found.examples] == ["3"]


def test_classes_keep_the_owners_ids(tmp_path):
    found = read(tmp_path, make_content(), classes=("toothbrush", "person"))
    assert found.label_map == LabelMap(("toothbrush", "person"), (90, 1))
    assert [example.names for example in found.examples] == [(), (), ("toothbrush",)]
    assert "2 boxes of classes not chosen left out: 'dog' 2" in found.notes
    with pytest.raises(ConfigError, match=r"^unknown class 'dgo' \(did you mean dog\?\): instances.json$"):
        read(tmp_path, make_content(), classes=("dgo",))


def test_a_label_map_overrides_and_makes_other_classes_problems(tmp_path):
    label_map = LabelMap(("dog", "toothbrushes"), (4, 5))
    found = read(tmp_path, make_content(), label_map=label_map)
    assert found.label_map == label_map
    (problem,) = found.problems
    assert problem.message == (
        "unknown class 'toothbrush' in 1 file (near: 'toothbrushes'): image 9 in instances.json"
    )


def test_duplicated_ids_are_refused(tmp_path):
    content = make_content()
    content["annotations"] += [dict(content["annotations"][0], id=n) for n in (20, 21, 22, 23, 24)]
    content["annotations"] += [dict(content["annotations"][0], id=n) for n in (1, 20, 21, 22, 23, 24)]
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert str(caught.value) == "instances.json: 6 duplicated annotation ids: 1, 20, 21, 22, 23, ..."
    content = make_content()
    content["images"].append(dict(content["images"][0], id="9"))
    with pytest.raises(DataError, match=r"^instances.json: 1 duplicated image ids: 9$"):
        read(tmp_path, content)


def test_annotations_of_missing_images_are_counted(tmp_path):
    content = make_content()
    content["images"].pop(0)
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert str(caught.value) == "instances.json: 2 annotations of missing images (first: annotation 1)"


def test_annotations_need_no_id(tmp_path):
    content = make_content()
    for row in content["annotations"]:
        del row["id"]
    content["annotations"][2]["bbox"] = [1]
    (problem,) = read(tmp_path, content).problems
    assert problem.message.startswith("entry 3 of annotations: bbox is not")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_file_names_stay_in_the_folder(tmp_path, name):
    content = make_content()
    content["images"][0]["file_name"] = name
    (problem,) = read(tmp_path, content).problems
    assert problem.message == f"refused: path leaves the dataset root: {name}: image 9 in instances.json"


@pytest.mark.parametrize("name", [None, "", 5, "\ud800.jpg"])
def test_file_names_must_be_text(tmp_path, name):
    content = make_content()
    content["images"][0]["file_name"] = name
    (problem,) = read(tmp_path, content).problems
    assert problem.message == "no file_name: image 9 in instances.json"


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda c: c.pop("categories"),
            'not an instances file: expected the lists "images", "annotations", "categories"',
        ),
        (lambda c: c["images"].append(3), "entry 4 of images is not an object"),
        (lambda c: c["images"][1].pop("id"), "entry 2 of images: id is neither an integer nor a text"),
        (lambda c: c["images"][1].update(id=1.5), "entry 2 of images: id is neither an integer nor a text"),
        (lambda c: c["categories"][1].update(id="x"), "category 2: id must be an integer and name a text"),
        (lambda c: c["categories"][1].update(name=""), "category 2: id must be an integer and name a text"),
        (
            lambda c: c["categories"][1].update(id=90),
            "category 1 (name 'toothbrush') and category 2 (name 'dog') have the same id 90",
        ),
        (
            lambda c: c["categories"][2].update(name="dog"),
            "category 2 (id 18) and category 3 (id 1) have the same name 'dog'",
        ),
    ],
)
def test_malformed_tables_are_refused(tmp_path, change, message):
    content = make_content()
    change(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert str(caught.value) == f"instances.json: {message}"


def test_variants_of_a_category_are_refused(tmp_path):
    content = make_content()
    content["categories"][0]["name"] = "Dog "
    with pytest.raises(DataError) as caught:
        read(tmp_path, content)
    assert str(caught.value) == (
        "class 'Dog ' differs from 'dog' only by case or spaces (did you mean 'dog'?): instances.json"
    )


def test_a_cut_file_and_nan_are_named(tmp_path):
    path = write_json(tmp_path, make_content())
    text = path.read_text()
    path.write_text(text[:200])
    with pytest.raises(DataError, match=r"instances\.json: cut at byte 200$"):
        coco.read(path, tmp_path)
    path.write_text(text.replace("700.25", "NaN"))
    with pytest.raises(DataError, match=r"instances\.json: NaN is not a number in JSON$"):
        coco.read(path, tmp_path)


def test_damaged_content_gives_problems_and_never_tracebacks(tmp_path):
    generator = random.Random(0)
    values = [
        None,
        True,
        -1,
        0,
        1e308,
        "x",
        "",
        [],
        {},
        [1, 2, 3, 4],
        9,
        "9",
        2**70,
        "../x",
        "\udc80",
        "\ud800",
    ]
    num_read = num_problems = num_refused = 0
    for _ in range(400):
        content = copy.deepcopy(make_content())
        for _ in range(generator.randint(1, 2)):
            row = generator.choice(content[generator.choice(list(content))])
            row[generator.choice(list(row))] = generator.choice(values)
        try:
            found = read(tmp_path, content)
        except SsdError as error:
            assert "instances.json" in str(error) and "\n" not in str(error)
            num_refused += 1
            continue
        assert len(found.examples) + len(found.problems) == 3
        assert all(np.isfinite(example.boxes).all() for example in found.examples)
        num_read += len(found.examples)
        num_problems += len(found.problems)
    assert min(num_read, num_problems, num_refused) > 20


# ---------------------------------------------------------------- writing


def make_examples(generator, folder, count, grid):
    """Random Examples; coordinates are multiples of 1/grid, or any floats for grid 0."""
    label_map = LabelMap(("ant", "bee", "cat é"), (7, 3, 90))
    examples = []
    for number in range(count):
        size = tuple(int(side) for side in generator.integers(50, 900, 2))
        low = generator.uniform(-5, 40, (generator.integers(0, 6), 2))
        boxes = np.concatenate([low, low + generator.uniform(1, 800, low.shape)], axis=1)
        boxes = np.round(boxes * grid) / grid if grid else boxes
        num_boxes = len(boxes)
        examples.append(
            Example(
                source_id=generator.choice(["{}", "0{}", "im {}", "-{}"]).format(number + 1),
                image=str(folder / f"picture {number}.jpg"),
                boxes=boxes,
                names=tuple(generator.choice(label_map.names, num_boxes).tolist()),
                size=size,
                difficult=generator.random(num_boxes) < 0.5,
                crowd=generator.random(num_boxes) < 0.5,
                truncated=generator.random(num_boxes) < 0.5,
                area=generator.uniform(0, 1e5, num_boxes) if num_boxes else None,
            )
        )
    return sorted(examples, key=lambda example: example.source_id), label_map


@pytest.mark.parametrize("seed", range(20))
def test_written_instances_are_read_back_equal(tmp_path, seed):
    examples, label_map = make_examples(np.random.default_rng(seed), tmp_path / "images", 12, grid=64)
    coco.write(tmp_path / "out.json", examples, label_map)
    found = coco.read(tmp_path / "out.json", tmp_path / "images", label_map=label_map)
    assert found.problems == () and len(found.examples) == 12
    for example, again in zip(examples, found.examples, strict=True):
        assert_equal(example, again)
    assert os.listdir(tmp_path) == ["out.json"]


def test_written_floats_keep_full_precision(tmp_path):
    examples, label_map = make_examples(np.random.default_rng(1), tmp_path, 40, grid=0)
    coco.write(tmp_path / "out.json", examples, label_map)
    found = coco.read(tmp_path / "out.json", tmp_path)
    for example, again in zip(examples, found.examples, strict=True):
        # x + (xmax - x) may differ from xmax in its last bit.
        np.testing.assert_array_equal(again.boxes[:, :2], example.boxes[:, :2])
        np.testing.assert_allclose(again.boxes, example.boxes, rtol=0, atol=2.3e-13)
    by_owner = LabelMap(("bee", "ant", "cat é"), (3, 7, 90))
    assert found.label_map == by_owner


def test_written_rows_by_hand(tmp_path):
    label_map = LabelMap(("dog",), (18,))
    example = Example("12", "/data/x/a.jpg", [[0.25, 0.5, 0.75, 1.0]], ("dog",), "normalised", (40, 100))
    text_id = replace(
        example,
        source_id="0012",
        image="b.jpg",
        boxes=[[1, 2, 3, 5]],
        unit="pixel",
        area=[2.5],
        difficult=[True],
    )
    coco.write(tmp_path / "out.json", [example, text_id], label_map)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["images"] == [
        {"id": 12, "file_name": "a.jpg", "width": 100, "height": 40},
        {"id": "0012", "file_name": "b.jpg", "width": 100, "height": 40},
    ]
    assert content["annotations"] == [
        {"id": 1, "image_id": 12, "category_id": 18, "bbox": [50, 10, 50, 20], "area": 1000, "iscrowd": 0},
        {
            "id": 2,
            "image_id": "0012",
            "category_id": 18,
            "bbox": [2, 1, 3, 2],
            "area": 2.5,
            "iscrowd": 0,
            "difficult": 1,
        },
    ]
    assert content["categories"] == [{"id": 18, "name": "dog"}]


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path):
    label_map = LabelMap(("dog",))
    example = Example("1", "a.jpg", [[1, 2, 3, 4]], ("dog",), size=(9, 9))
    for wrong, message in [
        ([replace(example, size=None)], "image 1 has no size"),
        ([replace(example, names=("dig",))], "unknown class 'dig' (did you mean dog?)"),
        (
            [example, replace(example, source_id="2", image="sub/a.jpg")],
            "out.json: 1 duplicated file names: a.jpg",
        ),
    ]:
        with pytest.raises(DataError) as caught:
            coco.write(tmp_path / "out.json", wrong, label_map)
        assert str(caught.value) == message
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- results


def test_results_by_hand(tmp_path):
    path = tmp_path / "results.json"
    rows = [
        {"image_id": 42, "category_id": 18, "bbox": [258.15, 41.29, 348.26, 243.78], "score": 0.236},
        {"image_id": "a b", "category_id": 1, "bbox": [0, 0, 0, 1], "score": 1},
    ]
    path.write_text(json.dumps(rows))
    found = coco.read_results(path)
    assert found.image_ids == ("42", "a b")
    assert found.category_ids.tolist() == [18, 1] and found.category_ids.dtype == np.int64
    assert found.boxes.tolist() == [[258.15, 41.29, 348.26, 243.78], [0, 0, 0, 1]]
    assert found.scores.tolist() == [0.236, 1] and found.scores.dtype == np.float64


def test_empty_results(tmp_path):
    coco.write_results(tmp_path / "results.json", {}, LabelMap(("dog",)))
    found = coco.read_results(tmp_path / "results.json")
    assert found.image_ids == () and found.boxes.shape == (0, 4) and found.scores.shape == (0,)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"score": "x"}, "score is not a finite number: 'x'"),
        ({"score": None}, "score is missing"),
        ({"bbox": [1, 2, 3]}, "bbox is not a list of 4 numbers"),
        ({"bbox": None}, "no bbox"),
        ({"bbox": [1, "y", 3, 4]}, "y is not a finite number: 'y'"),
        ({"bbox": [1, 2, 3, -4]}, "height -4 < 0"),
        ({"category_id": "1"}, "category_id is not an integer: '1'"),
        ({"category_id": 2**63}, "category_id is not an integer: 9223372036854775808"),
        ({"image_id": 1.5}, "image_id is neither an integer nor a text"),
    ],
)
def test_bad_results_are_placed(tmp_path, change, message):
    row = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "results.json").write_text(json.dumps([row] * 11 + [row | change]))
    with pytest.raises(DataError) as caught:
        coco.read_results(tmp_path / "results.json")
    assert str(caught.value) == f"results.json: entry 12: {message}"


def test_other_files_are_not_results(tmp_path):
    with pytest.raises(DataError, match=r"^instances.json: not a results file: expected a list of detections$"):
        coco.read_results(write_json(tmp_path, make_content()))
    with pytest.raises(DataError, match=r"^instances.json: entry 1: not an object$"):
        coco.read_results(write_json(tmp_path, [3]))


def test_written_results_are_read_back_equal(tmp_path):
    generator = np.random.default_rng(0)
    label_map = LabelMap(("ant", "bee", "cat"), (7, 3, 90))
    detections = {}
    for source_id in ("139", "000139", "im 5"):
        low = generator.uniform(0, 300, (50, 2)).astype(np.float32)
        boxes = np.concatenate([low, low + generator.uniform(0, 300, (50, 2)).astype(np.float32)], axis=1)
        scores = np.sort(generator.random(50).astype(np.float32))[::-1]
        detections[source_id] = Detections(boxes, scores, generator.integers(1, 4, 50).astype(np.int32))
    coco.write_results(tmp_path / "results.json", detections, label_map)
    raw = json.loads((tmp_path / "results.json").read_text())
    assert [raw[0]["image_id"], raw[50]["image_id"], raw[100]["image_id"]] == [139, "000139", "im 5"]
    found = coco.read_results(tmp_path / "results.json")
    corners = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)
    for index, (source_id, expected) in enumerate(detections.items()):
        rows = slice(50 * index, 50 * index + 50)
        assert found.image_ids[rows] == (source_id,) * 50
        np.testing.assert_array_equal(corners[rows], expected.boxes)
        np.testing.assert_array_equal(found.scores[rows], expected.scores)
        owner_ids = np.array([7, 3, 90])[expected.classes - 1]
        np.testing.assert_array_equal(found.category_ids[rows], owner_ids)


def test_annotations_that_name_their_file_too(tmp_path):
    content = make_content()
    for row in content["annotations"]:
        row["file_name"] = "b.jpg"
    for first, second in zip(
        read(tmp_path, content).examples, read(tmp_path, make_content()).examples, strict=True
    ):
        assert_equal(first, second)


def test_boxes_whose_area_no_number_holds(tmp_path):
    row = {"image_id": 9, "category_id": 1, "bbox": [0, 0, 1e308, 5], "score": 0.5}
    with pytest.raises(DataError, match=r"^instances\.json: entry 1: width is far outside of any image: 1e\+308$"):
        coco.read_results(write_json(tmp_path, [row]))
    content = make_content()
    content["annotations"][0]["bbox"] = [-2e9, 0, 5, 5]
    (problem,) = read(tmp_path, content).problems
    assert problem.message == "annotation 1: x is far outside of any image: -2e+09: image 9 in instances.json"
