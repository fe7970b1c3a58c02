"""Shards to batches.

The order of an epoch is a function of (seed, epoch), an image's augmentation one of (seed, epoch, image) and of
which of its showings in that epoch it is: so a stream can be continued anywhere by skipping serialized records,
before anything is decoded, and be divided among workers.
"""

import tensorflow as tf

from ssd_tf import images
from ssd_tf.boxes import matcher
from ssd_tf.data import augment, balance, mixing, targets
from ssd_tf.errors import ConfigError
from ssd_tf.records import reader, schema

_OPEN_SHARDS = 4
_COPY_BITS = 24  # of a draw's number; those below count epochs
GROUP = mixing.NUM_IMAGES


def training_stream(records, anchors, config, start=0, worker=0, num_workers=1):
    """Builds the endless stream of augmented batches.

    Args:
      records: records.reader.RecordSet.
      anchors: float32 [A, 4], yxyx normalised.
      config: Config.
      start: examples already consumed, by all workers together; the stream goes on after them.
      worker: which of them this is, from 0 on: it has every num_workers-th example, beginning with this one.
      num_workers: processes that share the stream. Their k-th batches together are the k-th batch of one.

    Returns:
      tf.data.Dataset of (uint8 [B, H, W, 3], {"class_logits": int32 [B, A], "box_deltas": float32 [B, A, 5]},
      float32 [B] weight); every batch is full: B = train.batch_size / num_workers. The weight is that of this
      worker's batch alone.

    Raises:
      ConfigError: train.batch_size is no multiple of num_workers.
    """
    if config.train.batch_size % num_workers:
        raise ConfigError(f"train.batch_size: {config.train.batch_size} is no multiple of {num_workers} workers")
    num_classes = len(records.label_map)

    def prepare(serialized, draw):
        drawn = augment.augment(*_drawable(serialized, draw, num_classes, config), *_style(config))
        return drawn[0], _targets(*drawn[1:], anchors, config)

    def prepare_mixed(number, group):
        parts = [
            _drawable(serialized, draw, num_classes, config)
            for serialized, draw in zip(tf.unstack(group[0], GROUP), tf.unstack(group[1], GROUP), strict=True)
        ]
        image, *objects = mixing.mix(parts, number < last_mixed, *_style(config))
        return image, _targets(*objects, anchors, config)

    if config.augment.mosaic_probability or config.augment.mixup_probability:
        last_mixed = round(config.train.steps * (1 - config.augment.plain_last)) * config.train.batch_size
        examples, prepare = _grouped_examples(records, config, start).enumerate(start), prepare_mixed
    else:
        examples = _shuffled_examples(records, config, start)
    dataset = examples.shard(num_workers, worker).map(prepare, tf.data.AUTOTUNE, deterministic=True)
    dataset = dataset.batch(config.train.batch_size // num_workers, drop_remainder=True)
    return _weighted(dataset, config).prefetch(tf.data.AUTOTUNE)


def _style(config):
    """How augmentation is to draw."""
    return config.model.image_size, config.augment, config.data.resize


def _drawable(serialized, draw, num_classes, config):
    """A record as augmentation takes it: sample, ignored boxes, and the seed of its own draw."""
    sample = reader.parse_checked(serialized, num_classes)
    # With the image itself: sets of several origins share ids, foreign records may have none.
    identity = tf.strings.join([sample["source_id"], sample["image"]])
    key = tf.strings.to_hash_bucket_fast(identity, 2**62)
    return sample, _ignored(sample, config), tf.stack([key, config.train.seed * 2**32 + draw])


def _grouped_examples(records, config, start):
    """(serialized [4], draw [4]): each of the stream's examples, then the other three of its four neighbours."""

    def turned(serialized, draw):
        places = (tf.range(GROUP)[:, None] + tf.range(GROUP)) % GROUP
        return tf.data.Dataset.from_tensor_slices((tf.gather(serialized, places), tf.gather(draw, places)))

    examples = _shuffled_examples(records, config, start - start % GROUP).batch(GROUP, drop_remainder=True)
    return examples.flat_map(turned).skip(start % GROUP)


def read_batch_ids(records, config, step):
    """Replays the training stream to one step, without decoding an image.

    Args:
      records: records.reader.RecordSet.
      config: Config.
      step: step of the training, from 1 on.

    Returns:
      list of the source ids (see records.reader.image_id) of that step's batch, in its order.
    """
    size = config.train.batch_size
    batch = _shuffled_examples(records, config, (step - 1) * size).take(size)
    found = [serialized for serialized, _ in batch.as_numpy_iterator()]
    ids = [schema.parse(serialized)["source_id"].numpy() for serialized in found]
    wanted = {serialized for serialized, own in zip(found, ids) if not own}
    numbered = reader.serialized_records(records).enumerate().as_numpy_iterator() if wanted else ()
    places = {serialized: place for place, serialized in numbered if serialized in wanted}
    return [
        reader.image_id(tf.constant(own), places.get(serialized, 0)).numpy().decode("utf-8", "surrogateescape")
        for serialized, own in zip(found, ids)
    ]


def _shuffled_examples(records, config, start):
    """(serialized, draw) of all epochs, from example `start` on; no image has the same draw twice."""
    seed = tf.constant(config.train.seed, tf.int64)
    shards = [tf.constant(records.files), tf.constant(records.counts, tf.int64)]
    read, (first, done) = _read_once, divmod(start, records.num_examples)
    if config.data.balance != "none":
        plan = balance.make_plan(records, config)
        shards.append(tf.constant(plan.offsets))
        read, (first, done) = _reader_by(plan), plan.find(start)
    epochs = tf.data.Dataset.range(first, tf.int64.max)
    examples = epochs.flat_map(lambda epoch: _epoch(shards, read, config.data.shuffle_buffer, seed, epoch))
    return examples.skip(done)


def _epoch(shards, read, buffer, seed, epoch):
    """(serialized, draw) of one pass, shuffled by (seed, epoch)."""
    tf.random.set_seed(1)  # of this traced function alone: the caller's global seed must not change the order
    order = tf.argsort(tf.random.stateless_uniform(tf.shape(shards[0]), [seed, epoch]))
    shards = tf.data.Dataset.from_tensor_slices(tuple(tf.gather(part, order) for part in shards))
    examples = shards.interleave(lambda *shard: read(epoch, *shard), cycle_length=_OPEN_SHARDS)
    return examples.shuffle(buffer, seed=seed * 2**32 + epoch, reshuffle_each_iteration=False)


def _read_once(epoch, file, count):
    """(serialized, epoch) of a shard's records."""
    return reader.shard_records(file, count).map(lambda serialized: (serialized, epoch))


def _reader_by(plan):
    """Function (epoch, file, count, offset) -> (serialized, draw) of a shard's records as often as a plan says."""
    rates, phases = tf.constant(plan.rates), tf.constant(plan.phases)

    def read(epoch, file, count, offset):
        def showings(image, serialized):
            number = balance.count_showings(tf.gather(rates, image), tf.gather(phases, image), epoch)
            return tf.data.Dataset.range(number).map(lambda copy: (serialized, epoch + copy * 2**_COPY_BITS))

        return reader.shard_records(file, count).enumerate(offset).flat_map(showings)

    return read


def _ignored(sample, config):
    return sample["crowd"] if config.data.use_difficult else sample["crowd"] | sample["difficult"]


def _targets(boxes, classes, ignore, anchors, config):
    settings = config.matcher
    return targets.build_targets(boxes, classes, ignore, anchors, settings.iou_threshold, settings.forced)


def _weighted(dataset, config):
    """Adds the sample weight that makes the loss the paper's (boxes.matcher.batch_weight)."""

    def add_weight(image, target):
        size = tf.shape(image)[0]
        positives = tf.reduce_sum(target["box_deltas"][..., 4])
        weight = matcher.batch_weight(positives, size, config.loss.min_negatives)
        return image, target, tf.fill([size], weight)

    return dataset.map(add_weight)


def validation_batches(records, anchors, config):
    """Builds one finite pass without augmentation, in record order; the last batch may be smaller.

    Args and Returns: as training_stream.
    """

    def prepare(serialized):
        sample = reader.parse_checked(serialized, len(records.label_map))
        ignore = _ignored(sample, config)
        image = plain_image(sample["image"], config.model.image_size, config.data.resize)
        return image, _targets(sample["boxes"], sample["classes"], ignore, anchors, config)

    dataset = reader.serialized_records(records).map(prepare, tf.data.AUTOTUNE)
    dataset = dataset.batch(config.train.batch_size)
    return _weighted(dataset, config).prefetch(tf.data.AUTOTUNE)


def plain_image(encoded, image_size, resize_rule):
    """Decodes and resizes a record's image as the predictor does: uint8 [H, W, 3]."""
    image = images.to_uint8(images.resize(images.decode(encoded), image_size, resize_rule))
    return tf.ensure_shape(image, [*image_size, 3])


def inference_batches(records, image_size, resize_rule, batch_size):
    """Builds one finite pass of images without targets, in record order.

    Args:
      records: records.reader.RecordSet.
      image_size: (height, width) of the network input, pixels.
      resize_rule: see images.resize.
      batch_size: images a batch; the last one may be smaller.

    Returns:
      tf.data.Dataset of (uint8 [B, H, W, 3], string [B] source ids, int32 [B, 2] (height, width) of the images).
    """

    def prepare(index, serialized):
        sample = schema.parse(serialized)
        image = plain_image(sample["image"], image_size, resize_rule)
        size = tf.stack([sample["height"], sample["width"]])
        return image, reader.image_id(sample["source_id"], index), size

    dataset = reader.serialized_records(records).enumerate().map(prepare, tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)
