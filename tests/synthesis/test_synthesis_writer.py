import collections
import errno
import json

import numpy as np
import pytest
from PIL import Image

from ssd_tf import fileio
from ssd_tf.annotations import coco
from ssd_tf.errors import ConfigError, EnvironmentFault
from ssd_tf.synthesis import writer
from ssd_tf.synthesis.scene import draw_scene
from ssd_tf.synthesis.shapes import DEFAULT_CLASSES
from ssd_tf.synthesis.writer import synthesize


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_same_seed_same_bytes_whatever_the_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("four", 4), ("default", 0)):
        synthesize(tmp_path / name, 6, image_size=96, seed=5, workers=workers)
    first = contents(tmp_path / "one")
    assert sorted(first) == ["annotations.json", *(f"images/{number:06d}.jpg" for number in range(6))]
    assert contents(tmp_path / "four") == first
    assert contents(tmp_path / "default") == first


def test_other_seed_other_bytes(tmp_path):
    for seed in (0, 1):
        synthesize(tmp_path / str(seed), 4, image_size=64, seed=seed)
    first, second = contents(tmp_path / "0"), contents(tmp_path / "1")
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)
    assert len(set(first.values())) == len(first)


def test_image_does_not_depend_on_the_number_of_images(tmp_path):
    for num_images in (2, 5):
        synthesize(tmp_path / str(num_images), num_images, image_size=64)
    few, many = contents(tmp_path / "2" / "images"), contents(tmp_path / "5" / "images")
    assert few == {name: many[name] for name in few}


def test_annotations_read_back_as_drawn(tmp_path):
    report = synthesize(tmp_path / "shapes", 8, image_size=128, seed=2)
    found = coco.read(tmp_path / "shapes" / "annotations.json", tmp_path / "shapes" / "images")
    assert found.label_map.names == DEFAULT_CLASSES
    assert not found.problems
    assert len(found.examples) == 8
    for number, example in enumerate(found.examples):
        pixels, boxes, names = draw_scene(np.random.default_rng([2, number]), 128, DEFAULT_CLASSES)
        np.testing.assert_array_equal(example.boxes, boxes)
        assert example.names == tuple(names)
        assert (example.source_id, example.size) == (str(number), (128, 128))
        with Image.open(example.image) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            difference = np.abs(np.asarray(image, float) - pixels).mean()
        assert difference < 12
    names = [name for example in found.examples for name in example.names]
    assert report["images"] == 8 and report["output"] == str(tmp_path / "shapes")
    assert report["boxes"] == len(names) >= 3 * 8
    assert report["per_class"] == {name: names.count(name) for name in DEFAULT_CLASSES}


def test_asked_classes_alone_in_the_asked_order(tmp_path):
    classes = ("right_arrow", "left_arrow")
    report = synthesize(tmp_path / "arrows", 5, image_size=64, classes=classes)
    found = coco.read(tmp_path / "arrows" / "annotations.json", tmp_path / "arrows" / "images")
    assert found.label_map.names == classes
    assert tuple(report["per_class"]) == classes
    assert min(report["per_class"].values()) > 0


def test_progress_counts_to_the_end(tmp_path):
    calls = []
    synthesize(tmp_path / "a", 4, image_size=64, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_images": 0}, "num_images: 0 is outside 1.."),
        ({"num_images": 2.0}, "num_images: expected integer, got 2.0"),
        ({"image_size": 63}, "image_size: 63 is outside 64..4096"),
        ({"image_size": 4097}, "image_size: 4097 is outside 64..4096"),
        ({"seed": -1}, "seed: -1 is outside 0.."),
        ({"workers": -1}, "workers: -1 is outside 0.."),
        ({"classes": ("star", "sqare")}, "unknown class 'sqare' (did you mean square?); there are: circle,"),
        ({"classes": ("star", 3)}, "unknown class 3; there are: circle,"),
        ({"classes": ("star", "star")}, "class 'star' is named twice"),
        ({"classes": ()}, "classes: name at least one of circle,"),
    ],
)
def test_wrong_options_are_refused_before_any_work(tmp_path, options, message):
    with pytest.raises(ConfigError) as error:
        synthesize(tmp_path / "out", **({"num_images": 1} | options))
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_filled_output_is_kept_unless_told_otherwise(tmp_path):
    synthesize(tmp_path, 1, image_size=64, seed=1)
    (tmp_path / "annotations.json").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        synthesize(tmp_path, 1, image_size=64)
    assert contents(tmp_path)["annotations.json"] == b"mine"
    synthesize(tmp_path, 1, image_size=64, overwrite=True)
    assert sorted(contents(tmp_path)) == ["annotations.json", "images/000000.jpg"]


def test_full_disk_leaves_no_annotations_and_no_half_images(tmp_path, monkeypatch):
    replaced = fileio.commit

    def refuse(temporary, path):
        if path.name == "000002.jpg":
            raise OSError(errno.ENOSPC, "full")
        replaced(temporary, path)

    monkeypatch.setattr(fileio, "commit", refuse)
    with pytest.raises(EnvironmentFault, match="No space left"):
        synthesize(tmp_path / "out", 40, image_size=64, workers=1)
    names = sorted(contents(tmp_path / "out"))
    assert names[:2] == ["images/000000.jpg", "images/000001.jpg"]
    assert "images/000002.jpg" not in names and "annotations.json" not in names
    assert not any("tmp" in name for name in names)
    assert len(names) < 39  # what was waiting was called off


def test_annotations_come_last(tmp_path, monkeypatch):
    written = []
    replaced = fileio.commit
    monkeypatch.setattr(fileio, "commit", lambda source, path: (written.append(path.name), replaced(source, path)))
    writer.synthesize(tmp_path / "out", 5, image_size=64)
    assert written[-1] == "annotations.json" and len(written) == 6


def test_an_interruption_calls_off_what_was_waiting(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "out", 60, image_size=64, workers=1, progress=interrupt)
    names = contents(tmp_path / "out")
    assert 1 <= len(names) < 60
    assert "annotations.json" not in names


def test_number_of_shapes_in_a_picture(tmp_path):
    report = synthesize(tmp_path / "out", 12, image_size=64, num_objects=(1, 2), seed=5)
    content = json.loads((tmp_path / "out" / "annotations.json").read_text())
    counts = collections.Counter(row["image_id"] for row in content["annotations"])
    assert set(counts) == set(range(12)) and set(counts.values()) == {1, 2}
    assert report["boxes"] == sum(counts.values())
