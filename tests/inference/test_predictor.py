"""From pictures in any form to detections in their pixels."""

import keras
import numpy as np
import pytest
from PIL import Image

from ssd_tf import config as configs
from ssd_tf.boxes import anchors as anchor_boxes
from ssd_tf.boxes import ops
from ssd_tf.errors import ConfigError, DataError
from ssd_tf.inference.drawing import class_color
from ssd_tf.inference.predictor import Predictor, as_rgb, detect_records
from ssd_tf.models import detector, layers
from ssd_tf.structures import LabelMap

SIZE = (32, 48)
CONFIG = configs.replace(configs.Config(), model__image_size=SIZE, model__num_classes=2)
LABELS = LabelMap(("cat", "dog"))


@pytest.fixture(scope="module")
def network():
    """A detector of one map with random weights, and its anchors: what it finds depends on every pixel."""
    keras.utils.set_random_seed(3)
    image = keras.Input((*SIZE, 3), dtype="uint8")
    pixels = layers.make_preprocess("tf")(image)
    options = {"strides": 8, "padding": "same", "activation": "relu"}
    features = keras.layers.Conv2D(8, 9, kernel_initializer="he_normal", **options)(pixels)
    model = detector.build_ssd(keras.Model(image, [features]), 2, (4,))
    spec = anchor_boxes.chain((0.4, 0.8), ((2.0,),))
    return model, anchor_boxes.make_anchors(spec, [(4, 6)], SIZE)


@pytest.fixture(scope="module")
def predictor(network):
    return Predictor(*network, CONFIG, LABELS)


@pytest.fixture(scope="module")
def photo():
    """uint8 [H, W, 3] of another size and shape than the network's."""
    return np.random.default_rng(0).integers(0, 256, (70, 50, 3), np.uint8)


def assert_equal(first, second):
    for name in ("boxes", "scores", "classes"):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


def test_all_forms_of_an_image_give_the_same(predictor, photo, tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    expected = predictor(photo)
    assert len(expected) > 10
    for image in (path, str(path), Image.fromarray(photo), Image.open(path)):
        assert_equal(predictor(image), expected)
    other = np.ascontiguousarray(photo[::-1, :40])
    found = predictor([photo, path, other])
    assert_equal(found[0], expected)
    assert_equal(found[1], expected)
    assert_equal(found[2], predictor(other))
    assert not np.array_equal(found[2].scores[:5], expected.scores[:5])


def test_more_images_than_a_batch(predictor):
    images = list(np.random.default_rng(1).integers(0, 256, (11, 20, 30, 3), np.uint8))
    found = predictor(images)
    assert len(found) == 11
    for image, detections in zip(images, found, strict=True):
        alone = predictor(image)
        assert np.array_equal(detections.classes, alone.classes)
        np.testing.assert_allclose(detections.scores, alone.scores, rtol=1e-4)
        np.testing.assert_allclose(detections.boxes, alone.boxes, atol=1e-3)
    assert predictor([]) == []


def test_rotated_by_exif(predictor, photo, tmp_path):
    """Boxes are in pixels of the image as displayed."""
    path = tmp_path / "photo.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to display
    Image.fromarray(np.rot90(photo)).save(path, exif=exif)
    assert_equal(predictor(path), predictor(photo))


def test_detections_are_sorted_and_inside(predictor, photo):
    found = predictor(photo)
    assert np.all(np.diff(found.scores) <= 0)
    assert found.scores[-1] > 0.01
    assert set(found.classes) == {1, 2}
    assert found.boxes.min() >= 0
    assert np.all(found.boxes[:, 2] <= 50)
    assert np.all(found.boxes[:, 3] <= 70)
    assert np.all(found.boxes[:, 2:] > found.boxes[:, :2])


def test_score_threshold(predictor, photo):
    found = predictor(photo)
    middle = float(found.scores[len(found) // 2])
    kept = predictor(photo, middle)
    assert_equal(kept, found.above(middle))
    assert 0 < len(kept) < len(found)
    assert len(predictor(photo, 1.0)) == 0


def fixed_predictor(image_size, anchors, logits, **settings):
    """A predictor whose network answers the same to every image: each anchor as it is."""

    def model(batch, training):
        assert not training
        return {
            "class_logits": keras.ops.tile(np.float32(logits)[None], (keras.ops.shape(batch)[0], 1, 1)),
            "box_deltas": keras.ops.zeros((keras.ops.shape(batch)[0], len(anchors), 4)),
        }

    config = configs.replace(CONFIG, model__image_size=image_size, **settings)
    return Predictor(model, np.float32(anchors), config, LABELS)


def test_boxes_are_pixels_of_the_original():
    """yxyx of the unit square becomes xyxy of 200 by 100 pixels."""
    anchors = [[0.1, 0.2, 0.5, 0.3], [0.5, 0.5, 1.5, 0.75]]
    predictor = fixed_predictor((32, 32), anchors, [[0, 9, 0], [0, 0, 8]])
    found = predictor(np.zeros((100, 200, 3), np.uint8), 0.5)
    np.testing.assert_allclose(found.boxes, [[40, 10, 60, 50], [100, 50, 150, 100]], rtol=1e-5)
    assert found.classes.tolist() == [1, 2]
    np.testing.assert_allclose(found.scores, [1 / (1 + 2 * np.exp(-9)), 1 / (1 + 2 * np.exp(-8))], rtol=1e-5)
    portrait = predictor(np.zeros((64, 10, 3), np.uint8), 0.5)
    np.testing.assert_allclose(portrait.boxes[0], [2, 6.4, 3, 32], rtol=1e-5)


@pytest.mark.parametrize("classification", ["sigmoid", "focal"])
def test_without_background_every_column_is_a_class(classification):
    anchors = [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]
    logits = [[2, -3], [-9, 1]]
    predictor = fixed_predictor((32, 32), anchors, logits, loss__classification=classification)
    found = predictor(np.zeros((10, 10, 3), np.uint8), 0.04)
    assert found.classes.tolist() == [1, 2, 2]
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-x)) for x in (2, 1, -3)], rtol=1e-5)
    np.testing.assert_allclose(found.boxes, [[0, 0, 5, 5], [5, 5, 10, 10], [0, 0, 5, 5]], atol=1e-5)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("method", ["hard", "diou", "soft_gaussian", "soft_linear"])
