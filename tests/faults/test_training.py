"""Table D of the faults: what a training says, with which exit code, and what it leaves behind."""

import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from fault_helpers import CONVERT, call, fault, succeed, visible, write_voc
from PIL import Image

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build
from ssd_tf.boxes import matcher, ops
from ssd_tf.cli import train as command
from ssd_tf.data import pipeline
from ssd_tf.models import registry
from ssd_tf.records import reader
from ssd_tf.structures import LabelMap

OBJECTS = [("red", 5, 5, 30, 20), ("blue", 20, 10, 60, 40)]
SMALL = (
    "--set=model.backbone=small",
    "--set=model.weights=none",
    "--set=model.image_size=64",
    "--set=train.batch_size=2",
    "--set=train.log_steps=1",
)
PLAIN = (
    "--set=augment.color_probability=0",
    "--set=augment.expand_probability=0",
    "--set=augment.crop_probability=0",
    "--set=augment.flip_probability=0",
)
TRAIN = (*SMALL, "--train=rec", "--run_dir=run")


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch, repository):
    """Registers the backbone "small" for one test."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    runpy.run_path(str(repository / "tests" / "training" / "small_network.py"))["register"]()


def arrays(run_dir="run"):
    """Weights and optimizer of the last checkpoint, by name."""
    found = runs.find_checkpoint(run_dir)
    values = {}
    with h5py.File(found.path / runs.WEIGHTS) as file:
        file.visititems(lambda name, item: values.update({name: item[()]} if hasattr(item, "dtype") else {}))
    with np.load(found.path / "optimizer.npz") as optimizer:
        values.update({name: optimizer[name] for name in optimizer.files})
    assert len(values) > 40
    return values


def assert_same(first, second):
    """Bit by bit."""
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name], second[name]), name


def rows(run_dir="run"):
    return [json.loads(line) for line in (Path(run_dir) / "log.jsonl").read_text().splitlines()]


# Real processes, which can be killed

PROGRAM = """
import os, runpy, signal, sys
runpy.run_path(sys.argv.pop(1))["register"]()
{before}
from ssd_tf.cli.train import main
main()
"""


def start(repository, *argv, before=""):
    """The real command in a process of its own; `before` is Python that runs in it first."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            PROGRAM.format(before=before),
            repository / "tests/training/small_network.py",
            *argv,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )


def finish(process, code=0):
    """Lines of stdout of a process that must end with `code`."""
    out, err = process.communicate()
    assert process.returncode == code, (process.returncode, out, err)
    return out.splitlines()


KILL_IN_SECOND_SAVE = """
import numpy
saved, save = [], numpy.savez
def kill_or_save(*arguments, **arrays):
    saved.append(1)
    if len(saved) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    save(*arguments, **arrays)
numpy.savez = kill_or_save
"""


def test_row_61_kill_between_the_files_of_a_checkpoint(records, repository):
    argv = (*TRAIN, "--set=train.steps=6", "--set=train.checkpoint_steps=2")
    finish(start(repository, *argv, before=KILL_IN_SECOND_SAVE), -signal.SIGKILL)
    assert visible(Path("run/step-00000004.tmp")) == [runs.WEIGHTS]
    lines = succeed("train", *argv).splitlines()
    assert "removed step-00000004.tmp, which an interrupted write left behind" in lines
    assert "going on from step 2" in lines
    killed = arrays()
    succeed("train", *argv, "--run_dir=whole")
    assert_same(killed, arrays("whole"))


