"""ssd-synthesize with the user's own cut-outs and photographs: whole data sets, and what is refused."""

import contextlib
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from ssd_tf.annotations import coco
from ssd_tf.cli import runner
from ssd_tf.cli.synthesize import COMMAND
from ssd_tf.errors import DataError
from ssd_tf.synthesis.shapes import DEFAULT_CLASSES
from ssd_tf.synthesis.writer import synthesize

COLOURS = {"brick": (230, 20, 20), "leaf": (20, 220, 20)}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def cutout(h, w, colour, border=10):
    pixels = np.zeros((h + 2 * border, w + 2 * border, 4), np.uint8)
    pixels[border : h + border, border : w + border] = (*colour, 255)
    return pixels


@pytest.fixture
def objects(tmp_path):
    """Two classes of two cut-outs each."""
    for name, colour in COLOURS.items():
        for number, size in enumerate([(60, 60), (90, 45)]):
            save(tmp_path / "objects" / name / f"{number}.png", cutout(*size, colour))
    return tmp_path / "objects"


@pytest.fixture
def photos(tmp_path):
    """Two blue photographs; what is pasted on them is not blue."""
    for number, size in enumerate([(80, 120), (300, 200)]):
        pixels = np.zeros((*size, 3))
        pixels[..., 2] = np.linspace(120, 255, size[1])
        save(tmp_path / "photos" / f"{number}.png", pixels)
    return tmp_path / "photos"


