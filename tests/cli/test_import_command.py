"""ssd-import as typed: a run that all other commands take, a file of a backbone, the list, wrong options."""

import contextlib
import dataclasses
import importlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import ssd_tf
from ssd_tf import fileio, runs
from ssd_tf.api import import_weights
from ssd_tf.cli import runner
from ssd_tf.errors import ConfigError
from ssd_tf.models import detector
from ssd_tf.pretrained import catalogue, classes, sources


def call(module, *argv):
    """Runs a command; returns its exit code, stdout and stderr."""
    command = importlib.import_module(f"ssd_tf.cli.{module}").COMMAND
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = runner.run(command, [str(part) for part in argv])
    return code, out.getvalue(), err.getvalue()


def usage_error(*argv):
    code, out, err = call("import_weights", *argv)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    return err[:-1]


@pytest.fixture(scope="module")
def imported(weights, tmp_path_factory):
    """(run directory of the tfjs detector, what the command printed)."""
    path = tmp_path_factory.mktemp("imported") / "runs" / "coco"
    folder = weights / "coco_ssdlite_mobilenet_v2"
    code, out, err = call(
        "import_weights", "--source=tfjs_coco_ssd", f"--weights={folder}", f"--run_dir={path}", "--json"
    )
    assert (code, err) == (0, "")
    return path, out


def test_what_is_said(imported, weights):
    path, out = imported
    assumed, text, values = out.splitlines()
    assert assumed == "classes: COCO's 80 names are assumed; --labels=FILE names others"
    assert text == (
        "tfjs_coco_ssd: 404 tensors, 4,371,412 parameters, 80 classes; the run is in "
        f"{path}; to train from it: --init_from={path}"
    )
    assert json.loads(values) == {
        "source": "tfjs_coco_ssd",
        "weights": str(weights / "coco_ssdlite_mobilenet_v2"),
        "run_dir": str(path),
        "backbone": "mobilenet_v2",
        "classes": 80,
        "parameters": 4_371_412,
        "tensors": 404,
    }


def test_the_run_is_one(imported):
    path, _ = imported
    assert sorted(entry.name for entry in path.iterdir()) == [
        *(".lock", "LATEST", "config.json", "label_map.json", "step-00000000"),
    ]
    assert sorted(entry.name for entry in (path / "step-00000000").iterdir()) == ["model.weights.h5", "state.json"]
    run = runs.open_run(path)
    assert dict(zip(run.label_map.source_ids, run.label_map.names, strict=True)) == classes.COCO
    assert (run.config.model.num_classes, run.config.loss.classification) == (80, "sigmoid")
    found = runs.find_checkpoint(path)
    assert (found.path.name, found.state["step"], found.skipped) == ("step-00000000", 0, ())
    assert found.state["imported"] == "tfjs_coco_ssd"


@pytest.fixture(scope="module")
def photo(weights, tmp_path_factory):
    """One of the pictures that the reference tensors are of: a person."""
    with np.load(weights / "coco_ssdlite_mobilenet_v2" / "reference_tensors_3images.npz") as values:
        pixels = np.clip(np.round((values["2007_000027_input"][0] + 1) * 127.5), 0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp("photo") / "person.png"
    Image.fromarray(pixels).save(path)
    return path


def test_demo_finds_what_is_there(imported, photo, tmp_path):
    code, out, err = call(
        "demo", f"--run_dir={imported[0]}", f"--input={photo}", f"--output={tmp_path / 'o.png'}", "--json"
    )
    assert code == 0, err
    ((name, score, *box),) = json.loads(out.splitlines()[-1])["results"][0]["detections"]
    assert name == "person" and score > 0.95
    np.testing.assert_allclose(box, [105, 59, 221, 205], atol=3)


def test_evaluation_takes_the_run(imported, photo, tmp_path):
    """The person's box, in records whose classes are COCO's."""
    shutil.copy(photo, tmp_path / "person.png")
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [105, 59, 116, 146], "area": 16936, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "person.png", "width": 300, "height": 300}],
        "annotations": [box],
        "categories": [{"id": number, "name": name} for number, name in classes.COCO.items()],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    files = (f"--input={tmp_path / 'coco.json'}", f"--images={tmp_path}", f"--output={tmp_path / 'rec'}")
    code, _, err = call("convert", "--format=coco", *files, "--allow_gaps")
    assert code == 0, err
    code, out, err = call(
        "test", f"--run_dir={imported[0]}", f"--data={tmp_path / 'rec'}", "--metric=coco", "--json"
    )
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["AP50"] == 1.0