def test_row_61_checkpoint_cut_at_a_random_place(records):
    argv = (*TRAIN, "--set=train.steps=4", "--set=train.checkpoint_steps=2")
    succeed("train", *argv)
    whole, rng = arrays(), np.random.default_rng(61)
    for name in ("optimizer.npz", runs.STATE, runs.WEIGHTS):
        file = Path("run/step-00000004") / name
        data = file.read_bytes()
        garbled = bytearray(data)
        garbled[len(data) // 3] ^= 128
        for damaged in (bytes(garbled), data[: int(rng.integers(len(data) - 2))]):
            file.write_bytes(damaged)
            found = runs.find_checkpoint("run")
            assert (found.path.name, found.skipped) == ("step-00000002", ("step-00000004",))
        if name != runs.WEIGHTS:  # the weights stay cut
            file.write_bytes(data)
    lines = succeed("train", *argv).splitlines()
    assert "checkpoint step-00000004 incomplete, using step-00000002" in lines
    assert "going on from step 2" in lines
    assert_same(arrays(), whole)
    for step in (2, 4):
        (Path("run") / runs.step_name(step) / runs.STATE).write_text("{")
    message = "every checkpoint is damaged (step-00000004, step-00000002): run"
    assert fault("train", *argv, code=3) == message


@pytest.fixture
def signal_at(monkeypatch):
    """A function (step, *signals): they are sent as soon as the step's line is printed."""

    def arrange(step, *numbers):
        def write_line(text):
            print(text)
            if f" step {step}/" in text:
                for number in numbers:
                    os.kill(os.getpid(), number)

        monkeypatch.setattr(command, "_write_line", write_line)

    return arrange


NOTICE = "stopping after this step; once more to stop at once"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_row_62_signal(records, signal_at, number, code):
    signal_at(2, number)
    argv = (*TRAIN, "--set=train.steps=3")
    got, out, err = call("train", *argv)
    assert (got, err) == (code, [NOTICE, "saved step 2; run the same command to continue"])
    assert " step 2/3" in out and " step 3/3" not in out
    assert runs.find_checkpoint("run").state["step"] == 2


@pytest.mark.parametrize(
    ("numbers", "code", "words"),
    [
        ((signal.SIGTERM, signal.SIGTERM), 143, "stopped"),
        ((signal.SIGTERM, signal.SIGINT), 130, "interrupted"),
    ],
)
def test_row_62_second_signal_acts_at_once(records, signal_at, numbers, code, words):
    """Also where SIGINT was ignored before, as it is in a script's background."""
    signal_at(1, *numbers)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        got, _, err = call("train", *TRAIN, "--set=train.steps=3")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (got, err) == (code, [NOTICE, words])
    assert runs.find_checkpoint("run") is None


def register_white_blind():
    """A network whose outputs are NaN for a white image alone."""

    @registry.register_backbone("white_blind", taps=("first", "second"), preprocessing="tf", extras=())
    def white_blind(image_shape, weights):
        image = keras.Input(image_shape)
        x = WhiteBlind()(image)
        x = keras.layers.Conv2D(4, 3, 16, "same", name="first")(x)
        return keras.Model(image, keras.layers.Conv2D(4, 3, 2, "same", name="second")(x))


class WhiteBlind(keras.layers.Layer):
    """Adds the logarithm of the mean distance from white: minus infinity for a white image."""

    def call(self, pixels):
        return pixels + keras.ops.log(1 - keras.ops.mean(pixels, axis=(1, 2, 3), keepdims=True))


def test_row_63_loss_that_is_not_finite(voc):
    Image.new("RGB", (64, 48), "white").save("voc/JPEGImages/000002.jpg")
    succeed("convert", *CONVERT)
    register_white_blind()
    argv = (*TRAIN, *PLAIN, "--set=model.backbone=white_blind", "--set=train.steps=40", "--set=train.seed=3")
    argv += ("--set=train.log_steps=20", "--set=train.checkpoint_steps=1", "--set=train.warmup=0.5")
    argv += ("--set=train.learning_rate=0.001",)
    message = fault("train", *argv, code=4)
    found = re.fullmatch(
        r"step 2: the loss is nan \(class_loss nan, box_loss nan, weight decay nan\), learning rate 0\.000367, "
        r"images (\d{6}), (\d{6}): try a lower train\.learning_rate; step-00000001 is kept",
        message,
    )
    assert found, message
    assert "000002" in found.groups() and found[1] != found[2]
    assert runs.find_checkpoint("run").state["step"] == 1
    assert all(np.isfinite(values).all() for values in arrays().values())


def test_row_63_weights_that_are_not_finite(records):
    argv = ("--set=train.learning_rate=100", "--set=train.clip_norm=0", "--set=train.warmup=0")
    argv = (*TRAIN, *argv, "--set=train.steps=200", "--set=train.checkpoint_steps=1")
    message = fault("train", *argv, code=4)
    found = re.fullmatch(
        r"step (\d+): \S+ is not finite, learning rate [\d.]+, images (\d{6}), (\d{6}): "
        r"try a lower train\.learning_rate; (step-\d{8}) is kept",
        message,
    )
    assert found, message
    assert found[4] == runs.step_name(int(found[1]) - 1) == runs.find_checkpoint("run").path.name
    assert all(np.isfinite(values).all() for values in arrays().values())


def test_row_64_batch_without_objects(folder):
    write_voc(folder / "voc", {"a": OBJECTS, "b": [], "c": OBJECTS})
    succeed("convert", *CONVERT)
    succeed("train", *TRAIN, "--set=train.batch_size=1", "--set=train.steps=6")
    run, records = runs.open_run("run"), reader.open_records("rec")
    ids = [pipeline.read_batch_ids(records, run.config, step) for step in range(1, 7)]
    empty = [step for step, batch in enumerate(ids, 1) if batch == ["b"]]
    assert len(empty) == 2  # two epochs of three images
    for row in rows():
        assert np.isfinite(row["loss"])
        assert (row["box_loss"] == 0) == (row["step"] in empty)
        assert (row["class_loss"] == 0) == (row["step"] in empty)
    assert all(np.isfinite(values).all() for values in arrays().values())
    # Where such images have six negatives mined, these weigh as the two positives that go with six do.
    for positives, images, min_negatives, weight in ((0, 4, 0, 4), (0, 4, 6, 0.5), (16, 4, 6, 0.25)):
        assert float(matcher.batch_weight(np.float32(positives), images, min_negatives)) == weight


def anchors_of_small():
    overrides = [text.removeprefix("--set=") for text in SMALL]
    return build.build(configs.load_config(None, [*overrides, "model.num_classes=2"])).anchors


def test_row_65_boxes_that_no_anchor_fits(folder):
    anchors = anchors_of_small()
    inside = anchors[((anchors >= 0) & (anchors <= 1)).all(axis=1)]
    corners = np.round(inside[len(inside) // 2] * 64).astype(int)  # yxyx; VOC counts from 1, both ends inclusive
    good = ("red", corners[1] + 1, corners[0] + 1, corners[3], corners[2])
    write_voc(folder / "voc", {"a": [good, ("blue", 10, 10, 11, 11)], "b": [("blue", 1, 1, 64, 2)]})
    for stem in "ab":
        Image.new("RGB", (64, 64)).save(f"voc/JPEGImages/{stem}.jpg")
        file = Path(f"voc/Annotations/{stem}.xml")
        file.write_text(file.read_text().replace("<height>48<", "<height>64<"))
    succeed("convert", *CONVERT)
    truth = np.array([[*corners], [9, 9, 11, 11], [0, 0, 2, 64]]) / 64
    best = ops.iou(np.float32(truth), anchors).max(axis=1)
    assert best[0] > 0.5 and best[1] < 0.3 and best[2] < 0.3
    lines = succeed("train", *TRAIN, "--set=train.steps=1", "--check_anchors").splitlines()
    at = lines.index(next(line for line in lines if line.startswith("anchors: ")))
    assert lines[at : at + 3] == [
        "anchors: the best IoU is below 0.5 for 66.7% and below 0.3 for 66.7% of 3 boxes; "
        "those below 0.5 are matched by force alone",
        "  blue: below 0.5 for 100.0% and below 0.3 for 100.0% of 2 boxes",
        "  red: below 0.5 for 0.0% and below 0.3 for 0.0% of 1 boxes",
    ]
    config = runs.open_run("run").config
    batches = pipeline.validation_batches(reader.open_records("rec"), anchors, config)
    _, targets, _ = next(iter(batches))
    matched = set(targets["class_logits"].numpy()[1]) - {0}
    assert matched == {1}  # the thin box has an anchor all the same


def test_row_66_set_smaller_than_the_batch(records):
    lines = succeed("train", *TRAIN, "--set=train.batch_size=16", "--set=train.steps=1").splitlines()
    assert "12 examples repeat inside a batch of 16 (train.batch_size)" in lines
    assert lines[-1] == "step 1; the run is in run"
    assert not any(line.startswith("anchors: ") for line in lines)  # only where --check_anchors asks


def test_row_67_resume_with_another_config(records):
    recipe = ("--train=rec", "--run_dir=run", "--set=train.steps=5", "--set=model.image_size=64")
    config = configs.load_config(configs.DEFAULT_RECIPE, [text[6:] for text in recipe[2:]])
    config = configs.replace(config, model__num_classes=2, model__backbone="vgg16")
    run = runs.start_run("run", config, LabelMap(("blue", "red")), 4)
    runs.save_checkpoint(run.path, 1, lambda place: (place / "x").write_bytes(b""), {}, 2)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for change, message in (
        ("model.backbone=resnet50", "model.backbone vgg16 → resnet50"),
        ("model.image_size=96", "model.image_size (64, 64) → (96, 96)"),
        ("train.seed=7", "train.seed 0 → 7"),
    ):
        overrides = ("--set=model.backbone=vgg16", f"--set={change}")
        line = fault("train", *recipe, *overrides, code=2)
        assert line.startswith(f"cannot resume: {message} (start a new run_dir")
    assert {path: path.read_bytes() for path in before if path.name != ".lock"} == {
        path: data for path, data in before.items() if path.name != ".lock"
    }


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Downloads go through a proxy at a port where nobody listens, and no earlier one is at hand."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path / "keras"))


def test_row_69_weights_that_cannot_be_fetched(records, offline):
    argv = (*TRAIN, "--set=model.backbone=mobilenet_v2", "--set=model.weights=imagenet", "--set=train.steps=1")
    line = fault("train", *argv, "--set=model.image_size=96", code=5)
    assert line.startswith("ImageNet weights not reachable (")
    assert re.search(r"\): https://\S+\.h5: download it elsewhere and set model\.weights=/path/\S+\.h5, or ", line)
    assert line.endswith("model.weights=none")
    assert runs.find_checkpoint("run") is None


class TooLarge(keras.layers.Layer):
    """Asks for more memory than an address can name."""

    def call(self, x):
        return x + keras.ops.mean(keras.ops.tile(x[:, :1, :1, :1], [1, 2**22, 2**22, 8]))


def test_row_70_out_of_memory(records):
    @registry.register_backbone("large", taps=("first", "second"), extras=())
    def large(image_shape, weights):
        image = keras.Input(image_shape)
        x = TooLarge()(keras.layers.Conv2D(4, 3, 16, "same", name="first")(image))
        return keras.Model(image, keras.layers.Conv2D(4, 3, 2, "same", name="second")(x))

    argv = (*TRAIN, "--set=model.backbone=large", "--set=train.steps=2")
    hint = "out of memory: lower train.batch_size (2) or model.image_size (64x64)"
    assert fault("train", *argv, code=5) == f"{hint}, or set train.precision=mixed_bfloat16"
    assert runs.find_checkpoint("run") is None


WITHOUT_TENSORFLOW = """
import contextlib, io, json, sys
from ssd_tf.cli import runner
from ssd_tf.cli.train import COMMAND
found = []
for argv in json.loads(sys.argv[1]):
    text = io.StringIO()
    with contextlib.redirect_stderr(text):
        code = runner.run(COMMAND, argv)
    found.append([code, text.getvalue(), [name for name in ("tensorflow", "keras") if name in sys.modules]])
print(json.dumps(found))
"""


def test_row_71_mistyped_key_or_option(folder, repository):
    Path("text.toml").write_text('[train]\njit_compile = "True"\n')
    cases = {
        "--set=train.batchsize=8": "unknown key train.batchsize (did you mean train.batch_size?)",
        "--set=train.jit_compile=yes": "train.jit_compile: expected true or false, got 'yes'",
        "--set=train.jit_compile=1": "train.jit_compile: expected true or false, got '1'",
        "--config=text.toml": "text.toml: train.jit_compile: expected true or false, got 'True'",
        "--set=train.steps=True": "train.steps: expected integer, got 'True'",
        "--trian=rec": "Unknown command line flag 'trian'. Did you mean: train ? "
        "(ssd-train --help lists the flags)",
        "--deterministic=yes": None,
    }
    argvs = [["--train=rec", "--run_dir=run", argument] for argument in cases]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORFLOW, json.dumps(argvs)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    for (argument, message), (code, text, heavy) in zip(cases.items(), json.loads(done.stdout), strict=True):
        assert (code, text.count("\n"), heavy) == (2, 1, []), (argument, text)
        assert message is None or text == f"{message}\n"
    for text, value in (("True", True), ("False", False), ("true", True), ("false", False)):
        assert configs.load_config(None, [f"train.jit_compile={text}"]).train.jit_compile is value


def test_row_72_run_directory_that_cannot_be_written(records, monkeypatch):
    argv = (*SMALL, "--train=rec", "--set=train.steps=1")
    Path("file").write_text("precious")
    assert fault("train", *argv, "--run_dir=file", code=5) == "a file stands where a directory is wanted: file"
    message = "a part of the path is a file, not a directory: file/run"
    assert fault("train", *argv, "--run_dir=file/run", code=5) == message

    def refuse(path, *arguments, **options):
        if Path(path).name == ".lock":
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *arguments, **options)

    monkeypatch.setattr(fileio, "open", refuse, raising=False)
    monkeypatch.setattr(build, "build", lambda *_, **__: pytest.fail("refused too late"))
    assert fault("train", *argv, "--run_dir=locked", code=5) == "permission denied: locked/.lock"
    assert visible(Path("locked")) == []


HOLD = """
from ssd_tf import fileio
with fileio.directory_lock(sys.argv[1]):
    print(flush=True)
    sys.stdin.read()
sys.exit()
"""


def test_row_72_two_trainings_in_one_run_directory(records, repository, monkeypatch):
    Path("run").mkdir()
    monkeypatch.setattr(build, "build", lambda *_, **__: pytest.fail("refused too late"))
    with start(repository, "run", before=HOLD) as other:
        assert other.stdout.readline() == "\n"
        line = fault("train", *TRAIN, "--set=train.steps=1", code=5)
        assert line.startswith(f"run is in use by pid {other.pid} on ")
        other.stdin.close()
    assert visible(Path("run")) == []


@pytest.fixture
def shards(folder):
    """Two sets of drawn images, a shard each, as --train takes them."""
    for seed in (1, 2):
        drawn = f"shapes{seed}"
        argv = (f"--output={drawn}", "--num_images=7", "--image_size=80", f"--seed={seed}")
        assert call("synthesize", *argv)[0] == 0
        source = (f"--input={drawn}/annotations.json", f"--images={drawn}/images")
        assert call("convert", "--format=coco", *source, f"--output=rec{seed}")[0] == 0
    return "rec1,rec2"


DETERMINISTIC = ("--deterministic", "--set=train.steps=20", "--set=train.checkpoint_steps=4")
TWICE = """
from ssd_tf.cli import runner, train
for name in ("one", "two"):
    assert runner.run(train.COMMAND, [*sys.argv[1:], f"--run_dir={name}"]) == 0
from tensorflow.python.framework import config
sys.exit(not config.is_op_determinism_enabled())
"""


def kill_at(process, step):
    """Kills a process as soon as it tells a step."""
    lines = []
    while not any(f" step {step}/" in line for line in lines[-1:]):
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.communicate()


def test_row_74_determinism(shards, repository):
    argv = (*SMALL, *DETERMINISTIC, "--set=train.freeze_batch_norm=false", f"--train={shards}")
    finish(start(repository, *argv, before=TWICE))
    assert_same(arrays("one"), arrays("two"))
    rng = np.random.default_rng(74)
    first, second = sorted(int(step) for step in rng.choice(np.arange(5, 20), 2, replace=False))
    for step in (first, second):
        kill_at(start(repository, *argv, "--run_dir=killed"), step)
        assert runs.find_checkpoint("killed").state["step"] >= (step - 1) // 4 * 4
    lines = finish(start(repository, *argv, "--run_dir=killed"))
    assert lines[-1] == "step 20; the run is in killed"
    assert_same(arrays("killed"), arrays("one"))
    assert runs.find_checkpoint("killed").state["deterministic"] is True
    assert [row["step"] for row in rows("killed")] == list(range(1, 21))
    loss = [[row["loss"] for row in rows(name)] for name in ("killed", "one")]
    assert loss[0] == loss[1] and len(set(loss[0])) == 20
    out = succeed("train", *argv, "--set=train.steps=21", "--nodeterministic", "--run_dir=killed").splitlines()
    assert "so far this run was trained with --deterministic, from here on without --deterministic" in out
    assert runs.find_checkpoint("killed").state["deterministic"] is False