def test_every_kind_of_suppression_runs(network, photo, method, class_agnostic):
    """Of boxes that compete none overlap by more than nms_iou, unless suppression is soft: it keeps more."""
    settings = {"postprocess__nms": method, "postprocess__class_agnostic": class_agnostic}
    config = configs.replace(CONFIG, **settings)
    found = Predictor(*network, config, LABELS)(photo)
    assert len(found) > 5
    assert np.all(np.diff(found.scores) <= 0)
    assert set(found.classes) == {1, 2}
    # The unit of suppression is the image; the photo's sides are 70 and 50 pixels.
    boxes = found.boxes[:, [1, 0, 3, 2]] / np.float32([70, 50, 70, 50])
    overlaps = ops.distance_iou(boxes[:, None], boxes[None]) if method == "diou" else ops.iou(boxes, boxes)
    compete = np.triu(np.ones_like(overlaps, bool), 1)
    compete &= class_agnostic | (found.classes[:, None] == found.classes)
    assert np.any(overlaps[compete] > 0.45 + 1e-5) == method.startswith("soft")
    hard = Predictor(*network, configs.replace(config, postprocess__nms="hard"), LABELS)(photo)
    assert (len(found) > len(hard)) == (method != "hard")
    assert found.scores[0] == hard.scores[0]


def test_records_are_detected_by_name(predictor, photo):
    batch = keras.ops.convert_to_tensor(np.random.default_rng(2).integers(0, 256, (2, *SIZE, 3), np.uint8))
    names = keras.ops.convert_to_tensor([b"a", "ü".encode()])
    sizes = keras.ops.convert_to_tensor(np.int32([[32, 48], [64, 480]]))
    done = []
    found = detect_records(predictor, [(batch, names, sizes)], done.append)
    assert list(found) == ["a", "ü"]
    assert done == [2]
    alone = predictor(batch.numpy()[0])
    np.testing.assert_allclose(found["a"].boxes, alone.boxes, atol=1e-3)
    in_pixels = predictor.detect_batch(batch[1:], [(32, 48)])[0]
    np.testing.assert_allclose(found["ü"].boxes, in_pixels.boxes * [10, 2, 10, 2], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((1, 5, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.int64),
    ],
)
def test_bad_array(predictor, array):
    with pytest.raises(DataError, match=rf"an image is uint8 \[H, W, 3\] RGB, got {array.dtype} \["):
        predictor(array)


def test_bad_files(predictor, tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*absent\.jpg"):
        predictor(tmp_path / "absent.jpg")
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.jpg"):
        predictor([tmp_path / "text.jpg"])


def test_palette_and_grey_pictures(photo):
    grey = Image.fromarray(photo[..., 0])
    assert np.array_equal(as_rgb(grey), np.repeat(photo[..., :1], 3, axis=2))
    palette = Image.fromarray(photo).quantize(8)
    assert np.array_equal(as_rgb(palette), np.asarray(palette.convert("RGB")))


def test_draw_and_save(photo, tmp_path):
    predictor = fixed_predictor((32, 32), [[0.5, 0.2, 0.9, 0.8], [0, 0, 0.1, 0.1]], [[0, 0, 9], [2, 1, 1]])
    image = np.full((100, 200, 3), 128, np.uint8)
    found = predictor(image)
    picture = predictor.draw(image, found, 0.9)
    assert np.abs(picture[70, 40].astype(int) - class_color(2)).max() <= 12
    assert np.all(image == 128)
    assert np.all(picture[:20, :20] == 128)  # below the threshold
    predictor.save(tmp_path / "out.png", image, found, 0.9)
    assert np.array_equal(as_rgb(tmp_path / "out.png"), picture)
    with pytest.raises(ConfigError, match=r"cannot write a \.txt"):
        predictor.save(tmp_path / "out.txt", image, found)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.png"]