def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def call(*argv):
    """Runs ssd-synthesize; returns its exit code, stdout and stderr without progress."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = runner.run(COMMAND, [str(part) for part in argv])
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("images ")]
    return code, out.getvalue(), "\n".join(lines)


def test_pasted_set_reads_back_with_tight_boxes(tmp_path, objects, photos):
    argv = ("--num_images=12", "--image_size=128", "--seed=4", "--num_objects=1,4", "--scale=0.15,0.4", "--json")
    code, out, err = call(f"--output={tmp_path / 'out'}", f"--objects={objects}", f"--backgrounds={photos}", *argv)
    assert (code, err) == (0, "")
    report = json.loads(out.splitlines()[-1])
    found = coco.read(tmp_path / "out" / "annotations.json", tmp_path / "out" / "images")
    assert found.label_map.names == ("brick", "leaf")
    assert not found.problems
    names = [name for example in found.examples for name in example.names]
    assert report["per_class"] == {name: names.count(name) for name in COLOURS}
    assert min(report["per_class"].values()) > 3 and report["boxes"] == len(names)
    assert (report["images"], report["ignored"]) == (12, [])
    for example in found.examples:
        assert 1 <= len(example.names) <= 4
        with Image.open(example.image) as image:
            pixels = np.asarray(image, int)
        for name in set(example.names):
            # Near a class's colour, for JPEG changes it; each such pixel is in a box of the class.
            seen = np.abs(pixels - COLOURS[name]).max(axis=-1) < 60
            inside = np.zeros_like(seen)
            for (top, left, bottom, right), other in zip(example.boxes.astype(int), example.names, strict=True):
                if other == name:
                    inside[top:bottom, left:right] = True
                    part = seen[top:bottom, left:right]
                    assert part.mean() > 0.15
                    if len(example.names) == 1:
                        assert part.any(axis=1).mean() > 0.85 and part.any(axis=0).mean() > 0.85
            assert np.count_nonzero(seen & ~inside) <= 0.1 * np.count_nonzero(seen)


def test_same_seed_same_bytes_wherever_the_inputs_lie(tmp_path, objects, photos):
    options = {"image_size": 64, "seed": 9}
    for name, workers in (("one", 1), ("four", 4)):
        synthesize(tmp_path / name, 6, objects=objects, backgrounds=photos, workers=workers, **options)
    moved = tmp_path / "elsewhere"
    shutil.copytree(objects, moved / "a")
    shutil.copytree(photos, moved / "b")
    synthesize(tmp_path / "fewer", 3, objects=moved / "a", backgrounds=moved / "b", **options)
    first = contents(tmp_path / "one")
    assert len(first) == 7
    assert contents(tmp_path / "four") == first
    fewer = contents(tmp_path / "fewer" / "images")
    assert fewer == {name: first[f"images/{name}"] for name in fewer} and len(fewer) == 3
    synthesize(tmp_path / "other", 3, objects=objects, backgrounds=photos, image_size=64, seed=10)
    other = contents(tmp_path / "other" / "images")
    assert all(other[name] != fewer[name] for name in fewer)


def test_inputs_stay_as_they_are(tmp_path, objects, photos):
    before = contents(objects), contents(photos)
    synthesize(tmp_path / "out", 2, image_size=64, objects=objects, backgrounds=photos)
    assert (contents(objects), contents(photos)) == before


def test_objects_alone_stand_on_drawn_textures(tmp_path, objects):
    report = synthesize(tmp_path / "out", 8, image_size=64, objects=objects, num_objects=(1, 1), scale=(0.2, 0.2))
    assert report["boxes"] == 8
    corners = []
    for path in sorted((tmp_path / "out" / "images").iterdir()):
        with Image.open(path) as image:
            corners.append(np.asarray(image)[:8, :8].mean(axis=(0, 1)))
    assert np.std(corners, axis=0).min() > 15  # every texture has colours of its own


def test_photos_alone_carry_shapes(tmp_path, photos):
    report = synthesize(tmp_path / "out", 6, image_size=96, backgrounds=photos)
    assert tuple(report["per_class"]) == DEFAULT_CLASSES
    found = coco.read(tmp_path / "out" / "annotations.json", tmp_path / "out" / "images")
    for example in found.examples:
        assert len(example.names) >= 3
        with Image.open(example.image) as image:
            pixels = np.asarray(image, int)
        free = np.ones(pixels.shape[:2], bool)
        for top, left, bottom, right in example.boxes.astype(int):
            free[max(top - 8, 0) : bottom + 8, max(left - 8, 0) : right + 8] = False
        blue = (pixels[..., 2] > 90) & (pixels[..., :2].max(axis=-1) < 60)
        assert np.count_nonzero(free) > 200
        assert np.mean(blue[free]) > 0.9  # shapes too hidden for a box are the rest


def test_classes_choose_sub_folders_and_the_order_of_ids(tmp_path, objects):
    (objects / "broken").mkdir()  # not asked for, so not looked at
    argv = (f"--objects={objects}", "--num_images=6", "--image_size=64")
    for classes in ("leaf", "leaf,brick"):
        code, _, err = call(f"--output={tmp_path / classes}", f"--classes={classes}", *argv)
        assert (code, err) == (0, "")
        found = coco.read(tmp_path / classes / "annotations.json", tmp_path / classes / "images")
        assert found.label_map.names == tuple(classes.split(","))


def test_what_is_no_image_is_told(tmp_path, objects, photos):
    (objects / "LICENSE").write_text("free")
    (photos / "list.txt").write_text("0.png")
    argv = (f"--output={tmp_path / 'out'}", f"--objects={objects}", f"--backgrounds={photos}", "--num_images=1")
    code, out, _ = call(*argv, "--image_size=64", "--json")
    assert code == 0
    lines = out.splitlines()
    assert lines[1] == f"no images, ignored: 2 (such as {objects / 'LICENSE'})"
    assert json.loads(lines[2])["ignored"] == [str(objects / "LICENSE"), str(photos / "list.txt")]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--scale=0.1,0.5"], "--scale is for cut-outs: it needs --objects"),
        (["--num_objects=0"], "num_objects: no image would have an object"),
        (["--max_tilt=3", "--backgrounds={photos}"], "--max_tilt is for cut-outs: it needs --objects"),
        (["--mirror"], "--mirror is for cut-outs: it needs --objects"),
        (["--objects={objects}", "--scale=big"], "--scale: expected least,most such as 0.1,0.5, got 'big'"),
        (["--objects={objects}", "--scale="], "--scale: expected least,most such as 0.1,0.5, got ''"),
        (
            ["--objects={objects}", "--scale=.1,.2,.3"],
            "--scale: expected least,most such as 0.1,0.5, got '.1,.2,.3'",
        ),
        (
            ["--objects={objects}", "--num_objects=1.5"],
            "--num_objects: expected least,most such as 1,5, got '1.5'",
        ),
        (["--objects={objects}", "--scale=0.5,0.1"], "scale: 0.5 is more than 0.1 (least comes first)"),
        (["--objects={objects}", "--scale=0.5,2"], "scale: 2.0 is outside 0..1"),
        (["--objects={objects}", "--scale=0.01"], "scale: 0.01 of 256 pixels is less than 4: nothing to be seen"),
        (["--objects={objects}", "--num_objects=0"], "num_objects: no image would have an object"),
        (["--objects={objects}", "--max_tilt=200"], "max_tilt: 200.0 is outside 0..180 degrees"),
        (
            ["--objects={objects}", "--scale=1", "--num_objects=4", "--image_size=64"],
            "no room for 4 visible objects in an image: make them fewer or smaller",
        ),
        (
            ["--objects={objects}", "--classes=leaf,brik"],
            "unknown class 'brik' (did you mean brick?); {objects} has: brick, leaf",
        ),
        (["--objects={objects}", "--classes=leaf,leaf"], "class 'leaf' is named twice"),
        (["--backgrounds={photos}", "--classes=leaf"], "unknown class 'leaf'; there are: circle,"),
    ],
)
def test_wrong_options_are_one_line(tmp_path, objects, photos, argv, message):
    places = {"objects": objects, "photos": photos}
    out = tmp_path / "out"
    code, printed, err = call(f"--output={out}", "--num_images=2", *(part.format(**places) for part in argv))
    assert (code, printed) == (2, "")
    assert err.startswith(message.format(**places)) and "\n" not in err
    assert not out.exists()


@pytest.mark.parametrize("place", ["objects", "photos", "objects/out", "photos/out", "."])
def test_inputs_are_never_written_to(tmp_path, objects, photos, place):
    before = contents(tmp_path)
    argv = (f"--objects={objects}", f"--backgrounds={photos}", "--num_images=1", "--image_size=64")
    for overwrite in ((), ("--overwrite",)):
        code, _, err = call(f"--output={tmp_path / place}", *argv, *overwrite)
        assert code == 2
        assert err.startswith(
            ("the output is the input: ", "the output lies in the input: ", "the output holds the")
        )
    assert contents(tmp_path) == before


BAD = "bad image: not an image (starts with 'not an im'): "


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("objects/leaf/2.png", np.zeros((9, 9, 3)), "no alpha channel: {0} (a cut-out is transparent around"),
        ("objects/leaf/2.png", np.zeros((9, 9, 4)), "nothing to be seen: no pixel covers half or more: {0}"),
        ("objects/leaf/2.png", b"not an image", BAD + "{0}"),
        ("objects/leaf/2.png", b"", "bad image: empty file: {0}"),
        (
            "objects/stray.png",
            cutout(9, 9, (9, 9, 9)),
            "{1}/objects holds sub-folders (classes), but also images:",
        ),
        ("objects/empty/readme.txt", b"nothing", "no images in {1}/objects/empty ("),
        ("photos/0.png", b"not an image", BAD + "{0}"),
    ],
)
def test_bad_inputs_are_one_line_before_anything_is_written(tmp_path, objects, photos, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save(path, content)
    (photos / "1.png").unlink()
    argv = (f"--objects={objects}", f"--backgrounds={photos}", "--num_images=2", "--image_size=64")
    code, out, err = call(f"--output={tmp_path / 'out'}", *argv)
    assert (code, out) == (3, "")
    assert err.startswith(message.format(path, tmp_path)) and "\n" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["objects", "backgrounds"])
def test_folders_that_are_not_there_or_empty(tmp_path, flag):
    argv = (f"--output={tmp_path / 'out'}", f"--{flag}={tmp_path / 'in'}")
    assert call(*argv) == (3, "", f"cannot read: no such file or directory: {tmp_path / 'in'}")
    (tmp_path / "in").mkdir()
    assert call(*argv) == (3, "", f"no images in {tmp_path / 'in'} (.png .webp .gif .jpg .jpeg .bmp)")
    (tmp_path / "in" / "a.txt").touch()
    assert call(*argv)[0] == 3
    assert not (tmp_path / "out").exists()


def test_a_photo_that_breaks_later_leaves_no_annotations(tmp_path, photos):
    save(photos / "2.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3)))
    whole = (photos / "2.jpg").read_bytes()
    (photos / "2.jpg").write_bytes(whole[: len(whole) // 2])
    seed = next(seed for seed in range(50) if not reads(tmp_path / f"try{seed}", photos, seed))
    names = contents(tmp_path / f"try{seed}")
    assert "annotations.json" not in names
    assert not any("tmp" in name for name in names)


def reads(output, photos, seed):
    """Whether a set could be made, although one of the photographs is broken; its first picture always could."""
    try:
        synthesize(output, 12, image_size=64, seed=seed, backgrounds=photos, workers=1)
    except DataError as error:
        assert str(error).startswith("bad image: truncated JPEG") and str(photos / "2.jpg") in str(error)
        return not output.exists()  # the first picture already met it: another seed
    return True
