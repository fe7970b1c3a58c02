"""How often each image is shown, so that classes are seen more evenly.

Every image has a rate: how often an epoch shows it on average. In all epochs up to the e-th it is shown
floor(rate * e + phase) times, so it comes round evenly, and how many examples come before an epoch is known
without going through them.

"repeat" is repeat-factor sampling (arXiv 1908.03195, appendix B): a class in the share f of the images has the
rate max(1, sqrt(threshold / f)), an image the highest one of its classes. Its fraction is not drawn anew in each
epoch, but adds up.

"downsample" shows of each class as many images as the rarest has, as the balance_data option of pytorch-ssd does.
Departures from it: another part of the images in each epoch, so that none is left out for good; an image that is
shown for one class counts for its others too, so that no more are shown than needed; images without objects are
kept, as many as of a class.
"""

import bisect
import functools
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from ssd_tf.errors import DataError, shown
from ssd_tf.records import negatives, reader

NO_OBJECT = 0  # the "class" of images without objects
_UNIT = 2**30  # rates are integers in these parts: NumPy and TensorFlow then agree on every showing
_CHUNK = 1024  # records whose classes leave TensorFlow together
_NUM_SHOWN = 8  # classes that a line names


@dataclass(frozen=True)
class Presence:
    """Which classes have objects in which images.

    Attributes:
      shard_sizes: int64 [S], images in each shard.
      images: int64 [P], places in the records, 0..N - 1.
      classes: int64 [P], a class in that image, 1..C, each once; or NO_OBJECT alone.
    """

    shard_sizes: np.ndarray
    images: np.ndarray
    classes: np.ndarray

    @property
    def num_images(self):
        """N."""
        return int(self.shard_sizes.sum())

    def count_images(self):
        """Returns int64 [1 + highest class]: how many images hold each."""
        return np.bincount(self.classes)


