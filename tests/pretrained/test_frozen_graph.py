"""Constants of frozen graphs are read as TensorFlow itself reads them; nothing in a graph is run."""

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.errors import DataError
from ssd_tf.pretrained import frozen_graph

ARRAYS = {
    "floats": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
    "doubles": np.array([[0.25], [1e300]]),
    "ints": np.array([3, -4], np.int32),
    "longs": np.array(1 << 40),
    "halves": np.array([0.5, -2, 7], np.float16),
    "repeated": np.full((2, 2), 0.125, np.float32),
    "nothing": np.zeros((0, 4), np.float32),
}


def add_constant(graph, name, array):
    """Adds a constant; returns its tensor."""
    node = graph.node.add(name=name, op="Const")
    tensor = node.attr["value"].tensor
    tensor.CopyFrom(tf.make_tensor_proto(array))
    node.attr["dtype"].type = tensor.dtype
    return tensor


def good_graph():
    graph = tf.compat.v1.GraphDef()
    for name, array in ARRAYS.items():
        add_constant(graph, name, array)
    add_constant(graph, "text", "words")
    graph.node.add(name="image", op="Placeholder")
    graph.node.add(name="norm", op="FusedBatchNormV3").attr["epsilon"].f = 0.25
    return graph


@pytest.fixture
def path(tmp_path):
    return tmp_path / "graph.pb"


def read_all(path):
    with frozen_graph.open_frozen_graph(path) as (shapes, read):
        arrays = {name: read(name) for name in shapes}
    assert {name: array.shape for name, array in arrays.items()} == shapes
    assert all(array.dtype == np.float32 for array in arrays.values())
    return arrays


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_all(path)
    return str(caught.value)


def test_constants_of_all_kinds(path):
    path.write_bytes(good_graph().SerializeToString())
    found = read_all(path)
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(found[name], array.astype(np.float32), name)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int64, np.float16])
@pytest.mark.parametrize("stored", [[], [1.5], [1.5, 2], [1.5, 2, 7]])
def test_constants_stored_value_by_value(path, kind, stored):
    """TensorFlow repeats the last of too few values, and has 0 where there are none."""
    graph = tf.compat.v1.GraphDef()
    tensor = add_constant(graph, "a", np.zeros((3, 1), kind))
    tensor.ClearField("tensor_content")
    field, values = {
        np.float32: (tensor.float_val, stored),
        np.float64: (tensor.double_val, stored),
        np.int32: (tensor.int_val, [int(value) for value in stored]),
        np.int64: (tensor.int64_val, [int(value) for value in stored]),
        np.float16: (tensor.half_val, np.array(stored, np.float16).view(np.uint16).tolist()),
    }[kind]
    del field[:]
    field.extend(values)
    path.write_bytes(graph.SerializeToString())
    expected = (stored + [stored[-1] if stored else 0] * 3)[:3]
    assert read_all(path)["a"].ravel().tolist() == np.array(expected).astype(kind).tolist()
    np.testing.assert_array_equal(read_all(path)["a"], tf.make_ndarray(tensor))


def test_graph_tells_its_operations_and_epsilons(path):
    path.write_bytes(good_graph().SerializeToString())
    graph = frozen_graph.read_graph(path)
    assert graph.operations == {
        **dict.fromkeys([*ARRAYS, "text"], "Const"),
        "image": "Placeholder",
        "norm": "FusedBatchNormV3",
    }
    assert graph.epsilons == {0.25}


def test_repeated_value_takes_no_memory(path):
    graph = tf.compat.v1.GraphDef()
    tensor = add_constant(graph, "a", np.float32(3))
    for _ in range(4):
        tensor.tensor_shape.dim.add(size=1 << 7)
    path.write_bytes(graph.SerializeToString())
    with frozen_graph.open_frozen_graph(path) as (shapes, read):
        assert shapes == {"a": (1 << 7,) * 4}
        array = read("a")
        assert array[5, 4, 3, 2] == 3 and array.base.nbytes == 4


def test_file_that_is_cut(path):
    data = good_graph().SerializeToString()
    path.write_bytes(data[:-1])
    assert refusal(path) == "not a frozen graph, or cut"
    path.write_bytes(data[:40])
    assert refusal(path) == "not a frozen graph, or cut"


def saved_model():
    model = tf.compat.v1.saved_model.SavedModel if hasattr(tf.compat.v1.saved_model, "SavedModel") else None
    if model is None:
        from tensorflow.core.protobuf.saved_model_pb2 import SavedModel as model
    found = model(saved_model_schema_version=1)
    found.meta_graphs.add().graph_def.CopyFrom(good_graph())
    return found.SerializeToString()


OTHERS = {
    "empty": (b"", "not a frozen graph: it has no nodes"),
    "a SavedModel": (saved_model(), "not a frozen graph: it looks like the saved_model.pb of a SavedModel"),
    "a pickle": (b"\x80\x02}q\0." + bytes(50), "not a frozen graph, or cut"),
    "text": (b"node {\n name: 'a'\n}\n", "not a frozen graph, or cut"),
    "a graph without nodes": (
        tf.compat.v1.GraphDef(versions={"producer": 5}).SerializeToString(),
        "not a frozen graph: it has no nodes",
    ),
}


@pytest.mark.parametrize(("content", "line"), OTHERS.values(), ids=OTHERS)
def test_file_that_is_something_else(path, content, line):
    path.write_bytes(content)
    assert refusal(path) == line


def two_of_one_name(graph):
    add_constant(graph, "floats", np.float32(1))


def no_shape(graph):
    graph.node[0].attr["value"].tensor.tensor_shape.unknown_rank = True


def size_below_zero(graph):
    graph.node[0].attr["value"].tensor.tensor_shape.dim[0].size = -2


def too_many_axes(graph):
    for _ in range(7):
        graph.node[0].attr["value"].tensor.tensor_shape.dim.add(size=1)


def endless(*shape, values=1):
    def damage(graph):
        tensor = graph.node[0].attr["value"].tensor
        tensor.CopyFrom(tf.make_tensor_proto(np.zeros(0, np.float32)))
        del tensor.tensor_shape.dim[:]
        for size in shape:
            tensor.tensor_shape.dim.add(size=size)
        tensor.float_val.extend([0.5] * values)

    return damage


ENDLESS = "refused: floats claims to hold more than 268,435,456 values"


def other_shape(graph):
    graph.node[0].attr["value"].tensor.tensor_shape.dim[0].size = 3


def too_many_values(graph):
    graph.node[3].attr["value"].tensor.int64_val.append(1)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (two_of_one_name, "not a frozen graph: two nodes are called floats"),
        (no_shape, "floats: a constant without a shape"),
        (size_below_zero, "floats: a constant without a shape"),
        (too_many_axes, "floats: a constant without a shape"),
        (other_shape, "floats has another number of values than its shape says"),
        (too_many_values, "longs has another number of values than its shape says"),
        (endless(1 << 38, 4, values=2), ENDLESS),
        (endless(1 << 62, 1 << 62, 4), ENDLESS),
        (endless((1 << 26) + 1, 4), ENDLESS),
        (endless(0, 1 << 62, 1 << 62, values=0), ENDLESS),
    ],
)
def test_graph_that_is_damaged(path, damage, line):
    graph = good_graph()
    damage(graph)
    path.write_bytes(graph.SerializeToString())
    assert refusal(path) == line


def test_file_that_is_not_there(path, tmp_path):
    assert refusal(path) == "no such file"
    assert refusal(tmp_path) == "not a regular file"
