"""Files made to harm: nothing that is loaded runs code, opens other files or fills the memory."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from fault_helpers import fault
from PIL import Image

from ssd_tf import config as configs
from ssd_tf import fileio, runs, weight_files
from ssd_tf.api import build
from ssd_tf.errors import DataError
from ssd_tf.structures import LabelMap
from ssd_tf.training import checkpoint, trainer
from ssd_tf.training.losses import make_losses

LIMIT = 200 << 20
OVERRIDES = ["model.backbone=tiny_ssd", "model.weights=none", "model.image_size=96", "model.num_classes=2"]
CONFIG = configs.load_config(None, [*OVERRIDES, "train.steps=5"])
REFUSED = "refused: would run code; use keras.saving with safe_mode yourself"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A run with weights and optimizer state."""
    path = tmp_path_factory.mktemp("hostile") / "run"
    model = compiled()
    run = runs.start_run(path, CONFIG, LabelMap(("blue", "red")), 8)
    checkpoint.save(run, model, 1)
    return path


def compiled():
    detector = build.build(CONFIG)
    losses = make_losses(CONFIG.loss, detector.anchors)
    trainer.compile_detector(detector.model, losses, CONFIG.train)
    detector.model.optimizer.build(detector.model.trainable_variables)
    return detector.model


@pytest.fixture
def run(folder, pristine):
    """A copy of it in the working directory; afterwards nothing may have run."""
    shutil.copytree(pristine, "run")
    yield Path("run")
    assert not Path("sprung").exists()


def seal(run):
    """Makes state.json vouch for the files as they are now, as their maker can."""
    place = run / "step-00000001"
    state = json.loads((place / "state.json").read_text())
    for name in state["files"]:
        state["files"][name] = [(place / name).stat().st_size, fileio.sha256_file(place / name)]
    (place / "state.json").write_text(json.dumps(state))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def demo(run, weights=None):
    """What ssd-demo says of a run whose weights were changed by their maker."""
    seal(run)
    Image.new("RGB", (32, 32)).save("a.png")
    before = peak()
    message = fault("demo", f"--run_dir={run}", "--input=a.png", code=3)
    assert peak() - before < LIMIT
    return message


WEIGHTS = "run/step-00000001/model.weights.h5"


def first_dataset(file):
    found = []
    file.visititems(lambda name, entry: found.append(name) if isinstance(entry, h5py.Dataset) else None)
    return found[0]


def external_link(file, name):
    file[name] = h5py.ExternalLink("secret.h5", "/x")


def soft_link(file, name):
    file[name] = h5py.SoftLink("/elsewhere")


def external_data(file, name):
    file.create_dataset(name, (2, 2), "f4", external=[("secret.bin", 0, 16)])


def virtual_data(file, name):
    layout = h5py.VirtualLayout((2, 2), "f4")
    layout[:] = h5py.VirtualSource("secret.h5", "x", (2, 2))
    file.create_virtual_dataset(name, layout)


def objects(file, name):
    file.create_dataset(name, (1,), h5py.string_dtype())


def giant(file, name):
    file.create_dataset(name, (10**6, 10**6), "f4", chunks=(1000, 1000), compression="gzip")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (external_link, "refused: {} is a link"),
        (soft_link, "refused: {} is a link"),
        (external_data, "refused: {} lies in another file"),
        (virtual_data, "refused: {} lies in another file"),
        (objects, "refused: {} holds objects, not numbers"),
        (giant, "weights do not fit: 3,814,69"),
    ],
)
def test_weights_that_reach_out_or_claim_too_much(run, make, reason):
    with h5py.File(WEIGHTS, "a") as file:
        name = first_dataset(file)
        del file[name]
        make(file, name)
    message = demo(run)
    assert message.startswith(reason.format(name.rpartition("/")[2]))
    assert message.endswith(f": {WEIGHTS}")


def test_weights_in_a_loop_of_groups(run):
    with h5py.File(WEIGHTS, "a") as file:
        group = file.create_group("loop")
        group["again"] = group
        group["top"] = file["/"]
    weight_files.check_weights_file(WEIGHTS)


def test_attributes_are_not_unpickled(run):
    with h5py.File(WEIGHTS, "a") as file:
        file.attrs["pickled"] = np.void(pickle.dumps(Trap()))
        file[first_dataset(file)].attrs["pickled"] = np.void(pickle.dumps(Trap()))
    seal(run)
    checkpoint.load_weights(runs.find_checkpoint(run), build.build(CONFIG).model)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + bytes(100), b"not a weights file"])