def test_no_training_goes_on_in_it(imported):
    path, _ = imported
    run = runs.open_run(path)
    with pytest.raises(ConfigError) as caught:
        runs.start_run(path, run.config, run.label_map, 10)
    assert str(caught.value) == (
        f"{path} was imported from tfjs_coco_ssd: no training goes on in it; start one from it with "
        f"--init_from={path} and another --run_dir"
    )


def vgg_tensors():
    """vgg16_reducedfc.pth's names and shapes, a number of its own in each."""
    depths = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512, 1024)
    layers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31)
    tensors = {}
    for number, (index, sides) in enumerate(zip(layers, itertools.pairwise(depths), strict=True)):
        before, after = sides
        tensors[f"{index}.weight"] = np.full((after, before, 3, 3), number, np.float32)
        tensors[f"{index}.bias"] = np.full(after, number + 0.5, np.float32)
    tensors["33.weight"] = np.full((1024, 1024, 1, 1), -1, np.float32)
    return tensors | {"33.bias": np.full(1024, -2, np.float32)}


def test_backbone_becomes_a_file_of_weights(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(fileio, "check_free_space", lambda *arguments: asked.append(arguments))
    save_file(vgg_tensors(), tmp_path / "vgg.safetensors")
    output = tmp_path / "new" / "vgg.weights.h5"
    argv = ("--source=vgg16_reducedfc", f"--weights={tmp_path / 'vgg.safetensors'}", f"--output={output}")
    code, out, err = call("import_weights", *argv)
    assert (code, err) == (0, "")
    assert out == (
        "vgg16_reducedfc: 30 tensors, 20,484,416 parameters; to train with them: "
        f"--set model.backbone=vgg16 --set model.weights={output}\n"
    )
    assert [entry.name for entry in output.parent.iterdir()] == ["vgg.weights.h5"]
    [(place, needed)] = asked
    assert place == output.parent and output.stat().st_size <= needed < 1.2 * output.stat().st_size
    overrides = ["model.backbone=vgg16", f"model.weights={output}", "model.num_classes=2", "model.image_size=64"]
    built = ssd_tf.build_detector(ssd_tf.load_config(None, overrides))
    layers = {layer.name: layer for layer in detector.all_layers(built)}
    for name, kernel, bias in (("block1_conv1", 0, 0.5), ("block5_conv3", 12, 12.5), ("fc7", -1, -2)):
        assert {*np.ravel(layers[name].kernel)} == {kernel} and {*np.ravel(layers[name].bias)} == {bias}


def test_list():
    code, out, err = call("import_weights", "--list", "--json")
    assert (code, err) == (0, "")
    *lines, values = out.splitlines()
    rows = json.loads(values)
    assert [row["name"] for row in rows] == list(catalogue.ENTRIES)
    heads = [line for line in lines if not line.startswith("    ")]
    assert [line.partition(" ")[0] for line in heads] == list(catalogue.ENTRIES)
    url = "https://download.pytorch.org/models/ssdlite320_mobilenet_v3_large_coco-a79551df.pth"
    (line,) = [line for line in lines if line.startswith(f"    {url}")]
    assert "sha256 a79551df" in line
    (line,) = [line for line in heads if line.startswith("slim_vgg_16 (backbone vgg16): ")]
    assert "Apache-2.0" in line
    name = "ssd_mobilenet_v1_coco_2018_01_28"
    assert (
        f"    not fetched: http://download.tensorflow.org/models/object_detection/{name}.tar.gz, "
        f"76,541,073 bytes, {name}/frozen_inference_graph.pb in it, "
        "sha256 8788f89108519fd1102b8a5c2ac861cf6d86603571b6ce5bbd1c245b7fe005e3"
    ) in lines
    labels = "    not fetched: https://storage.googleapis.com/models-hao/voc-model-labels.txt"
    assert lines.count(labels) == 3  # pytorch-ssd has three detectors


WRONG_OPTIONS = [
    ([], "--source is required"),
    (["--source=tfjs_coco_ssd"], "give either --run_dir (a detector) or --output (a backbone)"),
    (
        ["--source=x", "--run_dir=a", "--output=b"],
        "give either --run_dir (a detector) or --output (a backbone)",
    ),
    (["--source=tfjs_coco_sd", "--run_dir=a"], "unknown source 'tfjs_coco_sd' (did you mean tfjs_coco_ssd?)"),
    (
        ["--source=tfjs_coco_ssd", "--output=a.weights.h5"],
        "tfjs_coco_ssd is a detector: give --run_dir, not --output",
    ),
    (
        ["--source=slim_vgg_16", "--run_dir=a"],
        "slim_vgg_16 is a backbone: give --output=FILE.weights.h5, not --run_dir",
    ),
    (
        ["--source=slim_vgg_16", "--output=a.h5"],
        "--output: expected a name that ends in .weights.h5, got a.h5",
    ),
    (
        ["--source=slim_vgg_16", "--output=a.weights.h5", "--labels=x"],
        "--labels: slim_vgg_16 is a backbone, it has no classes",
    ),
    (
        ["--source=tfjs_coco_ssd", "--run_dir=a", "--weights=x", "--base_url=http://x"],
        "--base_url is where to download from: give it without --weights",
    ),
    (
        ["--source=tfjs_coco_ssd", "--run_dir=a", "--base_url=x"],
        "--base_url: expected http://HOST/FOLDER or https://..., got 'x'",
    ),
]


@pytest.mark.parametrize(("argv", "message"), WRONG_OPTIONS)
def test_wrong_options(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert usage_error(*argv).startswith(message)
    assert list(tmp_path.iterdir()) == []


LIGHT = """
import contextlib, dataclasses, io, json, sys
from ssd_tf.cli import runner
from ssd_tf.cli.import_weights import COMMAND
from ssd_tf.pretrained import catalogue

entry = catalogue.get_entry("amdegroot_ssd300")
catalogue.ENTRIES["nowhere"] = dataclasses.replace(entry, name="nowhere", downloads=())
found = []
for argv in json.loads(sys.argv[1]):
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = runner.run(COMMAND, argv)
    heavy = [name for name in ("tensorflow", "keras", "numpy") if name in sys.modules]
    found.append([code, err.getvalue(), heavy])
print(json.dumps(found))
"""


def test_the_list_and_usage_errors_load_nothing_heavy(tmp_path, repository):
    cases = [*WRONG_OPTIONS, (["--list"], ""), (["--list", "--json"], "")]
    cases.append((["--source=nowhere", "--run_dir=a"], "--weights is required: for nowhere no file "))
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps([argv for argv, _ in cases])],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    for (argv, message), (code, text, heavy) in zip(cases, json.loads(done.stdout), strict=True):
        assert (code, heavy) == (2 if message else 0, []), (argv, text)
        assert text.startswith(message) and text.count("\n") == bool(message)
    assert list(tmp_path.iterdir()) == []


def test_source_without_a_known_file(monkeypatch, tmp_path):
    entry = dataclasses.replace(catalogue.get_entry("amdegroot_ssd300"), downloads=())
    monkeypatch.setitem(catalogue.ENTRIES, "nowhere", entry)
    monkeypatch.chdir(tmp_path)
    assert usage_error("--source=nowhere", "--run_dir=a") == (
        "--weights is required: for amdegroot_ssd300 no file to download is known"
    )
    _, out, _ = call("import_weights", "--list")
    assert "    no file to download is known: --weights says where it lies" in out.splitlines()


@pytest.mark.parametrize(
    ("name", "columns", "expected"),
    [
        ("torchvision_ssd300_vgg16", 91, (80, 11)),
        ("torchvision_ssdlite320_mobilenet_v3_large", 91, (80, 11)),
        ("amdegroot_ssd300", 21, (20, 1)),
    ],
)
def test_columns_without_a_class_are_background_of_the_run(name, columns, expected):
    source = sources.SOURCES[name]
    config = import_weights._make_config(source, {}, classes.choose_classes(source, columns))
    assert (config.model.num_classes, config.model.background_columns) == expected
    assert config.model.weights == "none"
