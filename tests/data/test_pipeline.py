"""Shards to batches: order, resuming, seeds, weights, balance, workers, the validation pass."""

import itertools
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_tf import config as configs
from ssd_tf.boxes import anchors
from ssd_tf.data import balance, pipeline
from ssd_tf.errors import ConfigError
from ssd_tf.records import encoding, reader, writer
from ssd_tf.structures import Example, LabelMap

NUM_IMAGES = 11
SIZE = (32, 48)
ANCHORS = anchors.make_anchors(anchors.default_spec(2), [(4, 6), (2, 3)], SIZE)
LABELS = LabelMap(("cell", "disc"))
PARTS = ("color", "expand", "crop", "flip")


def grey(index):
    """The grey level by which an image is recognised."""
    return 20 + 20 * index


def draw_examples(folder, count=NUM_IMAGES):
    """Images of one grey level each; the first has no box, the others 1 or 2, one of them difficult."""
    folder.mkdir()
    examples = []
    for index in range(count):
        path = folder / f"{index}.png"
        Image.new("RGB", (60, 40), (grey(index),) * 3).save(path)
        boxes = np.array([[3, 6, 35, 41], [11, 29, 38, 57]])[: min(index, 1 + index % 2)]
        names = ("cell", "disc")[: len(boxes)]
        examples.append(Example(str(index), str(path), boxes, names, difficult=[index == 2][: len(boxes)]))
    return examples


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Eleven images in three shards."""
    folder = tmp_path_factory.mktemp("pipeline")
    examples = draw_examples(folder / "images")
    output = folder / "drawn"
    output.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_SHARD_BYTES", sum(os.path.getsize(e.image) for e in examples) // 3 + 1)
        writer.write_records(examples, LABELS, output, encoding.WriteOptions(workers=1))
    opened = reader.open_records(output)
    assert len(opened.files) == 3
    return opened


def make_config(augmented=True, **leaves):
    base = configs.replace(
        configs.Config(), model__image_size=SIZE, train__batch_size=1, train__seed=5, data__shuffle_buffer=4
    )
    if not augmented:
        off = {f"augment__{part}_probability": 0.0 for part in PARTS}
        base = configs.replace(base, **off)
    return configs.replace(base, **leaves)


def take(records, config, count, start=0):
    """`count` batches as NumPy: (images, targets, weights)."""
    return list(pipeline.training_stream(records, ANCHORS, config, start).take(count).as_numpy_iterator())


def greys(batches):
    return [int(image[0, 0, 0]) for images, _, _ in batches for image in images]


def check_equal(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        for a, b in zip(tf.nest.flatten(one), tf.nest.flatten(other), strict=True):
            np.testing.assert_array_equal(a, b)


def differs(ones, others):
    return any(not np.array_equal(one[0], other[0]) for one, other in zip(ones, others, strict=True))


@pytest.fixture(scope="module")
def whole(records):
    """Two epochs and three examples of the augmented stream; others are compared with it."""
    return take(records, make_config(), 2 * NUM_IMAGES + 3)


def test_shapes_dtypes_and_full_batches(records):
    stream = pipeline.training_stream(records, ANCHORS, make_config(train__batch_size=4))
    images, targets, weights = next(iter(stream))
    count = len(ANCHORS)
    assert (images.shape, images.dtype) == ((4, *SIZE, 3), tf.uint8)
    assert (targets["class_logits"].shape, targets["class_logits"].dtype) == ((4, count), tf.int32)
    assert (targets["box_deltas"].shape, targets["box_deltas"].dtype) == ((4, count, 5), tf.float32)
    assert (weights.shape, weights.dtype) == ((4,), tf.float32)
    assert stream.element_spec[0].shape[1:] == (*SIZE, 3)


def test_every_epoch_is_a_permutation_of_the_set(records):
    seen = greys(take(records, make_config(augmented=False), 4 * NUM_IMAGES))
    everything = [grey(index) for index in range(NUM_IMAGES)]
    epochs = [seen[first : first + NUM_IMAGES] for first in range(0, len(seen), NUM_IMAGES)]
    assert [sorted(epoch) for epoch in epochs] == [everything] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4  # each in an order of its own
    assert everything not in epochs


def test_shuffling_moves_the_shards_too(records):
    # With a buffer of one, only the order of the shards can differ.
    seen = greys(take(records, make_config(augmented=False, data__shuffle_buffer=1), 6 * NUM_IMAGES))
    assert len({tuple(seen[first : first + NUM_IMAGES]) for first in range(0, len(seen), NUM_IMAGES)}) > 1


def test_same_seed_same_stream_other_seed_other_stream(records, whole):
    check_equal(whole, take(records, make_config(), len(whole)))
    assert differs(whole, take(records, make_config(train__seed=6), len(whole)))


def test_the_seed_decides_the_order(records):
    plain = make_config(augmented=False)
    orders = {
        tuple(greys(take(records, configs.replace(plain, train__seed=seed), NUM_IMAGES))) for seed in range(3)
    }
    assert len(orders) == 3


def test_an_image_is_augmented_anew_in_every_epoch(records):
    off = {f"augment__{part}_probability": 0.0 for part in ("color", "crop", "flip")}
    config = make_config(augment__expand_probability=1.0, **off)
    shares = {}
    for images, _, _ in take(records, config, 2 * NUM_IMAGES):
        level = next(g for g in map(grey, range(NUM_IMAGES)) if (images == g).all(-1).any())
        shares.setdefault(level, []).append(int((images == level).all(-1).sum()))
    assert len(shares) == NUM_IMAGES
    assert sum(first != second for first, second in shares.values()) > NUM_IMAGES // 2


def test_the_stream_does_not_depend_on_global_seeds(records, whole):
    tf.random.set_seed(41)
    keras.utils.set_random_seed(42)
    check_equal(whole, take(records, make_config(), len(whole)))


def test_building_a_stream_leaves_the_global_seed_alone(records):
    def draw():
        tf.random.set_seed(7)
        pipeline.training_stream(records, ANCHORS, make_config())
        return float(tf.random.uniform([]))

    tf.random.set_seed(7)
    assert float(tf.random.uniform([])) == draw()


@pytest.mark.parametrize("start", [5, NUM_IMAGES, NUM_IMAGES + 4])
def test_a_stream_continues_where_it_was_left(records, whole, start):
    check_equal(whole[start:], take(records, make_config(), len(whole) - start, start))


def test_batches_continue_across_the_epochs(records, whole):
    config = make_config(train__batch_size=4)
    batches = take(records, config, 6)  # 24 images of 11: two borders
    singles = np.concatenate([images for images, _, _ in whole])
    np.testing.assert_array_equal(np.concatenate([images for images, _, _ in batches]), singles[:24])
    check_equal(batches[2:], take(records, config, 4, 8))


def test_a_batch_larger_than_the_set_repeats_examples(records):
    images, targets, weights = take(records, make_config(augmented=False, train__batch_size=25), 1)[0]
    levels = np.bincount(images[:, 0, 0, 0], minlength=256)
    assert len(images) == len(weights) == len(targets["class_logits"]) == 25
    assert {int(levels[grey(index)]) for index in range(NUM_IMAGES)} == {2, 3}


@pytest.mark.parametrize("min_negatives", [0, 30])
def test_the_weight_is_the_batch_over_its_positives(records, min_negatives):
    config = make_config(train__batch_size=4, loss__min_negatives=min_negatives)
    for images, targets, weights in take(records, config, 3):
        positives = targets["box_deltas"][..., 4].sum()
        expected = len(images) / max(positives, 4 * min_negatives / 3, 1)
        np.testing.assert_allclose(weights, np.full(4, expected), rtol=1e-6)


def test_a_batch_without_positives_has_a_finite_weight(records):
    config = make_config(augmented=False)
    without = [w for images, _, w in take(records, config, NUM_IMAGES) if images[0, 0, 0, 0] == grey(0)]
    np.testing.assert_array_equal(without, [[1.0]])


def test_targets_of_the_stream_are_consistent(whole):
    for _, targets, _ in whole:
        labels, deltas = targets["class_logits"], targets["box_deltas"]
        np.testing.assert_array_equal(labels > 0, deltas[..., 4] == 1)
        assert set(np.unique(labels)) <= {-1, 0, 1, 2}
        assert np.isfinite(deltas).all()


def test_the_validation_pass_is_finite_in_order_and_whole(records):
    config = make_config(train__batch_size=4)
    batches = list(pipeline.validation_batches(records, ANCHORS, config).as_numpy_iterator())
    assert [len(images) for images, _, _ in batches] == [4, 4, 3]
    assert greys(batches) == [grey(index) for index in range(NUM_IMAGES)]
    for images, targets, weights in batches:
        assert (images == images[:, :1, :1, :1]).all()  # nothing augmented
        assert (images.dtype, weights.dtype) == (np.uint8, np.float32)
        assert (targets["class_logits"].dtype, targets["box_deltas"].dtype) == (np.int32, np.float32)
        positives = targets["box_deltas"][..., 4].sum()
        np.testing.assert_allclose(weights, np.full(len(images), len(images) / max(positives, 1)), rtol=1e-6)


def test_validation_and_unaugmented_training_give_the_same_targets(records):
    config = make_config(augmented=False)
    validation = pipeline.validation_batches(records, ANCHORS, config).as_numpy_iterator()
    expected = {int(images[0, 0, 0, 0]): (images, targets) for images, targets, _ in validation}
    for images, targets, _ in take(records, config, NUM_IMAGES):
        other_images, other_targets = expected[int(images[0, 0, 0, 0])]
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(targets["class_logits"], other_targets["class_logits"])
        np.testing.assert_allclose(targets["box_deltas"], other_targets["box_deltas"], atol=1e-4)


def test_difficult_boxes_are_ignored_unless_asked_for(records):
    found = {}
    for use in (False, True):
        config = make_config(data__use_difficult=use)
        batches = pipeline.validation_batches(records, ANCHORS, config).as_numpy_iterator()
        found[use] = next(itertools.islice(batches, 2, None))[1]["class_logits"]
    assert (found[False] == -1).any() and not (found[False] > 0).any()
    assert (found[True] == 1).any() and not (found[True] == -1).any()


def test_inference_batches_name_their_images(records):
    batches = list(pipeline.inference_batches(records, SIZE, "bilinear", 5).as_numpy_iterator())
    assert [len(images) for images, _, _ in batches] == [5, 5, 1]
    assert [name.decode() for _, names, _ in batches for name in names] == [str(i) for i in range(NUM_IMAGES)]
    for images, _, sizes in batches:
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(sizes, [[40, 60]] * len(images))


def test_one_record_is_enough(tmp_path):
    output = tmp_path / "one"
    output.mkdir()
    examples = draw_examples(tmp_path / "images", 2)[1:]
    writer.write_records(examples, LABELS, output, encoding.WriteOptions(workers=1))
    opened = reader.open_records(output)
    images, _, _ = take(opened, make_config(augmented=False, train__batch_size=3), 1)[0]
    assert images[:, 0, 0, 0].tolist() == [grey(1)] * 3


@pytest.mark.parametrize("size", [1, 3, 16])
def test_ids_of_a_step_are_those_of_its_batch(records, size):
    """Images are recognised by their grey, over the ends of epochs and in batches larger than the set."""
    config = make_config(augmented=False, train__batch_size=size)
    for step, batch in enumerate(take(records, config, 2 + 2 * NUM_IMAGES // size), 1):
        ids = pipeline.read_batch_ids(records, config, step)
        assert [grey(int(name)) for name in ids] == greys([batch])


def test_ids_of_records_that_have_none_are_places(records, tmp_path):
    path, serialized = str(tmp_path / "foreign.tfrecord"), []
    for data in reader.serialized_records(records).as_numpy_iterator():
        example = tf.train.Example.FromString(data)
        if len(serialized) % 2:
            example.features.feature["image/source_id"].bytes_list.value[0] = b""
        serialized.append(example.SerializeToString())
    with tf.io.TFRecordWriter(path) as opened:
        for data in serialized:
            opened.write(data)
    foreign, config = reader.open_records(path), make_config(augmented=False, train__batch_size=4)
    for step, batch in enumerate(take(foreign, config, 3), 1):
        assert [grey(int(name)) for name in pipeline.read_batch_ids(foreign, config, step)] == greys([batch])


# "disc" is in four of the images (3, 5, 7, 9), "cell" in these and five others, 0 and 2 hold nothing to train on.
REPEATED = {"data__balance": "repeat", "data__repeat_threshold": 1.0}
THINNED = {"data__balance": "downsample"}


def plan_epochs(records, config, num_epochs):
    """The images of each epoch as the plan has them, in record order."""
    plan = balance.make_plan(records, config)
    counts = [balance.count_showings(plan.rates, plan.phases, epoch) for epoch in range(num_epochs)]
    return [np.repeat(np.arange(NUM_IMAGES), count).tolist() for count in counts]


def read_order(records, config, count):
    """Which image each of the first examples is."""
    return [int(n) for n in pipeline.read_batch_ids(records, configs.replace(config, train__batch_size=count), 1)]


@pytest.mark.parametrize("leaves", [REPEATED, THINNED])
def test_balanced_epochs_show_what_their_plan_says(records, leaves):
    config = make_config(augmented=False, **leaves)
    epochs = plan_epochs(records, config, 12)
    count, orders = sum(map(len, epochs)), []
    seen = [(level - 20) // 20 for level in greys(take(records, config, count))]
    assert read_order(records, config, count) == seen
    for epoch in epochs:
        orders.append(tuple(seen[: len(epoch)]))
        assert sorted(orders[-1]) == epoch
        seen = seen[len(epoch) :]
    assert len({tuple(epoch) for epoch in epochs}) > 1 and len(set(orders)) == 12
    cell, disc, none = ((11 / 9) ** 0.5, (11 / 4) ** 0.5, 1) if leaves is REPEATED else (4 / 9, 1, 1)
    totals = np.bincount(np.concatenate(epochs), minlength=NUM_IMAGES)
    assert (np.abs(totals - 12 * np.array([none, cell, none, *[disc, cell] * 4])) < 1).all()
    assert (totals > 0).all()


@pytest.mark.parametrize(("leaves", "num_examples"), [(REPEATED, 13), (THINNED, 9)])
def test_a_balanced_stream_continues_at_every_example(tmp_path, leaves, num_examples):
    """Four images at rates of 1, sqrt 2 and 2, or of 1/2 and 1; a replay begins where its step does."""
    (tmp_path / "few").mkdir()
    writer.write_records(draw_examples(tmp_path / "images", 4), LABELS, tmp_path / "few", encoding.WriteOptions())
    few, config = reader.open_records(tmp_path / "few"), make_config(**leaves)
    assert num_examples > balance.make_plan(few, config).count_before(2)
    seen = read_order(few, config, num_examples)
    replayed = [pipeline.read_batch_ids(few, config, step + 1)[0] for step in range(num_examples)]
    assert [int(name) for name in replayed] == seen


def test_a_resumed_balanced_stream_augments_alike(records):
    config = make_config(train__batch_size=3, **REPEATED)
    whole = take(records, config, 12)  # two epochs and more
    check_equal(whole[7:], take(records, config, 5, 21))


def test_no_two_showings_of_an_image_are_alike(records):
    off = {f"augment__{part}_probability": 0.0 for part in ("color", "crop", "flip")}
    config = make_config(augment__expand_probability=1.0, **off, **REPEATED)
    first, second = plan_epochs(records, config, 2)
    order = read_order(records, config, len(first + second))
    images = [images[0] for images, _, _ in take(records, config, len(order))]
    assert sum(first.count(image) == 2 for image in range(NUM_IMAGES)) >= 2
    for image in range(NUM_IMAGES):
        looks = [images[place].tobytes() for place, found in enumerate(order) if found == image]
        assert len(set(looks)) == len(looks) == (first + second).count(image) >= 2


def test_without_balance_no_label_is_read(records, monkeypatch):
    monkeypatch.setattr(balance, "read_presence", None)
    pipeline.training_stream(records, ANCHORS, make_config())
    pipeline.read_batch_ids(records, make_config(), 1)
    with pytest.raises(TypeError):
        pipeline.read_batch_ids(records, make_config(**THINNED), 1)


MIXED = {"augment__mosaic_probability": 0.7, "train__steps": 10}


@pytest.mark.parametrize(
    ("workers", "num_workers", "start", "leaves"),
    [((0, 1, 2), 3, 7, REPEATED), ((1,), 2, 5, {**MIXED, **THINNED})],
)
def test_workers_share_the_batches_of_one(records, workers, num_workers, start, leaves):
    """Bit for bit; with a start that is a multiple neither of the workers nor of a mosaic's images."""
    config = make_config(train__batch_size=6, **leaves)
    whole = take(records, config, 3, start)
    for worker in workers:
        stream = pipeline.training_stream(records, ANCHORS, config, start, worker, num_workers)
        for batch, part in zip(whole, stream.take(3).as_numpy_iterator(), strict=True):
            shares = tf.nest.map_structure(lambda values: values[worker::num_workers], batch[:2])  # noqa: B023
            check_equal([shares], [part[:2]])
            assert len(part[2]) == 6 // num_workers
            positives = part[1]["box_deltas"][..., 4].sum()
            np.testing.assert_allclose(part[2], len(part[2]) / max(positives, 1), rtol=1e-6)


