"""TensorFlow.js graph models: a model.json and the shards that it lists, read as arrays; the graph is not run.

Grappler, which writes them, folds batch norms: a convolution's kernel holds the scale already, a depthwise one's
scale stands beside it, and of both a shift is left. They are given back the names and arrays of a batch norm that
does the same.
"""

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssd_tf import fileio
from ssd_tf.errors import DataError, is_text, shown
from ssd_tf.pretrained.frozen_graph import Graph, check_size

# The variance that a batch norm of TensorFlow's usual epsilon divides by exactly 1.
FOLDED_VARIANCE = np.float32(1) - np.float32(1e-3)
_JSON_LIMIT = 64 << 20
_START = 64
_BLANK = b"\xef\xbb\xbf \t\r\n"  # what may stand before the first brace
_MOST_DIMENSIONS = 8
_TYPES = {"float32": "<f4", "int32": "<i4", "bool": "u1", "uint8": "u1", "uint16": "<u2", "float16": "<f2"}
# What quantisation makes of them.
_STORED = {"float32": ("uint8", "uint16", "float16"), "int32": ("uint8", "uint16")}
_KERNEL, _SCALE, _SHIFT = "/Conv2D/merged_input", "/batchnorm/mul", "/batchnorm/sub"


@dataclass(frozen=True)
class _Entry:
    """An array of a group: stored type, shape, first byte; what is stored times `scale` plus `low` is meant."""

    kind: str
    shape: tuple[int, ...]
    start: int
    scale: float
    low: float

    @property
    def size(self):
        return math.prod(self.shape) * np.dtype(self.kind).itemsize


@contextlib.contextmanager
def open_tfjs(path):
    """Opens a graph model; all its shards are read at once.

    Args:
      path: model.json, or the folder that holds it.

    Yields:
      ({name: shape}, function from a name to its array, float32), under the names that a network without folded
      batch norms gives them.

    Raises:
      DataError: no graph model, or a shard that is missing, cut or too long; the caller names the file.
    """
    graph = read_graph(path)
    yield graph.shapes, graph.read