@dataclass(frozen=True)
class Plan:
    """Which images each epoch shows, and how often.

    Attributes:
      offsets: int64 [S], images before each shard.
      rates: int64 [N], showings an epoch in parts of 2**30.
      phases: int64 [N], likewise, below 1.
    """

    offsets: np.ndarray
    rates: np.ndarray
    phases: np.ndarray

    def count_before(self, epoch):
        """Returns how many examples all epochs before `epoch` have."""
        return int(((self.rates * epoch + self.phases) // _UNIT).sum())

    def find(self, start):
        """Returns (the epoch that holds example number `start`, how many of its examples come before that)."""
        highest = (start + len(self.rates)) * _UNIT // int(self.rates.sum()) + 1
        epoch = bisect.bisect_right(range(highest + 1), start, key=self.count_before) - 1
        return epoch, start - self.count_before(epoch)


def count_showings(rate, phase, epoch):
    """Returns how often an epoch shows an image.

    Args:
      rate, phase: int64 of Plan, scalars or arrays, of NumPy or TensorFlow.
      epoch: int64, from 0 on.

    Returns:
      int64 like `rate`.
    """
    return (rate * (epoch + 1) + phase) // _UNIT - (rate * epoch + phase) // _UNIT


def make_plan(records, config):
    """Makes the plan of a recipe; reads the labels of all records once in a process.

    Args:
      records: records.reader.RecordSet.
      config: Config; data.balance is not "none".

    Returns:
      Plan.

    Raises:
      DataError: no image holds an object that is trained on.
    """
    presence = read_presence(records, config.data.use_difficult)
    if not presence.classes.any():
        kind = config.data.balance
        raise DataError(f"data.balance={kind}: no image holds an object to train on: {shown(records.files[0])}")
    rates = np.round(image_rates(presence, config.data) * _UNIT).astype(np.int64)
    offsets = np.cumsum(presence.shard_sizes) - presence.shard_sizes
    return Plan(offsets, rates, _draw_phases(rates, config.train.seed))


def image_rates(presence, settings):
    """Computes how often images are to be shown.

    Args:
      presence: Presence, with a class.
      settings: config.DataConfig; balance is not "none".

    Returns:
      float64 [N], showings an epoch on average: >= 1 for "repeat", in (0, 1] for "downsample".
    """
    counts = presence.count_images()
    held = np.maximum(counts, 1)
    if settings.balance == "repeat":
        rates = np.maximum(np.sqrt(settings.repeat_threshold * presence.num_images / held), 1.0)
        rates[NO_OBJECT] = 1.0
    else:
        rarest = counts[1:][counts[1:] > 0].min()
        rates = np.minimum(rarest / held, 1.0)
    highest = np.zeros(presence.num_images)
    np.maximum.at(highest, presence.images, rates[presence.classes])
    return highest


def _draw_phases(rates, seed):
    """int64 [N]. Those of equal rates lie evenly: of these images every epoch shows as many, one more or less."""
    draws = np.random.Philox(seed).random_raw(len(rates))  # raw numbers stay the same in every version of NumPy
    order, phases = np.argsort(draws, kind="stable"), np.empty_like(rates)
    for rate in np.unique(rates):
        members = order[rates[order] == rate]
        shift = int(draws[members[0]]) % _UNIT
        phases[members] = (np.arange(len(members)) * _UNIT + shift) // len(members)
    return phases


def read_presence(records, use_difficult):
    """Reads which classes have objects in which images, once in a process for records that stay as they are.

    Args:
      records: records.reader.RecordSet.
      use_difficult: whether difficult objects are trained on; crowds never are.

    Returns:
      Presence.

    Raises:
      DataError, EnvironmentFault: records that cannot be read.
    """
    with reader.record_errors(records):
        states = [tf.io.gfile.stat(file) for file in records.files]
        return _read_presence(records, use_difficult, tuple((state.length, state.mtime_nsec) for state in states))


@functools.lru_cache(maxsize=4)
def _read_presence(records, use_difficult, _states):
    num_classes = len(records.label_map)

    def classes(serialized):
        sample = reader.parse_checked(serialized, num_classes)
        ignored = sample["crowd"] if use_difficult else sample["crowd"] | sample["difficult"]
        return tf.unique(tf.boolean_mask(sample["classes"], ~ignored)).y

    def shard_classes(index, shard):
        found = reader.shard_records(*shard).map(classes, tf.data.AUTOTUNE, deterministic=True)
        return found.ragged_batch(_CHUNK).map(lambda rows: (index, rows.values, rows.row_lengths()))

    shards = tf.data.Dataset.from_tensor_slices((list(records.files), list(records.counts))).enumerate()
    chunks = list(shards.flat_map(shard_classes).as_numpy_iterator())
    sizes = np.zeros(len(records.files), np.int64)
    for index, _, lengths in chunks:
        sizes[index] += len(lengths)
    values, lengths = (np.concatenate([chunk[column] for chunk in chunks]).astype(np.int64) for column in (1, 2))
    empty = np.flatnonzero(lengths == 0)
    images = np.concatenate([np.repeat(np.arange(len(lengths)), lengths), empty])
    return Presence(sizes, images, np.concatenate([values, np.full(len(empty), NO_OBJECT)]))


def describe(records, config):
    """Says what data.balance does, and what images without objects are for.

    Args:
      records: records.reader.RecordSet.
      config: Config with train.seed.

    Returns:
      list of lines; with data.balance=none no record is read for it.
    """
    lines = _describe_balance(records, config) if config.data.balance != "none" else []
    taught = config.loss.classification == "focal" or config.loss.min_negatives
    if num_empty := 0 if taught else negatives.count_empty(records):
        who = "1 image has no objects: it teaches"
        who = who if num_empty == 1 else f"{num_empty:,} images have no objects: they teach"
        lines.append(f"{who} what background is with --set loss.min_negatives=3")
    return lines


def _describe_balance(records, config):
    presence = read_presence(records, config.data.use_difficult)
    plan = make_plan(records, config)
    weights = plan.rates / _UNIT
    before = np.bincount(presence.classes, minlength=len(records.label_map) + 1)[1:]
    after = np.bincount(presence.classes, weights[presence.images], len(before) + 1)[1:]
    rarest = [place for place in np.argsort(before, kind="stable") if before[place]]
    names = records.label_map.names
    parts = [f"{shown(names[k])} {before[k]:,} → {round(after[k]):,}" for k in rarest[:_NUM_SHOWN]]
    if len(rarest) > _NUM_SHOWN:
        parts.append(f"{len(rarest) - _NUM_SHOWN} more classes")
    total = f"{presence.num_images:,} → {round(weights.sum()):,} images an epoch"
    return [f"data.balance={config.data.balance}: {total} ({', '.join(parts)})"]