def test_a_worker_decodes_its_own_share_alone(records, tmp_path):
    """One image cannot be decoded: only the worker whose turn it is comes to grief."""
    path, config = str(tmp_path / "cut.tfrecord"), make_config(train__batch_size=2)
    with tf.io.TFRecordWriter(path) as opened:
        for place, data in enumerate(reader.serialized_records(records).as_numpy_iterator()):
            example = tf.train.Example.FromString(data)
            if place == 4:
                example.features.feature["image/encoded"].bytes_list.value[0] = b"no picture"
            opened.write(example.SerializeToString())
    cut = reader.RecordSet((path,), NUM_IMAGES, LABELS, (-1,))
    ids = [int(name) for step in range(1, 6) for name in pipeline.read_batch_ids(cut, config, step)]
    owner = ids.index(4) % 2
    streams = [pipeline.training_stream(cut, ANCHORS, config, 0, worker, 2).take(5) for worker in range(2)]
    assert len(list(streams[1 - owner])) == 5
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(streams[owner])


def test_a_batch_that_workers_cannot_share_is_an_error(records):
    with pytest.raises(ConfigError, match=r"^train\.batch_size: 4 is no multiple of 3 workers$"):
        pipeline.training_stream(records, ANCHORS, make_config(train__batch_size=4), 0, 0, 3)
