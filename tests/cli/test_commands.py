"""The commands as typed: help, versions, usage errors, and one whole small path from nothing to a picture."""

import contextlib
import importlib
import io
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags
from PIL import Image

import ssd_tf
from ssd_tf import runs
from ssd_tf.api import convert
from ssd_tf.cli import runner

FLAGS = {
    "convert": {
        *("format", "input", "split", "images", "output", "classes", "label_map", "overwrite", "on_error"),
        *("max_skipped", "exif", "max_pixels", "workers", "verify", "val_fraction", "seed", "check_overlap"),
        *("resume", "force", "fix_boxes", "bbox_format", "allow_gaps", "require_pairs"),
    },
    "train": {
        *("config", "train", "val", "run_dir", "set", "list_recipes", "deterministic", "check_anchors"),
        *("skip_corrupt_records", "list_backbones", "plugin"),
    },
    "test": {"run_dir", "detections", "data", "metric", "checkpoint", "results", "batch_size", "plugin", "set"},
    "demo": {"run_dir", "input", "output", "checkpoint", "score_threshold", "plugin", "set"},
    "synthesize": {
        *("output", "num_images", "image_size", "classes", "seed", "overwrite", "objects", "backgrounds"),
        *("scale", "num_objects", "max_tilt", "mirror"),
    },
    "import_weights": {"source", "weights", "run_dir", "output", "labels", "base_url", "list"},
}
NAMES = {
    "convert": "ssd_image_to_tf",
    "train": "ssd-train",
    "test": "ssd-test",
    "demo": "ssd-demo",
    "synthesize": "ssd-synthesize",
    "import_weights": "ssd-import",
}
COMMANDS = sorted(FLAGS)


def command_of(module):
    return importlib.import_module(f"ssd_tf.cli.{module}").COMMAND


