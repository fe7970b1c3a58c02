"""Checkpoints of TensorFlow 1, in both of its formats: the variables of the network alone."""

import contextlib
import glob
import math
import os
import re
from pathlib import Path

import numpy as np

from ssd_tf import fileio
from ssd_tf.errors import DataError, shown

_LIST = "checkpoint"  # the file in which TensorFlow keeps the names of a folder's checkpoints
_LIST_LIMIT = 8 << 20
_NEWEST = re.compile(r'^model_checkpoint_path: "([^"\n]+)"', re.MULTILINE)
_PART = re.compile(r"\.(index|meta|data-\d+-of-\d+)$")
_DATA = re.compile(r"\.data-(\d{5})-of-(\d{5})")
_TABLE = bytes.fromhex("57fb808b247547db")  # the end of a sorted table, which the older format is
_AVERAGE = "/ExponentialMovingAverage"


@contextlib.contextmanager
def open_checkpoint(path, averages=False):
    """Opens a checkpoint.

    Args:
      path: its prefix (model.ckpt), one of its files, or a folder: then the checkpoint that the folder's file
        `checkpoint` names, or the only one there is.
      averages: let the moving average of a variable stand for it.

    Yields:
      ({name: shape}, function from a name to its array, float32) of the floating-point variables. What optimizers
      keep beside a variable is left out, and so are moving averages, unless they are there alone: then they stand
      under the variable's name.

    Raises:
      DataError: no checkpoint, one that is cut, or a part of it missing; the caller names the file.
    """
    import tensorflow as tf

    prefix = _find_prefix(Path(path))
    size = _check_parts(prefix)
    with _reading(prefix):
        reader = tf.train.load_checkpoint(str(prefix))
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
        types = reader.get_variable_to_dtype_map()
    numbers = [name for name in shapes if types[name] in (tf.float16, tf.float32, tf.float64)]
    stored = _variables(numbers)
    if averages:
        stored |= {name: f"{name}{_AVERAGE}" for name in stored if f"{name}{_AVERAGE}" in numbers}

    def read(name):
        # A damaged index could make the reader ask for more memory than there is.
        if math.prod(shapes[stored[name]]) > size:
            raise DataError(f"{shown(name)[:80]} is larger than the checkpoint")
        with _reading(prefix):
            array = reader.get_tensor(stored[name])
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused later
            return array.astype(np.float32, copy=False)

    yield {name: shapes[source] for name, source in sorted(stored.items())}, read


def is_checkpoint(path):
    """Tells whether a path is the prefix, a part or the folder of a checkpoint, by names and last bytes."""
    path = Path(path)
    if os.path.isdir(path):  # which takes names that are too long, too
        return (path / _LIST).is_file() or any(path.glob("*.index"))
    named = _PART.search(path.name) or os.path.isfile(f"{path}.index")
    return bool(named) or (os.path.isfile(path) and _last_bytes(path, len(_TABLE)) == _TABLE)


def _last_bytes(path, count):
    try:
        with open(path, "rb") as file:
            file.seek(-min(count, path.stat().st_size), os.SEEK_END)
            return file.read(count)
    except OSError:  # what is wrong with it is told when it is read
        return b""


def _find_prefix(path):
    """The prefix of a checkpoint's files."""
    if not path.is_dir():
        return path.with_name(_PART.sub("", path.name))
    if (path / _LIST).is_file():
        return path / _read_newest(path / _LIST)
    prefixes = sorted(entry.name.removesuffix(".index") for entry in path.glob("*.index"))
    if len(prefixes) != 1:
        names = ", ".join(map(shown, prefixes[:3]))
        several = f"several checkpoints ({names[:160]}); name the one that is meant"
        raise DataError(f"the folder holds {several if prefixes else 'no checkpoint'}")
    return path / prefixes[0]


def _read_newest(path):
    """The name of the checkpoint that a folder's list has as its newest; it may have been written elsewhere."""
    try:
        text = fileio.read_text(path, _LIST_LIMIT)
    except DataError as error:
        raise DataError(str(error).replace(shown(path), path.name)) from None
    found = _NEWEST.search(text)
    name = re.split(r"[/\\]", found[1])[-1] if found else ""
    if not name.isprintable() or name in ("", ".", ".."):
        raise DataError(f"its file {_LIST} names no checkpoint")
    return name


def _check_parts(prefix):
    """The bytes that a checkpoint's files have together; a DataError if one of them is missing."""
    index = prefix.with_name(prefix.name + ".index")
    if not index.is_file() and not prefix.is_file():
        raise DataError(f"there is neither {shown(prefix.name)[:80]}.index nor {shown(prefix.name)[:80]}")
    table = index if index.is_file() else prefix  # the older format is one file
    if _last_bytes(table, len(_TABLE)) != _TABLE:
        named = f": {shown(index.name)[:80]}" if table == index else ""
        raise DataError(f"not a TensorFlow checkpoint, or cut{named}")
    if table == prefix:
        return prefix.stat().st_size
    parts = {}
    for name in glob.glob(f"{glob.escape(str(prefix))}.data-*"):
        match = _DATA.fullmatch(name[len(str(prefix)) :])
        if match:
            parts[int(match[1])] = (int(match[2]), os.path.getsize(name))
    total = max((count for count, _ in parts.values()), default=1)
    for number in range(total):
        if number not in parts:
            raise DataError(f"{shown(prefix.name)[:80]}.data-{number:05}-of-{total:05} is missing")
    return sum(size for _, size in parts.values()) + index.stat().st_size


@contextlib.contextmanager
def _reading(prefix):
    """Turns TensorFlow's errors into one line; the caller names the folder."""
    try:
        yield
    except Exception as error:  # OpError, ValueError, RuntimeError and others, as the format has it
        lines = str(error).replace(f"{prefix.parent}/", "").splitlines() or [type(error).__name__]
        raise DataError(f"cannot read the checkpoint: {shown(lines[0])[:160]}") from None


def _variables(names):
    """{name of a variable: name that its values stand under}, without what is kept beside variables."""
    known = set(names)
    found = {name: name for name in names if name.rpartition("/")[0] not in known}
    averages = {name for name in found if name.endswith(_AVERAGE)}
    return {name.removesuffix(_AVERAGE) if name in averages else name: name for name in found}
