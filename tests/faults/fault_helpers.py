"""What the tests of faults share: commands run in this process, and small data sets."""

import contextlib
import importlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ssd_tf.cli import runner

CONVERT = ("--format=voc", "--input=voc", "--split=train", "--output=rec")
COCO = ("--format=coco", "--input=coco.json", "--images=.", "--output=rec")


def call(module, *argv):
    """Runs a command; returns its exit code, stdout, and the lines of stderr that are no progress."""
    out, err = io.StringIO(), io.StringIO()
    command = importlib.import_module(f"ssd_tf.cli.{module}").COMMAND
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = runner.run(command, [str(part) for part in argv])
    return code, out.getvalue(), [line for line in err.getvalue().splitlines() if not line.startswith("images ")]


def fault(module, *argv, code):
    """The first line of a failing command; more follow only where --on_error=fail lists all bad images."""
    got, out, err = call(module, *argv)
    assert got == code, (got, out, err)
    if len(err) > 1:
        assert err[-1].startswith(("convert_report.json lists", "convert_report_failed.json lists")), err
        assert err[-1].endswith("; --on_error=skip leaves them out")
    return err[0]


def succeed(module, *argv):
    """stdout of a command that must succeed."""
    code, out, err = call(module, *argv)
    assert (code, err) == (0, [])
    return out


def visible(folder):
    """Names of what a command left in `folder`, hidden files (locks) left out."""
    return sorted(entry.name for entry in folder.iterdir() if entry.name[0] != ".") if folder.exists() else []


def draw(path, width=64, height=48, **options):
    rng = np.random.default_rng([width, len(path.name), *path.name.encode()])
    Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(path, **options)


def voc_xml(objects, width=64, height=48):
    rows = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>\n"
        for name, x0, y0, x1, y1 in objects
    )
    return f"<annotation>\n<size><width>{width}</width><height>{height}</height></size>\n{rows}</annotation>\n"


def write_voc(root, objects):
    """Writes a VOC folder; `objects` is {stem: [(name, xmin, ymin, xmax, ymax), ...]}."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for stem, rows in objects.items():
        (root / "Annotations" / f"{stem}.xml").write_text(voc_xml(rows))
        draw(root / "JPEGImages" / f"{stem}.jpg")
    (root / "ImageSets" / "Main" / "train.txt").write_text("".join(f"{stem}\n" for stem in objects))
    return root


def write_coco(path, images=(), annotations=(), categories=("red",)):
    content = {
        "images": [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, (name, width, height) in enumerate(images)
        ],
        "annotations": list(annotations),
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
    }
    Path(path).write_text(json.dumps(content))
    return Path(path)


def coco_box(number, bbox, **more):
    return {"id": number, "image_id": 0, "category_id": 1, "bbox": bbox, **more}
