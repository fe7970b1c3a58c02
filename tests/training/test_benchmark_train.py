"""scripts/benchmark_train.py: its batch is the input pipeline's, its figures and its table are right."""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.api import build
from ssd_tf.boxes import matcher
from ssd_tf.config import load_config
from ssd_tf.data import targets


@pytest.fixture
def scripts(repository, monkeypatch):
    """The two scripts as modules: `bench` and `cell`."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    names = {"bench": "benchmark_train", "cell": "benchmark_train_cell"}
    yield SimpleNamespace(**{key: importlib.import_module(name) for key, name in names.items()})
    for name in (*names.values(), "timing"):
        sys.modules.pop(name, None)


def test_batch_is_what_the_input_pipeline_makes(scripts, small_backbone):
    overrides = [f"model.backbone={small_backbone}", "model.weights=none", "model.image_size=64"]
    anchors = build.build_anchors(load_config(None, overrides))
    images, made, weights = scripts.cell.make_batch(3, 64, 2, anchors)
    boxes, classes = scripts.cell.draw_objects(3, 2)
    assert (images.shape, images.dtype, set(classes.ravel())) == ((3, 64, 64, 3), np.uint8, {1, 2})
    for i in range(3):
        wanted = targets.build_targets(boxes[i], classes[i], np.zeros(5, bool), tf.constant(anchors))
        np.testing.assert_array_equal(made["class_logits"][i], wanted["class_logits"])
        np.testing.assert_allclose(made["box_deltas"][i], wanted["box_deltas"], rtol=1e-5, atol=1e-5)
    num_positives = float((made["class_logits"] > 0).sum())
    assert num_positives > 15
    np.testing.assert_allclose(weights, [matcher.batch_weight(num_positives, 3)] * 3, rtol=1e-6)


def test_an_anchor_that_two_boxes_claim_goes_to_the_closer_one(scripts):
    """The second anchor is far from both; neither box overlaps the first by half."""
    anchors = np.float32([[0, 0, 1, 1], [0.9, 0.9, 1, 1]])
    boxes = np.float32([[0, 0, 0.5, 0.8], [0, 0, 0.5, 0.5]])  # IoU .4 and .25
    for order in ([0, 1], [1, 0]):
        made = scripts.cell.make_targets(boxes[order], np.int32([7, 8])[order], anchors)
        assert made["class_logits"].tolist() == [7, 0]
        assert made["box_deltas"][1].tolist() == [0] * 5


def test_time_is_the_median_over_the_rounds_for_one_call(scripts, monkeypatch):
    """The first call took 9 s; of the rounds of two calls two are warm-up, the others took 2, 6 and 4 s."""
    clock = iter(np.cumsum([0, 9, 0, 50, 0, 50, 0, 2, 0, 6, 0, 4]).tolist())
    monkeypatch.setattr(scripts.cell.time, "perf_counter", lambda: next(clock))
    waited = []
    calls = iter(range(99))
    figures = scripts.cell.time_work(lambda: next(calls), waited.append, rounds=3, steps=2)
    assert figures == {"first_ms": 9000, "ms": 2000, "spread": 1.0}
    assert waited == [0, 2, 4, 6, 8, 10]  # the last call of every round


def read(scripts, *flags):
    return scripts.bench.read_options(list(flags))


def test_cells_are_all_combinations_with_the_device_s_defaults(scripts):
    cells = scripts.bench.make_cells(read(scripts), ["ours", "torchvision"], has_accelerator=True)
    assert len(cells) == 2 * 4 * 3 * 2
    assert [cells[1][key] for key in ("network", "image_size", "batch")] == ["ssd300_vgg16", 300, 1]
    assert {cell["rounds"] * cell["steps"] for cell in cells} == {100}
    cells = scripts.bench.make_cells(read(scripts, "--works=train,infer"), ["ours"], has_accelerator=False)
    assert {(cell["batch"], cell["precision"]) for cell in cells} == {
        (batch, precision) for batch in (1, 8) for precision in ("float32", "bfloat16")
    }
    assert cells[0]["works"] == ["infer", "train"]


def test_flags_choose_the_cells(scripts):
    flags = ["--models=ssdlite300_mobilenet_v2", "--batches=2", "--precisions=tf32", "--image_size=96"]
    (cell,) = scripts.bench.make_cells(read(scripts, *flags, "--rounds=5"), ["ours"], has_accelerator=False)
    assert (cell["model"], cell["batch"], cell["precision"]) == ("ssdlite300_mobilenet_v2", 2, "tf32")
    assert (cell["image_size"], cell["rounds"]) == (96, 5)


def test_a_misspelt_flag_is_named(scripts, capsys):
    with pytest.raises(SystemExit):
        read(scripts, "--precisions=float16")
    assert "'float16' is none of float32, tf32, bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("returncode", "errors", "line"),
    [
        (1, "Traceback\n  XlaRuntimeError: RESOURCE_EXHAUSTED: Out of\nsome trailing words\n", "out of memory"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate", "out of memory"),
        (-9, "", "out of memory"),
        (1, "Traceback\n  File\nValueError: what is wrong\n\n", "ValueError: what is wrong"),
        (3, "", "exit code 3"),
    ],
)
def test_a_fault_is_one_line(scripts, returncode, errors, line):
    assert scripts.bench.describe_fault(returncode, errors) == line


def test_a_cell_that_fails_keeps_what_it_had_measured(scripts, monkeypatch):
    rows = json.dumps({"work": "infer", "ms": 2.0})
    done = SimpleNamespace(returncode=1, stdout=f"words\n{rows}\n", stderr="RESOURCE_EXHAUSTED: no")
    monkeypatch.setattr(scripts.bench.subprocess, "run", lambda *_, **__: done)
    names = {"model": "m", "batch": 8, "precision": "tf32", "side": "ours"}
    measured, failed = scripts.bench.measure({**names, "works": ["infer", "train"]})
    assert measured == {**names, "work": "infer", "ms": 2.0}
    assert failed == {**names, "work": "train", "error": "out of memory"}


def test_table_sets_both_sides_beside_each_other(scripts):
    place = {"model": "m", "batch": 8, "precision": "tf32", "work": "train"}
    figures = {"ms": 20.0, "spread": 0.25, "peak_mib": 1234.4}
    rows = [
        {**place, "side": "ours", **figures},
        {**place, "side": "torchvision", **figures, "ms": 50.0, "peak_mib": None},
        {**place, "batch": 64, "side": "ours", "error": "out of memory"},
    ]
    title, _, both, alone = scripts.bench.format_table(rows).splitlines()
    assert title.split()[-1] == "ratio"
    assert both.split() == ["m", "8", "tf32", "train", "20", "25%", "1,234", "50", "2.50"]
    assert alone.split() == ["m", "64", "tf32", "train", "out", "of", "memory"]
