"""Frozen graphs of TensorFlow 1: the constants of a GraphDef, read as arrays. The graph is never run."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ssd_tf import fileio
from ssd_tf.errors import DataError, shown

_LIMIT = (2 << 30) - 1  # of protobuf
_MOST_DIMENSIONS = 8
_MOST_VALUES = 1 << 28  # of a constant, however few bytes say so
# {protobuf's number of a type: (how its bytes lie, the field of its single values)}
_TYPES = {
    1: ("<f4", "float_val"),
    2: ("<f8", "double_val"),
    3: ("<i4", "int_val"),
    9: ("<i8", "int64_val"),
    19: ("<f2", "half_val"),
}
_SAVED_MODEL = b"\x08"  # its first field is a version, that of a graph a node


@dataclass(frozen=True)
class Graph:
    """What a file with a graph tells without being run.

    Attributes:
      operations: {name of a node: its operation}.
      epsilons: those of its fused batch norms.
      shapes: {name of a constant that is a number or an array of numbers: shape}.
      read: function from such a name to its array, float32.
    """

    operations: dict[str, str]
    epsilons: frozenset[float]
    shapes: dict[str, tuple[int, ...]]
    read: Callable


@contextlib.contextmanager
def open_frozen_graph(path):
    """Opens a GraphDef as tools for freezing write it (frozen_inference_graph.pb).

    Args:
      path: the file.

    Yields:
      ({name: shape}, function from a name to its array, float32) of the constants that hold numbers.

    Raises:
      DataError: no graph, or cut; the caller names the file.
    """
    graph = read_graph(path)
    yield graph.shapes, graph.read


def read_graph(path):
    """Returns the Graph of a file; see open_frozen_graph."""
    nodes = {}
    for node in _parse(path).node:
        if node.name in nodes:
            raise DataError(f"not a frozen graph: two nodes are called {shown(node.name)[:80]}")
        nodes[node.name] = node
    tensors = {name: node.attr["value"].tensor for name, node in nodes.items() if _is_constant(node)}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.dtype in _TYPES}
    shapes = {name: _shape(name, tensor.tensor_shape) for name, tensor in tensors.items()}
    return Graph(
        {name: node.op for name, node in nodes.items()},
        frozenset(_epsilons(nodes.values())),
        shapes,
        lambda name: _decode(name, tensors[name], shapes[name]),
    )


def _parse(path):
    """The GraphDef of a file, with one node at least."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework.graph_pb2 import GraphDef

    try:
        data = fileio.read_bytes(path, _LIMIT)
    except DataError as error:
        raise DataError(str(error).removesuffix(f": {shown(path)}")) from None
    if data.startswith(_SAVED_MODEL):
        raise DataError("not a frozen graph: it looks like the saved_model.pb of a SavedModel")
    graph = GraphDef()
    try:
        graph.ParseFromString(data)
    except DecodeError:
        raise DataError("not a frozen graph, or cut") from None
    if not graph.node:
        raise DataError("not a frozen graph: it has no nodes")
    return graph


def _is_constant(node):
    return node.op == "Const" and "value" in node.attr


def _epsilons(nodes):
    for node in nodes:
        if node.op.startswith("FusedBatchNorm") and "epsilon" in node.attr:
            yield node.attr["epsilon"].f


def _shape(name, shape):
    sizes = tuple(axis.size for axis in shape.dim)
    if shape.unknown_rank or len(sizes) > _MOST_DIMENSIONS or any(size < 0 for size in sizes):
        raise DataError(f"{shown(name)[:80]}: a constant without a shape")
    check_size(name, sizes)
    return sizes


def check_size(name, shape):
    """Raises DataError where the shape of a constant, none of its sizes below zero, is beyond belief."""
    if math.prod(max(size, 1) for size in shape) > _MOST_VALUES:
        raise DataError(f"refused: {shown(name)[:80]} claims to hold more than {_MOST_VALUES:,} values")


def _decode(name, tensor, shape):
    """The array of a tensor; one that repeats its last value takes no memory for that."""
    kind, field = _TYPES[tensor.dtype]
    count = math.prod(shape)
    if tensor.tensor_content:
        if len(tensor.tensor_content) != count * np.dtype(kind).itemsize:
            raise DataError(f"{shown(name)[:80]} has another number of values than its shape says")
        return _as_float32(np.frombuffer(tensor.tensor_content, kind)).reshape(shape)
    values = np.array(getattr(tensor, field), "<u2" if field == "half_val" else kind)
    values = _as_float32(values.view("<f2") if field == "half_val" else values)
    if len(values) > count:
        raise DataError(f"{shown(name)[:80]} has another number of values than its shape says")
    if len(values) in (0, 1):
        return np.broadcast_to(values[0] if len(values) else np.float32(0), shape)
    return np.concatenate([values, np.repeat(values[-1:], count - len(values))]).reshape(shape)


def _as_float32(array):
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is refused later
        return array.astype(np.float32)
