"""How often images are shown: rates by hand, showings by brute force, labels read back."""

import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image

from ssd_tf import config as configs
from ssd_tf.data import balance
from ssd_tf.errors import DataError, EnvironmentFault
from ssd_tf.records import encoding, negatives, reader, writer
from ssd_tf.structures import Example, LabelMap

LABELS = LabelMap(("bat", "ant", "cow", "dog"))
# Classes of the images, in capitals where the object is difficult; "ant" stands in one image alone, "cow" nowhere.
ROWS = ("bat", "bat dog", "", "bat bat", "bat ANT", "dog ant dog", "bat", "DOG", "bat", "bat dog")
UNIT = 2**30


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Ten images in several shards."""
    folder = tmp_path_factory.mktemp("balance")
    return write_rows(folder, ROWS)


def write_rows(folder, rows):
    examples = []
    for index, row in enumerate(rows):
        path, words = folder / f"{index}.png", row.split()
        Image.new("RGB", (20, 10), (20 * index,) * 3).save(path)
        boxes = np.array([[1, 2, 8, 9 + k] for k in range(len(words))]).reshape(-1, 4)
        difficult = [word.isupper() for word in words]
        names = tuple(word.lower() for word in words)
        examples.append(Example(str(index), str(path), boxes, names, difficult=difficult))
    output = folder / "records"
    output.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_SHARD_BYTES", sum(os.path.getsize(e.image) for e in examples) // 3 + 1)
        writer.write_records(examples, LABELS, output, encoding.WriteOptions(workers=1))
    return reader.open_records(output)


def make_config(kind, **leaves):
    return configs.replace(configs.Config(), data__balance=kind, **leaves)


def make_presence(rows):
    """Presence in one shard of images that hold these classes."""
    pairs = [(image, class_id) for image, row in enumerate(rows) for class_id in row or [balance.NO_OBJECT]]
    images, classes = np.array(pairs).T
    return balance.Presence(np.array([len(rows)]), images, classes)


# Class 1 is in 6 of 8 images, class 2 in 2, class 4 in 1, class 3 in none; the last two images are of no class.
HELD = make_presence([[1], [1], [1, 2], [1], [1, 2, 4], [1], [], []])


def test_repeat_factors_by_hand():
    rates = balance.image_rates(HELD, configs.DataConfig(balance="repeat", repeat_threshold=0.5))
    np.testing.assert_allclose(rates, [1, 1, 2**0.5, 1, 2, 1, 1, 1])  # sqrt(.5 / .25), sqrt(.5 / .125)
    rates = balance.image_rates(HELD, configs.DataConfig(balance="repeat", repeat_threshold=1.0))
    six = (8 / 6) ** 0.5
    np.testing.assert_allclose(rates, [six, six, 2, six, 8**0.5, six, 1, 1])
    rates = balance.image_rates(HELD, configs.DataConfig(balance="repeat", repeat_threshold=0.0))
    assert rates.tolist() == [1.0] * 8


def test_rates_of_downsampling_by_hand():
    rates = balance.image_rates(HELD, configs.DataConfig(balance="downsample"))
    np.testing.assert_allclose(rates, [1 / 6, 1 / 6, 1 / 2, 1 / 6, 1, 1 / 6, 1 / 2, 1 / 2])


def test_downsampling_leaves_rarer_than_the_rarest_alone():
    rates = balance.image_rates(make_presence([[1], [1], [2], [2], []]), configs.DataConfig(balance="downsample"))
    assert rates.tolist() == [1.0] * 5  # one image without objects, two of each class


def make_plan(rates, seed=3):
    rates = np.round(np.array(rates) * UNIT).astype(np.int64)
    return balance.Plan(np.zeros(1, np.int64), rates, balance._draw_phases(rates, seed))


PLANS = {
    "downsample": make_plan([1 / 6] * 20 + [0.3] * 7 + [1.0]),
    "repeat": make_plan([1.0] * 5 + [2**0.5] * 4 + [3.75]),
    "one": make_plan([1.0]),
}


def showings(plan, num_epochs):
    """int64 [epochs, images]."""
    return np.array([balance.count_showings(plan.rates, plan.phases, epoch) for epoch in range(num_epochs)])


@pytest.mark.parametrize("kind", PLANS)
def test_examples_before_an_epoch_are_those_shown_in_it(kind):
    totals = showings(PLANS[kind], 40).sum(axis=1)
    assert (totals > 0).all()
    before = [0, *np.cumsum(totals).tolist()]
    assert [PLANS[kind].count_before(epoch) for epoch in range(41)] == before
    places = [(epoch, k) for epoch, total in enumerate(totals) for k in range(total)]
    assert [PLANS[kind].find(start) for start in range(len(places))] == places


@pytest.mark.parametrize("kind", PLANS)
@pytest.mark.parametrize("num_epochs", [1, 6, 7, 100])
def test_showings_add_up_to_the_rate(kind, num_epochs):
    counts = showings(PLANS[kind], num_epochs)
    expected = PLANS[kind].rates / UNIT * num_epochs
    assert (np.abs(counts.sum(axis=0) - expected) < 1).all()
    rate = PLANS[kind].rates / UNIT
    assert ((counts >= np.floor(rate)) & (counts <= np.ceil(rate))).all()


def test_images_of_one_rate_share_the_epochs_evenly():
    counts = showings(PLANS["downsample"], 60)
    assert set(counts[:, :20].sum(axis=1)) <= {3, 4} and set(counts[:, 20:27].sum(axis=1)) <= {2, 3}
    assert counts[:6, :20].sum(axis=0).tolist() == [1] * 20  # all of them in six epochs
    assert (counts[:4, 20:27].sum(axis=0) >= 1).all()
    assert not np.array_equal(counts[0], counts[1])
    assert showings(PLANS["repeat"], 30)[:, 9].tolist().count(4) in (22, 23)


def test_epochs_that_show_nothing_hold_no_example():
    nothing = np.zeros(10, np.int64)  # all images of a rate of 1/4 come in every fourth epoch, from the fourth on
    plan = balance.Plan(nothing[:1], nothing + UNIT // 4, nothing)
    assert [plan.find(start) for start in (0, 9, 10, 25)] == [(3, 0), (3, 9), (7, 0), (11, 5)]


def test_far_epochs_are_exact():
    plan = PLANS["repeat"]
    start = 10**9
    epoch, done = plan.find(start)
    assert plan.count_before(epoch) + done == start < plan.count_before(epoch + 1)
    total = balance.count_showings(plan.rates, plan.phases, epoch).sum()
    assert plan.count_before(epoch + 1) - plan.count_before(epoch) == total


def test_the_seed_decides_which_images_come_first():
    firsts = {tuple(showings(make_plan([1 / 6] * 20, seed), 1)[0]) for seed in range(4)}
    assert len(firsts) == 4
    again = make_plan([1 / 6] * 20, 2)
    np.testing.assert_array_equal(again.phases, make_plan([1 / 6] * 20, 2).phases)
    # Raw numbers of a Philox generator: a training must go on the same under another version of NumPy.
    assert make_plan([0.25] * 4, 5).phases.tolist() == [655623901, 924059357, 387188445, 118752989]


def pairs(presence):
    return sorted(zip(presence.images.tolist(), presence.classes.tolist()))


def test_presence_is_read_from_the_labels(records):
    assert len(records.files) > 1
    presence = balance.read_presence(records, False)
    held = [[1], [1, 4], [0], [1], [1], [2, 4], [1], [0], [1], [1, 4]]
    assert pairs(presence) == [(image, class_id) for image, row in enumerate(held) for class_id in row]
    assert presence.num_images == 10
    assert presence.count_images().tolist() == [2, 7, 1, 0, 3]
    difficult = balance.read_presence(records, True)
    assert {*pairs(difficult)} ^ {*pairs(presence)} == {(4, 2), (7, 4), (7, 0)}


def test_shards_are_counted_where_nobody_has_counted_them(records):
    assert set(records.counts) == {-1}
    sizes = [sum(1 for _ in reader.shard_records(file, -1)) for file in records.files]
    assert balance.read_presence(records, False).shard_sizes.tolist() == sizes
    plan = balance.make_plan(records, make_config("repeat"))
    assert plan.offsets.tolist() == [0, *itertools.accumulate(sizes[:-1])]
    cut = reader.RecordSet(records.files, 3, LABELS, (1, 0, *[1] * (len(sizes) - 2)))
    assert balance.read_presence(cut, False).shard_sizes.tolist() == list(cut.counts)


def test_labels_are_read_once_until_the_shards_change(tmp_path, monkeypatch):
    opened, passes = write_rows(tmp_path, ROWS), []
    read = reader.shard_records
    monkeypatch.setattr(reader, "shard_records", lambda *shard: passes.append(1) or read(*shard))
    for config in (make_config("repeat"), make_config("downsample", train__seed=4)):
        balance.make_plan(opened, config)
    assert balance.read_presence(opened, False).count_images()[2] == 1
    assert len(passes) == 1
    os.utime(opened.files[0], ns=(1, 1))
    balance.make_plan(opened, make_config("repeat"))
    assert len(passes) == 2


def test_no_object_to_train_on_is_an_error(tmp_path):
    opened = write_rows(tmp_path, ("", "DOG"))
    for kind in ("repeat", "downsample"):
        with pytest.raises(
            DataError, match=rf"^data\.balance={kind}: no image holds an object to train on: .*rds"
        ):
            balance.make_plan(opened, make_config(kind))
    plan = balance.make_plan(opened, make_config("downsample", data__use_difficult=True))
    assert plan.rates.tolist() == [UNIT, UNIT]


def test_a_shard_that_vanished_is_named(tmp_path):
    opened = write_rows(tmp_path, ROWS)
    os.unlink(opened.files[1])
    with pytest.raises(EnvironmentFault, match=r"^cannot read shard 1: "):
        balance.make_plan(opened, make_config("repeat"))


def test_lines_of_downsampling(records):
    # Rates: ant 1, bat 1/7, dog 1/3, none 1/2. bat: 5 of 1/7, 2 of 1/3; dog: 2 of 1/3, 1 of 1; and 2 of 1/2.
    lines = balance.describe(records, make_config("downsample", loss__min_negatives=3))
    assert lines == ["data.balance=downsample: 10 → 3 images an epoch (ant 1 → 1, dog 3 → 2, bat 7 → 1)"]


def test_lines_of_repeating(records):
    # Rates at 1: ant sqrt 10, dog sqrt(10/3), bat sqrt(10/7), none 1.
    config = make_config("repeat", data__repeat_threshold=1.0, loss__min_negatives=3)
    rates = np.array([(10 / 7) ** 0.5] * 5 + [(10 / 3) ** 0.5] * 2 + [10**0.5, 1, 1])
    assert round(rates.sum()) == 15 and round(rates[:7].sum()) == 10 and round(rates[5:8].sum()) == 7
    assert balance.describe(records, config) == [
        "data.balance=repeat: 10 → 15 images an epoch (ant 1 → 3, dog 3 → 7, bat 7 → 10)"
    ]


def test_a_line_names_eight_classes(records, monkeypatch):
    rows = [[1 + k % 10 for k in range(image + 1)] for image in range(10)]
    monkeypatch.setattr(balance, "read_presence", lambda *_: make_presence(rows))
    wide = reader.RecordSet(records.files, 10, LabelMap(tuple("abcdefghij")), records.counts)
    (line,) = balance.describe(wide, make_config("repeat", loss__min_negatives=1))
    assert line.endswith(
        "(j 1 → 1, i 2 → 2, h 3 → 3, g 4 → 4, f 5 → 5, e 6 → 6, d 7 → 7, c 8 → 8, 2 more classes)"
    )


def test_images_without_objects_are_told_of_and_nothing_is_read(records, monkeypatch):
    monkeypatch.setattr(reader, "shard_records", None)
    monkeypatch.setattr(reader, "serialized_records", None)
    expected = ["1 image has no objects: it teaches what background is with --set loss.min_negatives=3"]
    assert balance.describe(records, configs.Config()) == expected
    assert balance.describe(records, make_config("none", loss__classification="sigmoid")) == expected
    assert balance.describe(records, make_config("none", loss__classification="focal")) == []
    assert balance.describe(records, make_config("none", loss__min_negatives=1)) == []


def change_report(opened, content):
    path = os.path.join(os.path.dirname(opened.files[0]), writer.REPORT)
    with open(path, "w") as file:
        file.write(content)


def test_images_without_objects_are_counted_where_the_report_tells(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder, rows in zip(folders, (["", "bat", ""], ["", "dog"])):
        folder.mkdir()
        write_rows(folder, rows)
    both = reader.open_records(",".join(str(folder / "records") for folder in folders))
    assert negatives.count_empty(both) == 3
    lines = balance.describe(both, configs.Config())
    assert lines == ["3 images have no objects: they teach what background is with --set loss.min_negatives=3"]
    assert negatives.count_empty(reader.open_records(str(folders[0] / "records"), skip_corrupt=True)) == 0
    for content in (
        "[]",
        "{}",
        "}",
        *(json.dumps({"images_without_objects": bad}) for bad in (True, -2, "3", 1.5)),
    ):
        change_report(both, content)
        assert negatives.count_empty(both) == 1
    os.unlink(folders[1] / "records" / writer.REPORT)
    assert negatives.count_empty(both) == 0