def test_weights_that_are_no_hdf5(run, content):
    Path(WEIGHTS).write_bytes(content)
    assert demo(run).endswith(f": {WEIGHTS}")


def zipped(content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["backbone.keras", "backbone.weights.h5", "backbone.h5", "backbone.pkl"])
@pytest.mark.parametrize("packed", [False, True])
def test_row_80_model_files_of_strangers(folder, name, packed):
    content = pickle.dumps(Trap())
    Path(name).write_bytes(zipped(content) if packed else content)
    config = configs.replace(CONFIG, model__weights=name)
    with pytest.raises(DataError) as caught:
        build.build(config)
    assert str(caught.value) == f"{REFUSED}: {name}"
    assert not Path("sprung").exists()


def test_row_80_lambda_layers(folder):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x * 2)])
    model.save("lambda.keras")
    with pytest.raises(DataError, match=r"^refused: would run code; .*: lambda\.keras$"):
        build.build(configs.replace(CONFIG, model__weights="lambda.keras"))


def test_backbone_weights_that_claim_too_much(folder):
    with h5py.File("backbone.weights.h5", "w") as file:
        giant(file, "x")
    with pytest.raises(DataError, match=r"^refused: claims to hold 3,814,697\.3 MiB: backbone\.weights\.h5$"):
        build.build(configs.replace(CONFIG, model__weights="backbone.weights.h5"))


# --- the optimizer's state ------------------------------------------------------------------------


def header(shape, descr="<f4"):
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """Replaces the first array of an .npz file by bytes."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    first = min(members)
    members[first] = change
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize(
    ("content", "compression", "reason"),
    [
        (header((10**12,)), zipfile.ZIP_STORED, r"0000\.npy is \[1000000000000\], expected \[\]"),
        (header((), "|O") + pickle.dumps(Trap()), zipfile.ZIP_STORED, "0000.npy holds objects, not numbers"),
        (header(()) + bytes(4), zipfile.ZIP_DEFLATED, "0000.npy is compressed"),
        (b"\x93NUMPY\x03\x00" + bytes(4), zipfile.ZIP_STORED, r"0000\.npy has a header of version \(3, 0\)"),
        (pickle.dumps(Trap()), zipfile.ZIP_STORED, "cannot read arrays: "),
        (header(()), zipfile.ZIP_STORED, "cannot read arrays: "),
    ],
)
def test_optimizer_states_that_harm(run, content, compression, reason):
    path = "run/step-00000001/optimizer.npz"
    rewrite(path, content, compression)
    seal(run)
    model, before = compiled(), peak()
    with pytest.raises(DataError, match=rf"^the optimizer's state does not fit: {reason}.*: {path}$"):
        checkpoint.restore(runs.find_checkpoint(run), model)
    assert peak() - before < LIMIT


def test_an_npz_that_is_a_pickle(run):
    path = Path("run/step-00000001/optimizer.npz")
    path.write_bytes(pickle.dumps(Trap()))
    seal(run)
    with pytest.raises(DataError, match=r"^the optimizer's state does not fit: cannot read arrays: "):
        checkpoint.restore(runs.find_checkpoint(run), compiled())


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        ("model", "module", "os", "unknown key model.module"),
        ("model", "backbone", "os.system", "unknown backbone 'os.system'; there are: "),
        ("model", "backbone", {"module": "os", "class_name": "system"}, "model.backbone: expected text, got {"),
        ("plugin", "file", "evil.py", "unknown key plugin"),
    ],
)
def test_no_config_names_code(run, section, key, value, reason):
    content = json.loads((run / "config.json").read_text())
    content["config"].setdefault(section, {})[key] = value
    (run / "config.json").write_text(json.dumps(content))
    Path("evil.py").write_text("import os; os.mkdir('sprung')")
    code = 2 if "backbone '" in reason else 3
    Image.new("RGB", (32, 32)).save("a.png")
    assert reason in fault("demo", "--run_dir=run", "--input=a.png", code=code)


def test_no_recipe_names_code(folder):
    Path("evil.toml").write_text('[model]\nbackbone = "evil"\nplugin = "evil.py"\n')
    message = fault("train", "--config=evil.toml", "--train=x", "--run_dir=y", code=2)
    assert message.startswith("evil.toml: unknown key model.plugin")
