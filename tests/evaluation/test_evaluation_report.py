"""The printed table: every number, what is missing, and why."""

import numpy as np

from ssd_tf.evaluation import coco, operating_point, report, voc
from ssd_tf.structures import Example, LabelMap


def test_the_table_of_a_voc_result():
    result = {
        "mAP": 0.6,
        "per_class": {"cat": 0.75, "dog": 0.45, "aeroplane": None, "tv": None},
        "mAP_11_point": 0.6,
        "mAP_area": 0.61237,
        "iou_threshold": 0.5,
    }
    assert report.format_table(result).splitlines() == [
        "class                        AP",
        "-------------------------------",
        "cat                      0.7500",
        "dog                      0.4500",
        "aeroplane                   n/a",
        "tv                          n/a",
        "-------------------------------",
        "mAP                      0.6000",
        "mAP, 11-point (VOC2007)  0.6000",
        "mAP, area (VOC2010)      0.6124",
        "n/a: 2 of 4 classes without ground truth, left out of the mean",
        "a match has IoU >= 0.5; difficult and crowd objects are ignored",
    ]


def test_best_f1_stands_beside_the_averages():
    good = {"threshold": 0.46875, "f1": 0.8, "precision": 2 / 3, "recall": 1.0}
    nothing = {"threshold": None, "f1": 0.0, "precision": 0.0, "recall": 0.0}
    result = {
        "mAP": 0.375,
        "per_class": {"cat": 0.75, "dog": 0.0, "tv": None},
        "iou_threshold": 0.5,
        "best_f1": {"threshold": 0.3, "f1": 0.5, "precision": 0.75, "recall": 0.375},
        "best_f1_per_class": {"cat": good, "dog": nothing, "tv": None},
    }
    assert report.format_table(result).splitlines() == [
        "class            AP    best F1  precision     recall   at score",
        "---------------------------------------------------------------",
        "cat          0.7500     0.8000     0.6667     1.0000      0.468",  # rounded down: it must keep .46875
        "dog          0.0000     0.0000     0.0000     0.0000        n/a",
        "tv              n/a        n/a        n/a        n/a        n/a",
        "---------------------------------------------------------------",
        "all classes             0.5000     0.7500     0.3750      0.300",
        "mAP          0.3750",
        "n/a: 1 of 3 classes without ground truth, left out of the mean",
        "a match has IoU >= 0.5; difficult and crowd objects are ignored",
        "best F1 of all score thresholds, at IoU >= 0.5; all classes: one for all of them",
    ]


def test_best_f1_without_any_ground_truth():
    truths = [Example("a", "", np.zeros((0, 4)), ())]
    label_map = LabelMap(("cat", "dog"))
    result = coco.evaluate(truths, {}, label_map) | operating_point.evaluate(truths, {}, label_map)
    lines = report.format_table(result).splitlines()
    assert lines[5].split() == ["all", "classes", *["n/a"] * 4]
    assert lines[2].split() == ["cat", *["n/a"] * 5]


def test_all_numbers_of_a_coco_result_are_printed():
    numbers = {name: (index + 1) / 100 for index, name in enumerate(coco.NUMBERS)}
    result = {
        "mAP": 0.01,
        **numbers,
        "APl": None,
        "per_class": {"cat": 1.0},
        "implementation": "some library 1",
    }
    lines = report.format_table(result).splitlines()
    values = [line.split()[-1] for line in lines[5:17]]
    assert lines[4].split() == ["mAP", "0.0100"]
    assert values == [
        *("0.0100", "0.0200", "0.0300", "0.0400", "0.0500", "n/a"),
        *("0.0700", "0.0800", "0.0900", "0.1000", "0.1100", "0.1200"),
    ]
    assert lines[17:] == ["n/a: no object of that size", "computed by some library 1"]


def test_without_any_ground_truth_it_says_so():
    label_map = LabelMap(("cat", "dog"))
    truths = [Example("a", "", np.zeros((0, 4)), ())]
    for result in (voc.evaluate(truths, {}, label_map, True), coco.evaluate(truths, {}, label_map)):
        lines = report.format_table(result).splitlines()
        assert [line.split() for line in lines[2:4]] == [["cat", "n/a"], ["dog", "n/a"]]
        assert lines[5].split() == ["mAP", "n/a"]
        assert [line for line in lines if line.startswith("n/a:")] == [
            "n/a: no class has ground truth, so there is no mAP"
        ]
        assert "nan" not in "\n".join(lines).lower()


def test_nothing_missing_needs_no_footnote():
    result = {
        "mAP": 1.0,
        "per_class": {"cat": 1.0},
        "mAP_11_point": 1.0,
        "mAP_area": 1.0,
        "iou_threshold": 0.75,
    }
    text = report.format_table(result)
    assert "n/a" not in text
    assert text.endswith("a match has IoU >= 0.75; difficult and crowd objects are ignored")


def test_long_and_unprintable_class_names_keep_the_columns():
    result = {"mAP": 0.5, "per_class": {"a\x1b[31m class with a very long name": 0.5, "b": None}}
    lines = report.format_table(result).splitlines()
    assert "\x1b" not in "".join(lines) and lines[2].startswith("a\\x1b[31m class")
    assert {len(line) for line in lines[:6]} == {len(lines[2])}