def call(module, *argv):
    """Runs a command; returns its exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = runner.run(command_of(module), [str(part) for part in argv])
    return code, out.getvalue(), err.getvalue()


def usage_error(module, *argv):
    """The one line of a usage error."""
    code, out, err = call(module, *argv)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1 and err.endswith("\n")
    return err[:-1]


def result_of(module, *argv):
    """The JSON object in the last line of a command that succeeds."""
    code, out, err = call(module, *argv, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("argument", ["--help", "-h", "-help"])
def test_help_lists_every_flag(module, argument, capsys):
    assert runner.run(command_of(module), [argument]) == 0
    captured = capsys.readouterr()
    listed = [line.split(":")[0].strip() for line in captured.out.splitlines() if line.startswith("  --")]
    assert set(listed) >= {f"--{name}" for name in FLAGS[module] | {"json", "version", "help"}}
    defined = flags.FlagValues()
    command_of(module).define(defined)
    assert set(listed) == {f"--{name}" for name in [*defined, "json", "version", "help"]}
    assert captured.out.startswith(f"{NAMES[module]} --")
    assert captured.err == ""


def test_help_shows_defaults():
    _, out, _ = call("convert", "--help")
    assert "  --max_pixels: Larger images are refused; M for millions. (default: '64M')" in out
    _, out, _ = call("train", "--help")
    assert "(default: 'ssdlite300_mobilenet_v2')" in out


@pytest.mark.parametrize("module", COMMANDS)
def test_version(module, repository):
    version = (repository / "ssd_tf" / "VERSION").read_text().strip()
    assert call(module, "--version") == (0, f"{version}\n", "")


@pytest.mark.parametrize(
    ("module", "flag", "near"),
    [
        ("convert", "--inptu=x", "input"),
        ("train", "--run_dri=x", "run_dir"),
        ("test", "--metrc=x", "metric"),
        ("demo", "--score_treshold=0.5", "score_threshold"),
        ("synthesize", "--num_image=5", "num_images"),
        ("import_weights", "--soruce=x", "source"),
    ],
)
def test_mistyped_flag(module, flag, near):
    message = usage_error(module, flag)
    wrong = flag[2:].partition("=")[0]
    assert message.startswith(f"Unknown command line flag '{wrong}'. Did you mean: {near} ?")
    assert message.endswith(f"({NAMES[module]} --help lists the flags)")


@pytest.mark.parametrize("module", COMMANDS)
def test_positional_argument(module):
    assert usage_error(module, "street.jpg") == (
        f"unexpected argument 'street.jpg': values are given as --flag=value ({NAMES[module]} --help)"
    )


@pytest.mark.parametrize(
    ("module", "argv", "message"),
    [
        ("convert", [], "--format is required"),
        ("convert", ["--format=voc"], "--input is required"),
        ("convert", ["--format=voc", "--input="], "--input is required"),
        ("train", [], "--train is required"),
        ("train", ["--train=x"], "--run_dir is required"),
        ("test", [], "--data is required"),
        ("test", ["--data=x"], "give either --run_dir or --detections"),
        ("test", ["--data=x", "--run_dir=a", "--detections=b"], "give either --run_dir or --detections"),
        ("demo", [], "--run_dir is required"),
        ("demo", ["--run_dir=x"], "--input is required"),
        ("synthesize", [], "--output is required"),
    ],
)
def test_missing_flag(module, argv, message):
    assert usage_error(module, *argv) == message


@pytest.mark.parametrize(
    ("module", "argv", "message"),
    [
        (
            "convert",
            ["--format=vco", "--input=x"],
            "--format: 'vco' is none of voc, coco (did you mean voc?)",
        ),
        ("convert", ["--on_error=ignore"], "--on_error: 'ignore' is none of fail, skip"),
        ("convert", ["--exif=no"], "--exif: 'no' is none of apply, ignore, error"),
        *(
            (
                "convert",
                [f"--max_skipped={text}"],
                f"--max_skipped: expected a number or a percentage such as 1%, got {text!r}",
            )
            for text in ("many", "-1", "101%", "0.5", "nan", "")
        ),
        *(
            (
                "convert",
                [f"--max_pixels={text}"],
                f"--max_pixels: expected 1 to 178M, got {text!r}",
            )
            for text in ("big", "0", "-3M", "nan", "inf")
        ),
        ("test", ["--data=x", "--run_dir=x", "--metric=map"], "--metric: 'map' is none of voc07, voc, coco"),
        ("synthesize", ["--output=never", "--classes=circel"], "unknown class 'circel' (did you mean circle?)"),
        ("synthesize", ["--output=never", "--num_images=0"], "num_images: 0 is outside 1.."),
        ("synthesize", ["--output=never", "--image_size=8"], "image_size: 8 is outside 64..4096"),
    ],
)
def test_wrong_value(module, argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--format=voc", "--input=x", *argv] if module == "convert" else argv
    assert usage_error(module, *argv).startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.freeze=spine"], "train.freeze: 'spine' is none of backbone, neck, extras, heads"),
        (["train.warmup=1"], "train.warmup=1 leaves no step to train.schedule=cosine"),
        (
            ["train.schedule=multistep", "train.milestones=0.1,0.5"],
            "train.milestones: 0.1 is not after the warm-up, train.warmup=0.16",
        ),
        (
            ["train.schedule=exponential"],
            "train.schedule=exponential needs train.final_rate above 0, which it ends at (for example 0.01)",
        ),
        (
            ["train.freeze=backbone", "train.freeze_batch_norm=false"],
            "train.freeze_batch_norm=false: train.freeze holds backbone, and its batch norms with it",
        ),
        (
            ["train.freeze=backbone,neck,extras,heads"],
            "train.freeze holds every group of layers: nothing would learn",
        ),
        (["train.steps=9", "train.hours=1"], "train.steps and train.hours exclude each other"),
    ],
)
def test_settings_that_contradict_each_other(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--train=records", "--run_dir=run", *(f"--set={text}" for text in settings)]
    assert usage_error("train", *argv) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "flag", "value"),
    [
        ("synthesize", "num_images", "many"),
        ("demo", "score_threshold", "1.5"),
        ("test", "batch_size", "0"),
        ("synthesize", "seed", "-1"),
        ("convert", "overwrite", "maybe"),
    ],
)
def test_value_of_a_wrong_type(module, flag, value):
    message = usage_error(module, f"--{flag}={value}")
    assert f"--{flag}={value}" in message and message.endswith("--help lists the flags)")


def test_flag_without_its_value():
    assert usage_error("train", "--run_dir").startswith("Missing value for flag --run_dir")


TRAIN = ("--train=nothing", "--run_dir=nowhere")


def test_settings_are_checked_before_anything_is_touched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ", ".join(ssd_tf.config.list_recipes())
    assert usage_error("train", *TRAIN, "--config=quickstrat") == (
        f"unknown recipe 'quickstrat' (did you mean quickstart?); there are: {names}"
    )
    assert usage_error("train", *TRAIN, "--config=mine.toml") == "no such file: mine.toml"
    assert usage_error("train", *TRAIN, "--set", "train.batchsize=8") == (
        "unknown key train.batchsize (did you mean train.batch_size?)"
    )
    assert usage_error("train", *TRAIN, "--set=train.batch_size=0") == ("train.batch_size: 0 is outside 1..100000")
    assert usage_error("train", *TRAIN, "--set=train.steps=5", "--set=train.epochs=5") == (
        "train.steps and train.epochs exclude each other"
    )
    assert list(tmp_path.iterdir()) == []


def test_list_recipes():
    code, out, err = call("train", "--list_recipes")
    assert (code, err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(rows) == ssd_tf.config.list_recipes()
    assert rows["quickstart"] == (
        "TinySSD at 192 px from random weights, for the drawn shapes of scripts/quickstart.sh"
    )
    assert rows["ssd300_vgg16_voc"] == "SSD300 on VGG16, trained as caffe's SSD300 was"
    assert all(20 < len(text) <= 90 and text[0].isupper() for text in rows.values())
    assert len({len(line) - len(text) for line, text in zip(out.splitlines(), rows.values())}) == 1  # a column


def test_commands_do_not_share_flags():
    assert call("train", "--list_recipes")[0] == 0
    assert call("demo", "--list_recipes")[0] == 2
    assert call("train")[0] == 2  # the flag of the call before is forgotten


SMALL = (
    *("--config=ssdlite300_mobilenet_v2", "--set=model.backbone=tiny_ssd", "--set=model.weights=none"),
    *("--set=model.image_size=96", "--set=train.batch_size=4", "--set=train.steps=4"),
    *("--set=train.freeze_batch_norm=false", "--set=train.learning_rate=0.001", "--set=train.log_steps=2"),
    *("--set=train.checkpoint_steps=2", "--set=train.validation_steps=4"),
)


@pytest.fixture(scope="session")
def path(tmp_path_factory):
    """The whole path: pictures, records, a run, detections and drawings; and what each command said."""
    root = tmp_path_factory.mktemp("path")
    shapes, records, run = root / "shapes", root / "records", root / "run"
    drawn = result_of(
        "synthesize",
        *(f"--output={shapes}", "--num_images=24", "--image_size=96", "--classes=circle,square,star"),
    )
    converted = result_of(
        "convert", "--format=coco", f"--input={shapes / 'annotations.json'}", f"--output={records}"
    )
    trained = result_of("train", *SMALL, f"--train={records}", f"--val={records}", f"--run_dir={run}")
    return SimpleNamespace(
        root=root,
        shapes=shapes,
        records=records,
        run=run,
        drawn=drawn,
        converted=converted,
        trained=trained,
    )


@pytest.fixture(scope="session")
def scored(path):
    """ssd-test on the run, once for each metric; the detections of the first are kept."""
    argv = (f"--run_dir={path.run}", f"--data={path.records}")
    return {
        "voc07": result_of("test", *argv, f"--results={path.root / 'results.json'}"),
        "coco": result_of("test", *argv, "--metric=coco", "--batch_size=24"),
    }


@pytest.fixture(scope="session")
def detector(path):
    return ssd_tf.load(path.run)


def as_pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def test_synthesized_set(path):
    assert path.drawn["images"] == 24 and path.drawn["output"] == str(path.shapes)
    assert list(path.drawn["per_class"]) == ["circle", "square", "star"]
    written = json.loads((path.shapes / "annotations.json").read_text())
    assert len(written["images"]) == 24
    assert path.drawn["boxes"] == sum(path.drawn["per_class"].values()) == len(written["annotations"])


def test_converted_set(path):
    assert path.converted["examples"] == 24
    assert path.converted["boxes"] == path.drawn["per_class"]
    assert (path.converted["skipped"], path.converted["dropped"], path.converted["clipped"]) == ([], [], [])
    names = sorted(entry.name for entry in path.records.iterdir() if not entry.name.startswith("."))
    shard = "records-00000-of-00001.tfrecord"
    assert names == ["convert_report.json", "label_map.json", "manifest.json", shard]
    manifest = json.loads((path.records / "manifest.json").read_text())
    assert manifest["shards"][0]["bytes"] == (path.records / shard).stat().st_size


def test_run_directory(path):
    assert path.trained["step"] == 4 and path.trained["resumed_from"] == 0
    assert np.isfinite(path.trained["loss"]) and 0 <= path.trained["best_metric"] <= 1
    run = runs.open_run(path.run)
    assert run.label_map.names == ("circle", "square", "star")
    assert run.config.model.num_classes == 3 and run.config.train.steps == 4
    assert (path.run / "LATEST").read_text() == "step-00000004\n"
    assert runs.find_checkpoint(path.run, "step-2").state["step"] == 2
    rows = [json.loads(line) for line in (path.run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 4]
    assert rows[2]["mAP"] == path.trained["best_metric"]


def test_finished_run_says_so(path):
    code, out, err = call("train", *SMALL, f"--train={path.records}", f"--run_dir={path.run}")
    assert code == 0, err
    assert "already finished at step 4; raise train.steps to go on" in out.splitlines()


def test_scores(path, scored):
    voc = scored["voc07"]
    assert (voc["metric"], voc["images"]) == ("voc07", 24)
    assert voc["images_per_second"] > 0
    assert set(voc["per_class"]) == {"circle", "square", "star"}
    assert voc["mAP"] == pytest.approx(np.mean(list(voc["per_class"].values())))
    assert voc["mAP"] == path.trained["best_metric"]  # the validation of the training saw the same weights
    assert set(voc["best_f1"]) == {"threshold", "f1", "precision", "recall"}
    assert list(voc["best_f1_per_class"]) == ["circle", "square", "star"]
    coco = scored["coco"]
    assert (coco["best_f1"], coco["best_f1_per_class"]) == (voc["best_f1"], voc["best_f1_per_class"])
    numbers = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert {*numbers, "metric", "mAP", "per_class", "images", "images_per_second"} <= set(coco)
    assert coco["mAP"] == coco["AP"]
    assert all(coco[name] is None or 0 <= coco[name] <= 1 for name in numbers)
    assert coco["APl"] is None  # no object of 96 pixels' side or more


@pytest.mark.parametrize("metric", ["voc07", "coco"])
def test_written_detections_score_the_same(path, scored, metric):
    again = result_of(
        "test",
        *(f"--detections={path.root / 'results.json'}", f"--data={path.records}", f"--metric={metric}"),
    )
    assert again.pop("images_per_second") is None
    assert again == {key: value for key, value in scored[metric].items() if key != "images_per_second"}


def test_results_file_is_cocos(path, scored):
    rows = json.loads((path.root / "results.json").read_text())
    assert rows
    for row in rows:
        assert set(row) == {"image_id", "category_id", "bbox", "score"}
        assert row["image_id"] in range(24) and row["category_id"] in (1, 2, 3)
        x, y, width, height = row["bbox"]
        assert x >= 0 and y >= 0 and x + width <= 96 + 1e-4 and y + height <= 96 + 1e-4


def test_table_for_people(path):
    code, out, err = call("test", f"--run_dir={path.run}", f"--data={path.records}", "--checkpoint=step-2")
    assert code == 0, err
    assert out.splitlines()[0] == f"{path.run}: step-00000002, tiny_ssd"
    assert [line.split()[0] for line in out.splitlines() if line[:1] == "c" or line[:1] == "s"][:4] == [
        *("class", "circle", "square", "star")
    ]


def test_demo_on_a_picture(path):
    source, target = path.shapes / "images" / "000003.jpg", path.root / "new" / "out.png"
    before = source.read_bytes()
    argv = (f"--run_dir={path.run}", f"--input={source}", f"--output={target}")
    low = result_of("demo", *argv, "--score_threshold=0.01")
    (row,) = low["results"]
    assert low["images"] == 1
    assert (row["file"], row["output"]) == (str(source), str(target))
    assert row["detections"], "an almost untrained net sees something everywhere"
    name, score, *box = row["detections"][0]
    assert name in ("circle", "square", "star") and 0.01 <= score <= 1
    assert len(box) == 4 and min(box) >= 0 and max(box) <= 96
    drawn, original = as_pixels(target), as_pixels(source)
    assert drawn.shape == original.shape and (drawn != original).any()
    assert row["best_below"] is None
    none = result_of("demo", *argv, "--score_threshold=1.0")
    assert none["results"][0]["detections"] == []
    assert none["results"][0]["best_below"] == row["detections"][0]
    _, out, _ = call("demo", *argv, "--score_threshold=1.0")
    rounded = f"{math.floor(score * 100) / 100:.2f}"
    assert out.splitlines()[-1] == f"  no detection above 1; the best is {name} {rounded}"
    np.testing.assert_array_equal(as_pixels(target), original)
    assert source.read_bytes() == before


def test_demo_never_rounds_a_score_up_to_its_threshold():
    row = {"file": "a.jpg", "output": "b.jpg", "detections": [], "best_below": ["dog", 0.4996, 1.0, 2.0, 3.0, 4.0]}
    result = {"images": 1, "score_threshold": 0.5, "results": [row], "skipped": []}
    assert command_of("demo").show(result).splitlines() == [
        "a.jpg: 0 detections, drawn in b.jpg",
        "  no detection above 0.5; the best is dog 0.49",
    ]
    row["best_below"] = None  # nothing seen at all
    assert command_of("demo").show(result) == "a.jpg: 0 detections, drawn in b.jpg"


def test_demo_on_a_folder(path):
    source, target = path.shapes / "images", path.root / "drawn"
    code, out, err = call("demo", f"--run_dir={path.run}", f"--input={source}", f"--output={target}")
    assert code == 0, err
    expected = [f"{number:06d}.jpg" for number in range(24)]
    assert sorted(entry.name for entry in target.iterdir()) == expected
    assert f"{source / '000000.jpg'}: " in out and f"drawn in {target / '000000.jpg'}" in out
    assert sorted(entry.name for entry in source.iterdir()) == expected


def test_demo_names_its_output_itself(path):
    picture = path.root / "a photo.jpg"
    picture.write_bytes((path.shapes / "images" / "000000.jpg").read_bytes())
    result = result_of("demo", f"--run_dir={path.run}", f"--input={picture}")
    assert result["results"][0]["output"] == str(path.root / "a photo_detected.jpg")
    assert as_pixels(path.root / "a photo_detected.jpg").shape == (96, 96, 3)


def small_config(*more):
    overrides = [part.removeprefix("--set=") for part in SMALL[1:]]
    return ssd_tf.load_config("ssdlite300_mobilenet_v2", overrides=[*overrides, *more])


def test_api_convert(path, tmp_path):
    report = ssd_tf.convert(
        "coco", source=path.shapes / "annotations.json", output=tmp_path / "again", classes=("star",)
    )
    assert report["boxes"] == {"star": path.drawn["per_class"]["star"]}
    assert report["examples"] == 24
    assert report["images_without_objects"] == sum(
        "star" not in set(names) for names in names_by_image(path).values()
    )


def names_by_image(path):
    written = json.loads((path.shapes / "annotations.json").read_text())
    names = {row["id"]: row["name"] for row in written["categories"]}
    found = {row["id"]: [] for row in written["images"]}
    for row in written["annotations"]:
        found[row["image_id"]].append(names[row["category_id"]])
    return found


def test_api_datasets_fit_the_detector(path):
    config = small_config("model.num_classes=3", "train.seed=5")
    model = ssd_tf.build_detector(config)
    num_anchors = model.output["class_logits"].shape[1]
    image, target, weight = next(iter(ssd_tf.make_dataset(config, path.records, training=True)))
    assert (image.dtype, image.shape) == ("uint8", (4, 96, 96, 3))
    classes, deltas = target["class_logits"].numpy(), target["box_deltas"].numpy()
    assert classes.shape == (4, num_anchors) and deltas.shape == (4, num_anchors, 5)
    assert set(np.unique(classes)) <= {-1, 0, 1, 2, 3}
    np.testing.assert_array_equal(deltas[..., 4] == 1, classes > 0)
    np.testing.assert_allclose(weight, np.full(4, 4 / max(1, (classes > 0).sum())), rtol=1e-6)
    sizes = [len(batch[0]) for batch in ssd_tf.make_dataset(config, path.records, training=False)]
    assert sizes == [4] * 6
    assert {key: value.shape for key, value in model(image).items()} == {
        "class_logits": (4, num_anchors, 4),
        "box_deltas": (4, num_anchors, 4),
    }


def test_api_model_without_classes_names_the_key():
    with pytest.raises(ssd_tf.SsdError, match=r"^model\.num_classes is not set"):
        ssd_tf.build_detector(small_config())


def test_api_train_goes_on(path, tmp_path):
    lines = []
    shutil.copytree(path.run, tmp_path / "run")
    config = small_config("train.steps=6", "train.log_steps=1")
    result = ssd_tf.train(config, train=path.records, run_dir=tmp_path / "run", write_line=lines.append)
    assert (result["step"], result["resumed_from"]) == (6, 4)
    assert result["best_metric"] == path.trained["best_metric"]  # kept, though nothing validates now
    assert "24 images, 3 classes; 6 steps of 4 (about 1 epochs)" in lines
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 4, 5, 6]
    assert (tmp_path / "run" / "LATEST").read_text() == "step-00000006\n"
    kept = sorted(entry.name for entry in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-00000004", "step-00000006"]  # the last two; the best is one of them


def test_api_detector(path, detector, tmp_path):
    picture = path.shapes / "images" / "000001.jpg"
    out = detector(picture)
    assert isinstance(out, ssd_tf.Detections) and len(out) > 0
    assert (np.diff(out.scores) <= 0).all() and out.scores[-1] >= 0.01
    assert out.boxes.shape == (len(out), 4) and set(out.classes) <= {1, 2, 3}
    assert repr(out).startswith(f"Detections({len(out)}: class ")
    pixels = as_pixels(picture)
    for other in (str(picture), pixels, Image.fromarray(pixels)):
        np.testing.assert_array_equal(detector(other).boxes, out.boxes)
    pair = detector([picture, pixels[:48]])
    np.testing.assert_allclose(pair[0].scores, out.scores, atol=1e-5)
    assert pair[1].boxes[:, [1, 3]].max() <= 48
    high = detector(picture, score_threshold=float(out.scores[0]))
    assert len(high) >= 1 and (high.scores >= out.scores[0]).all()
    assert (detector.label_map.name(3), detector.label_map.id("circle")) == ("star", 1)
    drawn = detector.draw(picture, out)
    assert drawn.dtype == np.uint8 and drawn.shape == pixels.shape and (drawn != pixels).any()
    detector.save(tmp_path / "out.png", picture, out)
    np.testing.assert_array_equal(as_pixels(tmp_path / "out.png"), drawn)


def test_api_evaluate(path, scored):
    found = ssd_tf.evaluate(path.run, path.records, metric="voc")
    assert (found["metric"], found["images"]) == ("voc", 24)
    assert found["mAP"] == scored["voc07"]["mAP_area"]


def test_api_lists_its_backbones():
    assert {"tiny_ssd", "vgg16", "mobilenet_v2"} <= set(ssd_tf.list_backbones())
    assert set(ssd_tf.__all__) <= set(dir(ssd_tf))
    with pytest.raises(AttributeError, match=r"^module 'ssd_tf' has no attribute 'nothing'$"):
        _ = ssd_tf.nothing


def test_commands_change_no_input(path):
    visible = {entry.name for entry in path.shapes.iterdir() if not entry.name.startswith(".")}
    assert visible == {"images", "annotations.json"}
    assert Path(path.records, "manifest.json").exists()


def test_progress_counts_from_its_first_call(monkeypatch):
    times = iter([100.0, 101.0, 102.0])
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(times))
    stream = io.StringIO()
    show = runner.progress_printer("images", stream)
    for done in (64, 74, 84):
        show(done, 100)
    assert stream.getvalue().splitlines() == [
        "images 74/100, 10/s, 3 s left",
        "images 84/100, 10/s, 2 s left",
    ]


@pytest.mark.parametrize(
    ("name", "folder", "output"),
    [("v1.2", True, "v1.2"), ("v1.2", False, "v1"), ("instances.json", False, "instances")],
)
def test_default_output_takes_the_whole_name_of_a_folder(tmp_path, name, folder, output):
    (tmp_path / name).mkdir() if folder else (tmp_path / name).touch()
    assert convert.default_output(tmp_path / name) == Path("tfrecords") / output
    assert convert.default_output(tmp_path / name, "val") == Path("tfrecords") / f"{output}_val"


def test_suppression_of_a_finished_run_can_be_changed(path, tmp_path):
    found = ssd_tf.load(path.run, overrides=["postprocess.nms=soft_gaussian", "postprocess.max_detections=7"])
    settings = found.config.postprocess
    assert (settings.nms, settings.max_detections, settings.nms_iou) == ("soft_gaussian", 7, 0.45)
    image = np.zeros((64, 64, 3), np.uint8)
    assert len(found(image)) <= 7 < len(ssd_tf.load(path.run, overrides=["postprocess.score_threshold=0"])(image))
    flags = (f"--run_dir={path.run}", f"--data={path.records}", f"--results={tmp_path}/found.json")
    assert call("test", *flags, "--set=postprocess.max_detections=1")[0] == 0
    assert len(json.loads((tmp_path / "found.json").read_text())) <= 24  # images


@pytest.mark.parametrize("module", ["test", "demo"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps=9", "--set train.steps: of a finished run only postprocess. keys can be changed"),
        ("postprocess.nms=sotf_linear", "did you mean soft_linear?"),
        ("postprocess.nsm=hard", "did you mean postprocess.nms?"),
        ("postprocess.nms_iou=2", "postprocess.nms_iou: 2.0 is outside 0.0..1.0"),
    ],
)
def test_what_else_of_a_finished_run_cannot(module, text, message, path, tmp_path):
    flags = {"test": [f"--data={path.records}"], "demo": [f"--input={path.shapes / 'images' / '000001.jpg'}"]}
    code, out, err = call(module, f"--run_dir={path.run}", *flags[module], f"--set={text}")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