def read_graph(path):
    """Returns the frozen_graph.Graph of a model; see open_tfjs."""
    path = Path(path)
    path = path / "model.json" if path.is_dir() else path
    topology, manifest = _read_model(path)
    arrays = {}
    for group in manifest:
        entries = _entries(group)
        data = _read_shards(path.parent, group["paths"], sum(entry.size for entry in entries.values()))
        arrays |= {name: _decode(entry, data) for name, entry in entries.items()}
    arrays = _unfold(arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    nodes = [node for node in topology["node"] if isinstance(node, dict)]
    operations = {str(node.get("name")): str(node.get("op")) for node in nodes}
    return Graph(operations, frozenset(_epsilons(nodes)), shapes, arrays.__getitem__)


def _epsilons(nodes):
    for node in nodes:
        attributes = node.get("attr")
        epsilon = attributes.get("epsilon") if isinstance(attributes, dict) else None
        if "BatchNorm" in str(node.get("op")) and isinstance(epsilon, dict) and _is_number(epsilon.get("f")):
            yield float(epsilon["f"])


def _read_model(path):
    """(modelTopology, weightsManifest) of a model.json."""
    with _without_folder(path):
        start = fileio.read_bytes(path, count=_START).lstrip(_BLANK)
        if start and not start.startswith(b"{"):
            raise DataError("not a TensorFlow.js model.json")
        content = fileio.read_json(path, _JSON_LIMIT)
    content = content if isinstance(content, dict) else {}
    topology, manifest = content.get("modelTopology"), content.get("weightsManifest")
    if not isinstance(manifest, list) or not isinstance(topology, dict):
        raise DataError("no TensorFlow.js model: it has no modelTopology and weightsManifest")
    if not isinstance(topology.get("node"), list):
        raise DataError("a TensorFlow.js model of Keras layers, expected a graph model (modelTopology.node)")
    names = [entry.get("name") for group in manifest for entry in _checked_group(group)]
    if not all(map(is_text, names)) or len(set(names)) < len(names):
        raise DataError("weightsManifest: two weights of one name, or one without")
    return topology, manifest


def _checked_group(group):
    """The weights of a group, if it is one."""
    weights, paths = (group.get(key) if isinstance(group, dict) else None for key in ("weights", "paths"))
    sound = isinstance(weights, list) and all(isinstance(entry, dict) for entry in weights)
    if not sound or not isinstance(paths, list) or not all(is_text(name) and "\0" not in name for name in paths):
        raise DataError("weightsManifest: a group is expected to have paths and weights")
    return weights


def _entries(group):
    """{name: _Entry} of a group, in the order of their bytes."""
    entries, start = {}, 0
    for item in group["weights"]:
        entry = _entry(item, start)
        entries[item["name"]] = entry
        start += entry.size
    return entries


def _entry(item, start):
    where = shown(item["name"])[:80]
    shape, kind, quantization = (item.get(key) for key in ("shape", "dtype", "quantization"))
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS or not all(map(_is_count, shape)):
        raise DataError(f"{where}: its shape is no list of numbers")
    check_size(item["name"], shape)
    if not isinstance(kind, str) or kind not in ("float32", "int32", "bool"):
        raise DataError(f"{where} is of type {shown(kind)[:40]}, expected float32, int32 or bool")
    if quantization is None:
        return _Entry(_TYPES[kind], tuple(shape), start, 1.0, 0.0)
    stored, scale, low = _quantization(quantization)
    if stored not in _STORED.get(kind, ()) or not all(map(_is_number, (scale, low))):
        raise DataError(f"{where}: quantization of an unknown kind")
    return _Entry(_TYPES[stored], tuple(shape), start, scale, low)


def _quantization(value):
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        return None, None, None
    if value["dtype"] == "float16":
        return "float16", 1.0, 0.0
    return value["dtype"], value.get("scale"), value.get("min")


def _is_count(value):
    return type(value) is int and 0 <= value < 1 << 40


def _is_number(value):
    return type(value) in (int, float) and abs(value) < 1e30


def _read_shards(folder, names, expected):
    """The bytes of a group's shards, one after the other."""
    paths = [fileio.safe_join(folder, name) for name in names]
    sizes = []
    for path in paths:
        with _without_folder(path):
            sizes.append(_size(path))
    if sum(sizes) != expected:
        raise DataError(_describe_sizes(names, sizes, expected))
    parts = []
    for path, size in zip(paths, sizes, strict=True):
        with _without_folder(path):
            parts.append(fileio.read_bytes(path, size))
        if len(parts[-1]) != size:
            raise DataError(f"{shown(path.name)} changed while it was read")
    return b"".join(parts)


def _size(path):
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        raise DataError(f"no such file: {shown(path)}") from None
    except OSError as error:
        raise DataError(f"cannot read: {os.strerror(error.errno).lower()}: {shown(path)}") from None


def _describe_sizes(names, sizes, expected):
    """What is wrong with shards of these sizes; all but the last are of one size."""
    what = "cut" if sum(sizes) < expected else "too long, or of another model"
    usual = max(set(sizes[:-1]), key=sizes[:-1].count, default=0)
    odd = next((index for index, size in enumerate(sizes[:-1]) if size != usual), len(sizes) - 1)
    which = f"{shown(names[odd])[:80]} is {what}" if names else "there are none"
    return f"the shards hold {sum(sizes):,} bytes, model.json lists {expected:,}: {which}"


@contextlib.contextmanager
def _without_folder(path):
    """Names a file in errors by its last part: the caller names the folder."""
    try:
        yield
    except DataError as error:
        raise DataError(str(error).replace(shown(path), shown(path.name)[:80])) from None


def _decode(entry, data):
    """The array of an entry, float32."""
    array = np.frombuffer(data, entry.kind, math.prod(entry.shape), entry.start).reshape(entry.shape)
    if (entry.scale, entry.low) == (1.0, 0.0):
        return array.astype(np.float32)
    return (array.astype(np.float64) * entry.scale + entry.low).astype(np.float32)


def _unfold(arrays):
    """The arrays under the names of a network whose batch norms are not folded."""
    unfolded = {}
    for name, array in arrays.items():
        if name.endswith(_KERNEL):
            unfolded[name.removesuffix(_KERNEL) + "/weights"] = array
        elif name.endswith(_SCALE):
            unfolded[name.removesuffix(_SCALE) + "/gamma"] = array
        elif name.endswith(_SHIFT):
            unfolded |= _batch_norm(name.removesuffix(_SHIFT), array, arrays)
        else:
            unfolded[name] = array
    return unfolded


def _batch_norm(prefix, shift, arrays):
    """The arrays of a batch norm that adds a shift; its scale, where it has one, is another array."""
    scale = {} if prefix + _SCALE in arrays else {f"{prefix}/gamma": np.ones_like(shift)}
    return scale | {
        f"{prefix}/beta": shift,
        f"{prefix}/moving_mean": np.zeros_like(shift),
        f"{prefix}/moving_variance": np.full_like(shift, FOLDED_VARIANCE),
    }
