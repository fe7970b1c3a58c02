"""Files that ssd-import cannot take: exit code, one line, and no run directory that was not there before."""

import json
import shutil
import zlib

import numpy as np
import pytest
from fault_helpers import call, fault, visible
from safetensors.numpy import save_file

from ssd_tf import fileio, runs

TFJS = ("--source=tfjs_coco_ssd", "--weights=coco")
MOBILE = ("--source=qfgaohao_mb2_ssd_lite", "--weights=net.safetensors")


@pytest.fixture(autouse=True)
def nothing_is_left(folder):
    """Whatever a test does, no run directory and no half of one comes of it."""
    yield
    assert not (folder / "runs").exists()
    assert [entry.name for entry in folder.iterdir() if ".tmp-" in entry.name] == []


@pytest.fixture
def coco(weights, folder):
    """A copy of the tfjs detector that a test may damage."""
    path = folder / "coco"
    path.mkdir()
    for name in ("model.json", *(f"group1-shard{number}of5" for number in range(1, 6))):
        shutil.copyfile(weights / "coco_ssdlite_mobilenet_v2" / name, path / name)
    return path


@pytest.fixture(scope="module")
def tensors(golden):
    """Those of a qfgaohao_mb2_ssd_lite with 20 classes."""
    shapes = json.loads((golden / "qfgaohao_mb2-ssd-lite_state_dict_shapes.json").read_text())
    return {
        key: np.random.default_rng(zlib.crc32(key.encode())).random(shape, np.float32)
        for key, shape in shapes.items()
    }


def refused(*argv, code=3):
    return fault("import_weights", *argv, "--run_dir=runs/a/b", code=code)


@pytest.mark.parametrize("shard", [1, 3, 5])
def test_folder_lacks_a_shard(coco, shard):
    (coco / f"group1-shard{shard}of5").unlink()
    line = refused(*TFJS)
    assert f"group1-shard{shard}of5" in line and line.endswith(": coco")


@pytest.mark.parametrize("name", ["model.json", "group1-shard1of5", "group1-shard5of5"])
@pytest.mark.parametrize("size", [0, 100_000])
def test_truncated_file_of_a_folder(coco, name, size):
    with open(coco / name, "r+b") as file:
        file.truncate(size)
    line = refused(*TFJS)
    assert name in line and "coco" in line


def test_folder_of_nothing(folder):
    (folder / "coco").mkdir()
    assert "model.json" in refused(*TFJS)


@pytest.mark.parametrize("source", ["tfjs_coco_ssd", "tf_od_ssd_mobilenet", "amdegroot_ssd300"])
@pytest.mark.parametrize("name", ["absent.pth", "absent/model.ckpt", "x" * 300])
def test_no_such_file(source, name):
    assert refused(f"--source={source}", f"--weights={name}") == f"no such file or folder: {name}"


def test_no_such_file_of_a_backbone(folder):
    argv = ("--source=slim_vgg_16", "--weights=vgg_16.ckpt", "--output=new/a.weights.h5")
    assert fault("import_weights", *argv, code=3) == "no such file or folder: vgg_16.ckpt"
    (folder / "vgg_16.ckpt.index").touch()
    told = "not a TensorFlow checkpoint, or cut: vgg_16.ckpt.index: vgg_16.ckpt"
    assert fault("import_weights", *argv, code=3) == told


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("torchvision_ssd300_vgg16", "ultralight_face/version-slim-320.pth"),
        ("amdegroot_ssd300", "ultralight_face/version-slim-320.pth"),
        ("qfgaohao_mb1_ssd", "ultralight_face/version-slim-320.pth"),
        ("qfgaohao_vgg16_ssd", "coco_ssdlite_mobilenet_v2"),
        ("torchvision_ssdlite320_mobilenet_v3_large", "coco_ssdlite_mobilenet_v2/model.json"),
        ("amdegroot_ssd300", "imagenet/mobilenet_v1_1001.weights.h5"),
        ("tfjs_coco_ssd", "ultralight_face/version-slim-320.pth"),
        ("tfjs_coco_ssd", "tf1_ssdlite_pedestrian/frozen_inference_graph.pb"),
        ("tf_od_ssd_mobilenet", "ultralight_face/version-slim-320.pth"),
        ("tf_od_ssd_mobilenet", "imagenet/mobilenet_v1_1001.weights.h5"),
        ("tf_od_ssd_mobilenet", "coco_ssdlite_mobilenet_v2/model.json"),
    ],
)
def test_file_of_something_else(weights, source, name):
    line = refused(f"--source={source}", f"--weights={weights / name}")
    assert line.endswith(f": {weights / name}") and len(line) < 600
    if source.startswith("tfjs"):
        assert line == f"not a TensorFlow.js model.json: {weights / name}"


@pytest.mark.parametrize("source", ["vgg16_reducedfc", "slim_vgg_16", "slim_resnet_v1_50"])
def test_file_of_another_backbone(weights, folder, source):
    path = weights / "ultralight_face" / "version-slim-320.pth"
    line = fault("import_weights", f"--source={source}", f"--weights={path}", "--output=new/a.weights.h5", code=3)
    assert line.endswith(f": {path}")
    if source.startswith("slim"):
        assert line == f"not a TensorFlow checkpoint, or cut: {path}"
    assert visible(folder / "new") == []


def test_output_that_is_the_input(folder):
    (folder / "a.weights.h5").write_bytes(b"mine")
    argv = ("--source=vgg16_reducedfc", "--weights=a.weights.h5", "--output=a.weights.h5")
    assert fault("import_weights", *argv, code=2) == "the output would overwrite an input: a.weights.h5"
    assert (folder / "a.weights.h5").read_bytes() == b"mine"


@pytest.mark.parametrize("keep", [0, 8, 1000, 1_000_000])
def test_truncated_pth(weights, folder, keep):
    content = (weights / "ultralight_face" / "version-slim-320.pth").read_bytes()
    (folder / "cut.pth").write_bytes(content[:keep])
    assert refused("--source=qfgaohao_mb1_ssd", "--weights=cut.pth").endswith(": cut.pth")


def changed(tensors, **changes):
    return {name: value for name, value in {**tensors, **changes}.items() if value is not None}


NORM = "base_net.5.conv.1.weight"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({NORM: None}, f"{NORM} is missing"),
        ({"other": np.zeros([2, 3], np.float32)}, "other is not part of the network"),
        ({NORM: np.zeros([7], np.float32)}, f"{NORM} is 7 in the file, expected 192"),
        ({NORM: np.full([192], np.nan, np.float32)}, f"{NORM} is not finite"),
    ],
    ids=["missing", "extra", "shape", "nan"],
)
def test_tensors_that_do_not_fit(tensors, folder, changes, line):
    save_file(changed(tensors, **changes), folder / "net.safetensors")
    assert refused(*MOBILE) == f"weights do not fit: {line}: net.safetensors"


def test_the_first_of_many_are_named(tensors, folder):
    names = [f"extras.{number}.conv.1.weight" for number in range(4)]
    save_file(changed(tensors, **dict.fromkeys(names)), folder / "net.safetensors")
    first = "; ".join(f"{name} is missing" for name in names[:3])
    assert refused(*MOBILE) == f"weights do not fit: {first}; and 1 more: net.safetensors"


def with_classes(tensors, num_classes):
    """The same network with fewer classes."""
    columns = (num_classes + 1) * 6
    heads = [name for name in tensors if name.startswith("classification_headers.")]
    few = {name: tensors[name][:columns] for name in heads if len(tensors[name]) == 126}
    return {**tensors, **few}


def test_another_number_of_classes(tensors, folder):
    save_file(with_classes(tensors, 3), folder / "net.safetensors")
    assert refused(*MOBILE) == (
        "the file has 3 classes: name them with --labels=FILE, one name a line: net.safetensors"
    )
    (folder / "labels.txt").write_text("BACKGROUND\ncat\ndog\n")
    assert refused(*MOBILE, "--labels=labels.txt") == "--labels names 2 classes, the file has 3: net.safetensors"
    (folder / "labels.txt").write_text("cat\ndog\ncat\n")
    assert refused(*MOBILE, "--labels=labels.txt") == "labels.txt:3: 'cat' stands in line 1 already"
    assert refused(*MOBILE, "--labels=absent.txt") == "no such file: absent.txt"


def test_disk_without_room(tensors, folder, monkeypatch):
    """Told before HDF5 meets the end of the disk, which would crash the process."""
    save_file(tensors, folder / "net.safetensors")
    size = sum(array.nbytes for array in tensors.values())
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(fileio.shutil, "disk_usage", lambda _: usage._replace(free=size))
    assert refused(*MOBILE, code=5) == "No space left: needs about 0.0 GiB, 0.0 free: runs/a/b"


def test_labels_make_it_fit_and_no_training_goes_on_in_it(tensors, folder, records, monkeypatch):
    asked = []
    monkeypatch.setattr(fileio, "check_free_space", lambda *arguments: asked.append(arguments))
    save_file(with_classes(tensors, 3), folder / "net.safetensors")
    (folder / "labels.txt").write_text("BACKGROUND\ncat\ndog\nowl\n")
    code, _, err = call("import_weights", *MOBILE, "--labels=labels.txt", "--run_dir=made")
    assert (code, err) == (0, [])
    run = runs.open_run(folder / "made")
    assert run.label_map.names == ("cat", "dog", "owl") and run.config.model.num_classes == 3
    [(place, needed)] = asked
    size = (folder / "made" / "step-00000000" / runs.WEIGHTS).stat().st_size
    assert place.samefile("made") and size <= needed < 1.2 * size
    before = visible(folder / "made")
    line = fault("train", f"--train={records}", "--run_dir=made", "--set", "train.steps=1", code=2)
    assert line == (
        "made was imported from qfgaohao_mb2_ssd_lite: no training goes on in it; start one from it with "
        "--init_from=made and another --run_dir"
    )
    assert visible(folder / "made") == before


def test_directory_that_holds_something(folder):
    (folder / "full").mkdir()
    (folder / "full" / "notes.txt").write_text("mine")
    argv = ("--source=tfjs_coco_ssd", "--weights=absent", "--run_dir=full")
    assert fault("import_weights", *argv, code=2) == "full is not empty; choose another --run_dir"
    assert visible(folder / "full") == ["notes.txt"]


def test_empty_directory_stays(folder):
    (folder / "empty").mkdir()
    fault("import_weights", "--source=tfjs_coco_ssd", "--weights=absent", "--run_dir=empty", code=3)
    assert list((folder / "empty").iterdir()) == []


def test_file_in_the_way(folder):
    (folder / "file").write_text("mine")
    argv = ("--source=tfjs_coco_ssd", "--weights=absent")
    line = fault("import_weights", *argv, "--run_dir=file", code=5)
    assert line == "a file stands where a directory is wanted: file"
    assert fault("import_weights", *argv, "--run_dir=file/run", code=5).endswith(": file/run")
    assert (folder / "file").read_text() == "mine"
