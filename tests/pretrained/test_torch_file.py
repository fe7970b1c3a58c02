import gc
import importlib.util
import inspect
import io
import os
import pickle
import struct
import sys
import types
import zipfile

import numpy as np
import pytest
import torch_writer as writer
from torch_writer import Call, Name, Persistent, Raw, Stored, tensor

from ssd_tf.errors import DataError
from ssd_tf.pretrained import restricted_pickle, torch_archive, torch_file
from ssd_tf.pretrained.restricted_pickle import Global

READERS = ["ours"] + (["torch"] if importlib.util.find_spec("torch") else [])
FORMATS = pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
REBUILD = Name("torch._utils._rebuild_tensor_v2")
SIX = Stored("0", "Float", np.arange(6, dtype="<f4") + 0.5)


@pytest.fixture(autouse=True, params=READERS)
def reader(request, monkeypatch, tmp_path):
    """Every test without torch, and once more with it where it is installed; nothing may be run by any."""
    if request.param == "ours":
        monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.chdir(tmp_path)
    yield request.param
    assert not os.path.exists("sprung")


def read_file(path):
    with torch_file.open_tensors(path) as (shapes, read):
        arrays = {name: read(name) for name in shapes}
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert {name: array.shape for name, array in arrays.items()} == shapes
    return arrays


def read_bytes(data):
    with open("a.pth", "wb") as file:
        file.write(data)
    return read_file("a.pth")


def refused(data):
    """The message about a file, which is one line."""
    with pytest.raises(DataError) as caught:
        read_bytes(data)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250
    return str(caught.value)


def check(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], np.asarray(array, np.float32), err_msg=name)


# --- values ---------------------------------------------------------------------------------------


def test_a_real_file_of_the_old_format(weights):
    found = read_file(weights / "ultralight_face" / "version-slim-320.pth")
    # Names, shapes and numbers as torch.load gives them.
    assert len(found) == 184
    assert list(found)[:2] == ["base_net.0.0.weight", "base_net.0.1.weight"]
    assert found["base_net.0.0.weight"].shape == (16, 3, 3, 3)
    assert found["regression_headers.3.weight"].shape == (12, 256, 3, 3)
    assert found["base_net.0.1.num_batches_tracked"].shape == ()
    np.testing.assert_array_equal(
        found["base_net.0.1.running_mean"][:2], np.float32([-0.24568544328212738, -0.008444574661552906])
    )
    sums = {name: float(array.astype(np.float64).sum()) for name, array in found.items()}
    assert sums["base_net.0.0.weight"] == pytest.approx(-0.964021444451646, rel=1e-12)
    assert sums["regression_headers.3.weight"] == pytest.approx(-9.598346166074656, rel=1e-12)
    assert sum(sums.values()) == pytest.approx(2291974.6996247675, rel=1e-12)


KINDS = {
    "Float": ("<f4", [1.5, -2.25, np.inf]),
    "Double": ("<f8", [1.5, 1e-300, -1e300]),
    "Half": ("<f2", [1.5, 65504, -(2**-24)]),
    "Byte": ("u1", [0, 200, 255]),
    "Char": ("i1", [-128, 5, 127]),
    "Short": ("<i2", [-32768, 5, 32767]),
    "Int": ("<i4", [-(2**31), 5, 2**24 + 1]),
    "Long": ("<i8", [-(2**62), 5, 2**53]),
}


@FORMATS
def test_every_type_becomes_float32(old):
    stored = [Stored(kind, kind, np.array(values, layout)) for kind, (layout, values) in KINDS.items()]
    bfloat = np.array([0x3FC0, 0xC000, 0x7F80], "<u2")  # 1.5, -2, inf: the upper halves of float32
    stored += [Stored("b", "BFloat16", bfloat), Stored("t", "Bool", np.array([0, 1, 255], "u1"))]
    content = {run.key: tensor(run.pointer(old), (3,)) for run in stored}
    with np.errstate(over="ignore"):
        expected = {kind: np.array(values).astype(np.float32) for kind, (_, values) in KINDS.items()}
    assert expected["Double"].tolist() == [1.5, 0, -np.inf]
    check(read_bytes(writer.write(content, stored, old)), {**expected, "b": [1.5, -2, np.inf], "t": [0, 1, 1]})


@FORMATS
def test_views_of_shared_numbers(old):
    whole = np.arange(24, dtype="<f4")
    run, half = (
        Stored("0", "Float", whole),
        Stored("1", "BFloat16", np.array([0x3F80, 0x4000, 0x4040, 0x4080], "<u2")),
    )
    empty = Stored("2", "Float", np.zeros(0, "<f4"))
    pointer = run.pointer(old)
    content = {
        "whole": tensor(pointer, (4, 6)),
        "offset": tensor(pointer, (2, 3), None, 7),
        "transposed": tensor(pointer, (6, 4), (1, 6)),
        "stepped": tensor(pointer, (3, 2), (8, 3), 2),
        "last": tensor(pointer, (), (), 23),
        "one": tensor(pointer, (1, 1), (99, 0), 5),
        "empty": tensor(empty.pointer(old), (0, 3)),
        "bfloat": tensor(half.pointer(old), (2, 2), (1, 2)),
        "parameter": Call(
            Name("torch._utils._rebuild_parameter"),
            (tensor(pointer, (2,)), True, Call(Name("collections.OrderedDict"))),
        ),
    }
    grid = whole.reshape(4, 6)
    expected = {
        "whole": grid,
        "offset": [[7, 8, 9], [10, 11, 12]],
        "transposed": grid.T,
        "stepped": [[2, 5], [10, 13], [18, 21]],
        "last": 23,
        "one": [[5]],
        "empty": np.zeros((0, 3)),
        "bfloat": [[1, 3], [2, 4]],
        "parameter": [0, 1],
    }
    check(read_bytes(writer.write(content, [run, half, empty], old)), expected)


@FORMATS
def test_arrays_are_the_callers_own(old):
    with open("a.pth", "wb") as file:
        file.write(writer.write({"a": tensor(SIX.pointer(old), (6,))}, [SIX], old))
    with torch_file.open_tensors("a.pth") as (_, read):
        first = read("a")
        first += 1
        assert first.flags.c_contiguous
        check({"a": read("a")}, {"a": SIX.numbers})


def test_big_endian_numbers():
    run = Stored("0", "Float", np.array([1.5, -2, 3e38], ">f4"))
    data = writer.write_zip(writer.pickled({"a": tensor(run.pointer(False), (3,))}), [run], order="big")
    check(read_bytes(data), {"a": [1.5, -2, 3e38]})


def test_without_a_byte_order_it_is_little():
    data = writer.write_zip(writer.pickled({"a": tensor(SIX.pointer(False), (6,))}), [SIX], "any name", None)
    check(read_bytes(data), {"a": SIX.numbers})


def test_part_of_a_storage():
    pointers = [SIX.pointer(True, part) for part in (("0.1", 2, 3), ("0.2", 0, 2), None)]
    content = {
        "a": tensor(pointers[0], (2,), None, 1),
        "b": tensor(pointers[1], (2,)),
        "c": tensor(pointers[2], (6,)),
    }
    data = writer.write_old(writer.pickled(content), [SIX])
    check(read_bytes(data), {"a": [3.5, 4.5], "b": [0.5, 1.5], "c": SIX.numbers})
    content = {"a": tensor(SIX.pointer(True, ("0.1", 4, 3)), (1,))}
    assert "reaches out of it" in refused(writer.write_old(writer.pickled(content), [SIX]))


def test_a_file_of_python_2():
    """Its text is bytes, its OrderedDict is made from pairs, its tensors by the first of torch's functions."""
    pointer = Persistent(("storage", Name("torch.FloatStorage"), Raw(b"U\x010"), Raw(b"U\x03cpu"), 6, None))
    made = Call(Name("torch._utils._rebuild_tensor"), (pointer, 0, (2, 3), (3, 1)))
    content = Call(Name("collections.OrderedDict"), ([[Raw(b"U\x08conv.bia"), made]],))
    check(read_bytes(writer.write_old(writer.pickled(content), [SIX])), {"conv.bia": SIX.numbers.reshape(2, 3)})


@FORMATS
def test_state_dicts_as_torch_saves_them(old):
    arrays = {"a.weight": np.ones((2, 3)), "a.bias": np.arange(3.0)}
    check(read_bytes(writer.write_state(arrays, old)), arrays)


def test_safetensors_are_told_by_their_content():
    numpy_files = pytest.importorskip("safetensors.numpy")
    arrays = {"module.a": np.float32([[1, 2]]), "module.b": np.float16([3, 4])}
    check(read_bytes(numpy_files.save(arrays)), {"a": [[1, 2]], "b": [3, 4]})
    assert refused(numpy_files.save(arrays)[:-1]).startswith("cannot read safetensors: ")
    read_bytes(numpy_files.save(arrays))
    with (
        torch_file.open_tensors("a.pth") as (_, read),
        pytest.raises(DataError, match=r"^cannot read safetensors: "),
    ):
        read("missing")


# --- the state dict -------------------------------------------------------------------------------

A = tensor(SIX.pointer(False), (6,))
STATE = {"a": A, "b": tensor(SIX.pointer(False), (2,))}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {**STATE, "epoch": 3, "names": ["x"], "nothing": None},
        {"state_dict": STATE},
        {"epoch": 3, "loss": tensor(SIX.pointer(False), ()), "state_dict": {**STATE, "more": 0.5}},
        {"model": STATE, "ema": {"c": A}},
        {"model": {"state_dict": STATE}},
        {"model_state_dict": STATE, "optimizer": {"state": {0: {"step": A}}, "param_groups": [{"lr": 0.1}]}},
        {"weights of mine": STATE, 5: {"x": 1}},
        {"state_dict": {f"module.{name}": value for name, value in STATE.items()}},
        {"model": "ssd", "state_dict": STATE},
    ],
)
def test_the_state_dict_is_found(content):
    check(read_bytes(writer.write(content, [SIX])), {"a": SIX.numbers, "b": [0.5, 1.5]})


def test_module_stays_where_not_all_names_begin_with_it():
    assert list(read_bytes(writer.write({"module.a": A, "b": A}, [SIX]))) == ["module.a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no dict of tensors, only an empty dict"),
        ({"epoch": 1, "best": 0.5}, "holds no dict of tensors, only epoch, best"),
        ([1, 2], "holds no dict of tensors, only something else"),
        (A, "holds no dict of tensors, only something else"),
        ({"a": {"b": {"c": {"d": A}}}}, "holds no dict of tensors, only a"),
        ({"g": STATE, "d": STATE}, "holds several dicts of tensors: g, d; save the one state dict that is meant"),
        ({1: A}, "a tensor's name is not text: 1"),
        ({"": A}, "a tensor's name is not text: ''"),
    ],
)
def test_no_state_dict(content, message):
    assert refused(writer.write(content, [SIX])) == message


def test_dicts_in_circles():
    loop = Raw(b"}q\x00(" + writer.encode("model") + b"h\x00" + writer.encode("x") + b"h\x00u")
    assert refused(writer.write(loop)) == "holds no dict of tensors, only model, x"
    fork = b"}q\x00" + b"".join(
        b"}q"
        + bytes([i])
        + b"("
        + writer.encode("model")
        + b"h"
        + bytes([i - 1])
        + writer.encode("net")
        + b"h"
        + bytes([i - 1])
        + b"u"
        for i in range(1, 200)
    )
    assert refused(writer.write(Raw(b"(" + fork + b"th\xc7"))) == "holds no dict of tensors, only model, net"


def test_each_dict_is_looked_at_once(monkeypatch):
    seen = []
    monkeypatch.setattr(torch_file, "_holds_tensors", lambda value: seen.append(value) or False)
    content = {}
    for _ in range(3):
        content = dict.fromkeys(torch_file._WRAPPERS, content)
    with pytest.raises(DataError, match=r"^holds no dict of tensors, only state_dict, "):
        torch_file.find_tensors(content)
    assert len(seen) <= 3 + 3 * len(torch_file._WRAPPERS)


# --- what would run code --------------------------------------------------------------------------

SPRING = ("sprung",)
TRAPS = {
    "os.mkdir": writer.pickled(Call(Name("os.mkdir"), SPRING)),
    "posix.mkdir": writer.pickled([Call(Name("posix.mkdir"), SPRING)]),
    "builtins.eval": writer.pickled({"a": Call(Name("builtins.eval"), ("__import__('os').mkdir('sprung')",))}),
    "builtins.getattr": writer.pickled(
        Call(Call(Name("builtins.getattr"), (Call(Name("builtins.__import__"), ("os",)), "mkdir")), SPRING)
    ),
    "os.mkdir (instance)": b"\x80\x02(X\x06\x00\x00\x00sprungios\nmkdir\n.",
    "os.mkdir (object)": b"\x80\x02(cos\nmkdir\nX\x06\x00\x00\x00sprungo.",
    "os.mkdir (text)": b"cos\nmkdir\n(Vsprung\ntR.",
    "os.mkdir (stack)": b"\x80\x04\x8c\x02os\x94\x8c\x05mkdir\x94\x93\x94\x8c\x06sprung\x85R.",
    "io.FileIO (new)": writer.pickled(Raw(b"cio\nFileIO\nX\x06\x00\x00\x00sprungX\x01\x00\x00\x00w\x86\x81")),
}
TRAPS["posix.mkdir (default)"] = pickle.dumps(type("Trap", (), {"__reduce__": lambda self: (os.mkdir, SPRING)})())


@pytest.mark.parametrize("name", TRAPS)
def test_the_traps_spring_under_pickle(name, request):
    if name == "io.FileIO (new)":  # opens it at its initialisation only
        return
    pickle.loads(TRAPS[name])  # noqa: S301 - that is what is shown
    os.rmdir("sprung")


PLACES = {
    "zip": lambda trap: writer.write_zip(trap),
    "old": lambda trap: writer.write_old(trap),
    "magic": lambda trap: trap + writer.write_old(writer.pickled(STATE))[14:],
    "system": lambda trap: writer.pickled(writer.MAGIC) + writer.pickled(1001) + trap,
    "keys": lambda trap: writer.write_old(writer.pickled({}) + trap),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", TRAPS)
def test_nothing_is_run(name, place):
    message = refused(PLACES[place](TRAPS[name]))
    if TRAPS[name][0] == 0x80 or place != "magic":
        assert message.startswith("refused: would run code: ")
        assert name.split(" ")[0] in message
    else:
        assert message.startswith("not a weights file: starts with b'cos")


@FORMATS
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Name("os.system"), "refused: would run code: it asks for os.system"),
        (Raw(b"ctorch._utils\nos.system\n"), "refused: would run code: it asks for torch._utils.os.system"),
        (Raw(b"ccollections\nOrderedDict.__init__\n"), "refused: would run code: it asks for collections.Ord"),
        (Raw(b"c" + b"a" * 300 + b"\n\x1b[2J\n"), "refused: would run code: it asks for " + "a" * 80 + "..."),
        (Raw(b"cx\n\x1b[2J\n"), r"refused: would run code: it asks for x.\x1b[2J"),
        (Raw(b"\x82\x01"), "refused: would run code: it asks for a number of the copyreg registry"),
        (Raw(b"\x84\x01\x00\x00\x00"), "refused: would run code: it asks for a number of the copyreg registry"),
        (Call(Name("torch.load"), ("x",)), "refused: would run code: it asks for torch.load"),
        (Call(Name("torch.FloatStorage"), (3,)), "refused: holds tensors that are "),
        (Call(Name("torch.float32"), ()), "refused: would run code: it asks for torch.float32"),
        (Call(Name("numpy.core.multiarray.scalar"), ()), "refused: would run code: it asks for numpy.core.mult"),
        (Call(Name("torch._utils._rebuild_qtensor"), ()), "refused: holds tensors that are sparse, quantised, "),
        (Call(Name("torch._utils._rebuild_sparse_tensor"), ()), "refused: holds tensors that are sparse, quant"),
        (Raw(b"c__main__\nNet\n)\x81"), "refused: would run code: holds an object of __main__.Net, not a state "),
        (Raw(b"c__main__\nNet\n)}\x92"), "refused: would run code: holds an object of __main__.Net, not a state "),
        (Persistent(("module", Name("__main__.Net"), "a", "b")), "refused: would run code: holds an object of __"),
        (Persistent(("storage", Name("os.system"), "0", "cpu", 1)), "refused: would run code: it asks for os.sys"),
        (Call(Name("torch.nn.modules.linear.Linear"), ()), "refused: would run code: holds an object of torch.nn"),
        (Call(Call(Name("collections.OrderedDict")), ("a",)), "damaged: its pickle makes no sense at byte "),
        (Call("os.system", ("a",)), "damaged: its pickle makes no sense at byte "),
        (Call(REBUILD, (), {"__setstate__": 1}), "damaged: its pickle makes no sense at byte "),
        (
            Raw(writer.encode(REBUILD) + writer.encode((None, {"__defaults__": (1,)})) + b"b"),
            "damaged: its pickle",
        ),
        (Raw(writer.encode([]) + writer.encode({"append": 1}) + b"b"), "damaged: its pickle makes no sense at "),
    ],
)
def test_what_a_pickle_may_not_ask_for(content, message, old):
    assert refused(writer.write(content, (), old)).startswith(message)


def test_attributes_of_dicts_are_passed_over():
    state = {"__class__": 1, "items": 2, "get": None, "_metadata": {"": {"version": 1}}}
    content = Raw(writer.encode({"a": A}) + writer.encode(state) + b"b")
    content = Call(Name("collections.OrderedDict"), ([("a", A)],), state)
    check(read_bytes(writer.write(content, [SIX])), {"a": SIX.numbers})


def test_torchscript():
    data = writer.write_zip(writer.pickled(STATE), [SIX], **{"constants.pkl": writer.pickled(())})
    assert refused(data) == "refused: would run code: a TorchScript program; save model.state_dict()"


def test_values_beside_the_tensors():
    """Optimizers, schedules and settings keep these."""
    content = {
        "counter": Call(Name("collections.Counter"), ({1: 2},)),
        "set": Call(Name("__builtin__.set"), ([1, 2],)),
        "bytes": Call(Name("_codecs.encode"), ("abc", "latin1")),
        "device": Call(Name("torch.device"), ("cuda", 0)),
        "size": Call(Name("torch.Size"), ((1, 2),)),
        "type": Name("torch.float16"),
        "empty": Raw(b"\x8f"),
        "state_dict": STATE,
    }
    assert list(read_bytes(writer.write(content, [SIX]))) == ["a", "b"]


# --- tensors that lie -----------------------------------------------------------------------------


@FORMATS
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "message"),
    [
        ((7,), (1,), 0, "a tensor has more numbers than its storage"),
        ((2**40,), (0,), 0, "a tensor has more numbers than its storage"),
        ((3, 3), (0, 1), 0, "a tensor has more numbers than its storage"),
        ((2**31, 2**31, 2**31), (0, 0, 0), 0, "a tensor has more numbers than its storage"),
        ((0, 2**41), (1, 1), 0, "a tensor has more numbers than its storage"),
        ((6,), (1,), 1, "a tensor reaches out of its storage"),
        ((2, 2), (5, 1), 0, "a tensor reaches out of its storage"),
        ((), (), 6, "a tensor reaches out of its storage"),
        ((1,), (1,), 2**61, "a tensor reaches out of its storage"),
        ((-1,), (1,), 0, "damaged: a tensor with a shape and strides that do not go together"),
        ((2,), (-1,), 3, "damaged: a tensor with a shape and strides that do not go together"),
        ((2,), (1,), -1, "damaged: a tensor with a shape and strides that do not go together"),
        ((2,), (1, 1), 0, "damaged: a tensor with a shape and strides that do not go together"),
        ((1,) * 40, (1,) * 40, 0, "damaged: a tensor with a shape and strides that do not go together"),
        ((2.0,), (1,), 0, "damaged: a tensor with a shape and strides that do not go together"),
        ((True,), (1,), 0, "damaged: a tensor with a shape and strides that do not go together"),
        ((2**70,), (1,), 0, "damaged: a tensor with a shape and strides that do not go together"),
    ],
)
def test_tensors_stay_inside_their_storage(shape, strides, offset, message, old):
    content = {"a": tensor(SIX.pointer(old), shape, strides, offset)}
    assert message in refused(writer.write(content, [SIX], old))


@FORMATS
@pytest.mark.parametrize(("shape", "strides"), [((1, 6), (1 << 61, 1)), ((6, 1), (1, (1 << 62) - 1))])
def test_strides_of_one_number_do_not_matter(shape, strides, old):
    content = {"a": tensor(SIX.pointer(old), shape, strides), "b": tensor(SIX.pointer(old), (0, 2), strides)}
    check(read_bytes(writer.write(content, [SIX], old)), {"a": SIX.numbers.reshape(shape), "b": np.zeros((0, 2))})


@FORMATS
@pytest.mark.parametrize(
    "arguments",
    [(), (1, 0, (1,), (1,)), ((), 0, (1,), (1,)), (Call(Name("torch._utils._rebuild_parameter"), (1, 2, 3)),)],
)
def test_tensors_of_nothing(arguments, old):
    assert "makes no sense" in refused(writer.write({"a": Call(REBUILD, arguments)}, [SIX], old))


@FORMATS
def test_parameters_of_nothing(old):
    content = {"a": Call(Name("torch._utils._rebuild_parameter"), (1, True, None))}
    assert "makes no sense" in refused(writer.write(content, [SIX], old))


def test_negated_views():
    content = {"a": tensor(SIX.pointer(False), (6,), None, 0, {"neg": True})}
    assert refused(writer.write(content, [SIX])) == "refused: holds tensors that are negated or conjugated views"


@FORMATS
def test_a_storage_of_two_types_or_sizes(old):
    other = Stored("0", "Int", SIX.numbers)
    for second in (other.pointer(old), SIX.pointer(old, count=5)):
        content = {"a": tensor(SIX.pointer(old), (1,)), "b": tensor(second, (1,))}
        assert "storage 0 is claimed in two sizes or types" in refused(writer.write(content, [SIX], old))


@FORMATS
@pytest.mark.parametrize("count", [5, 7, 10**9, 2**61])
def test_a_storage_that_claims_another_size(count, old):
    content = {"a": tensor(SIX.pointer(old, count=count), (5,))}
    expected = f"6 numbers, not {count:,}" if old else f"24 bytes of numbers, not {4 * count:,}"
    assert refused(writer.write(content, [SIX], old)) == f"damaged: storage 0 has {expected}"


@pytest.mark.parametrize(
    "key",
    [
        1,
        (),
        ("storage",),
        ("storage", "torch.FloatStorage", "0", "cpu", 6),
        ("storage", Name("torch.FloatStorage"), 0, "cpu", 6),
        ("storage", Name("torch.FloatStorage"), "0", "cpu", -1),
        ("storage", Name("torch.FloatStorage"), "0", "cpu", 6, None, None),
        ("storage", Name("torch.FloatStorage"), "0", "cpu", None, None),
        ("tensor", Name("torch.FloatStorage"), "0", "cpu", 6),
        ("storage", Name("torch.FloatStorage"), "0", "cpu", 6, (1, 2)),
    ],
)
@FORMATS
def test_pointers_that_make_no_sense(key, old):
    assert "makes no sense" in refused(writer.write({"a": tensor(Persistent(key), (1,))}, [SIX], old))


# --- zip archives that lie ------------------------------------------------------------------------

PICKLE = writer.pickled({"a": A})


def rezipped(change=lambda name, content: content, compression=zipfile.ZIP_STORED, twice=()):
    """A sound file packed anew."""
    source, buffer = zipfile.ZipFile(io.BytesIO(writer.write_zip(PICKLE, [SIX]))), io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name in [*source.namelist(), *twice]:
            content = change(name, source.read(name))
            if content is not None:
                archive.writestr(name, content)
    return buffer.getvalue()


def patched(data, member, field, layout, value):
    """`data` with a number in the directory entry of a member changed."""
    at = data.index(b"PK\x01\x02", data.index(f"archive/{member}".encode(), data.index(b"PK\x01\x02")) - 46)
    assert data[at + 46 :].startswith(f"archive/{member}".encode())
    return data[: at + field] + struct.pack(layout, value) + data[at + field + struct.calcsize(layout) :]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_lie():
    whole = writer.write_zip(PICKLE, [SIX])
    assert (
        refused(rezipped(compression=zipfile.ZIP_DEFLATED))
        == "refused: archive/version in it is compressed, encrypted or a folder"
    )
    assert (
        refused(patched(whole, "data/0", 8, "<H", 1))
        == "refused: archive/data/0 in it is compressed, encrypted or a folder"
    )
    assert (
        refused(patched(whole, "data/0", 24, "<I", 10**6))
        == "refused: archive/data/0 in it is compressed, encrypted or a folder"
    )
    lie = patched(patched(whole, "data/0", 24, "<I", 10**6), "data/0", 20, "<I", 10**6)
    assert refused(lie) == "damaged: archive/data/0 and archive/version in it overlap"
    last = patched(patched(whole, "version", 24, "<I", 10**6), "version", 20, "<I", 10**6)
    assert refused(last) == "cut off, or damaged: archive/version is not where the zip directory says"
    at = whole.index(b"archive/data/0") - 30
    assert refused(whole[:at] + b"PK\x03\x05" + whole[at + 4 :]) == (
        "cut off, or damaged: archive/data/0 is not where the zip directory says"
    )
    shifted = whole[:-6] + struct.pack("<I", struct.unpack_from("<I", whole, len(whole) - 6)[0] + 600) + whole[-2:]
    assert refused(shifted).startswith("cut off, or damaged: ")
    marked = patched(whole, "data/0", 38, "<I", 16)
    assert refused(marked) == "refused: archive/data/0 in it is compressed, encrypted or a folder"
    assert refused(patched(whole, "data/0", 42, "<I", 5)) == (
        "damaged: archive/data.pkl and archive/data/0 in it overlap"
    )
    assert refused(rezipped(lambda name, content: None if "data/0" in name else content)) == (
        "damaged: the numbers of storage 0 are missing"
    )
    assert refused(rezipped(twice=["archive/data/0"])) == "damaged: has two members of one name"
    assert refused(writer.write_zip(PICKLE, [SIX], order="middle")) == (
        "damaged: its byte order is neither little nor big"
    )


def test_two_storages_in_one_place():
    other = Stored("1", "Float", SIX.numbers[:0])
    big = Stored("0", "Float", np.zeros(1000, "<f4"))
    content = {"a": tensor(big.pointer(False), (1,)), "b": tensor(other.pointer(False, count=1000), (1,))}
    data = writer.write(content, [big, other])
    at = data.index(b"PK\x03\x04", data.index(b"archive/data/0") - 30)
    for field, value in ((42, at), (20, 4000), (24, 4000)):
        data = patched(data, "data/1", field, "<I", value)
    assert refused(data) == "damaged: archive/data/0 and archive/data/1 in it overlap"


@pytest.mark.parametrize("member", ["data.pkl", "byteorder", "data/0", "version"])
def test_members_are_what_was_written(member):
    numbers = np.arange(3 << 18, dtype="<f4")  # three pieces
    run = Stored("0", "Float", numbers)
    data = writer.write({"a": tensor(run.pointer(False), numbers.shape)}, [run])
    check(read_bytes(data), {"a": numbers})
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = archive.getinfo(f"archive/{member}")
    place = data.index(f"archive/{member}".encode()) + len(f"archive/{member}") + entry.file_size - 1
    changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
    assert refused(changed) == f"damaged: archive/{member} in it is not what was written: its CRC-32 differs"
    # Not stated by torch.save where its settings say so.
    changed = data[: place - 3] + bytes([data[place - 3] ^ 1]) + data[place - 2 :]
    unstated = patched(changed, member, 16, "<I", 0)
    if member == "data/0":
        check(read_bytes(unstated), {"a": np.frombuffer(changed[place + 1 - numbers.nbytes : place + 1], "<f4")})


def test_sums_take_little_memory(monkeypatch):
    numbers = np.zeros(5 << 18, "<f4")
    run = Stored("0", "Float", numbers)
    data = writer.write({"a": tensor(run.pointer(False), (1,))}, [run])
    counts, read_at = [], torch_archive.read_at
    monkeypatch.setattr(
        torch_archive, "read_at", lambda file, start, count: counts.append(count) or read_at(file, start, count)
    )
    check(read_bytes(data), {"a": [0]})
    assert max(counts) == 1 << 20 and counts.count(1 << 20) == 5


def test_archives_of_others():
    buffer = io.BytesIO()
    np.savez(buffer, a=np.ones(3))
    expected = "not a weights file: a zip archive that torch.save did not write"
    assert refused(buffer.getvalue()) == expected
    for missing in ("pkl", "version"):
        assert refused(rezipped(lambda name, content: None if missing in name else content)) == expected  # noqa: B023
    for version in (b"", b"three", b"0", b"100", b"3" * 100):
        assert refused(writer.write_zip(PICKLE, [SIX], version=version)) == expected
    beside = io.BytesIO(rezipped())
    with zipfile.ZipFile(beside, "a") as archive:
        archive.writestr("other/a", b"")
    assert refused(beside.getvalue()) == expected


def test_a_giant_directory():
    for end in (
        struct.pack("<4s4xHHII2x", b"PK\x05\x06", 1, 1, 17 << 20, 0),
        struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 17 << 20, 0)
        + struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
        + struct.pack("<4s4xHHII2x", b"PK\x05\x06", 1, 1, 0xFFFFFFFF, 0),
    ):
        data = b"PK\x03\x04" + bytes(18 << 20) + end
        assert refused(data) == "refused: its zip directory is larger than 16 MiB"


def test_the_end_of_archives_over_4_gib():
    """There the last record leaves its numbers to one before it."""
    data = writer.write_zip(PICKLE, [SIX])
    members, size, start = struct.unpack_from("<HII", data, len(data) - 12)
    large = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, members, members, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(data) - 22, 1)
    end = struct.pack("<4s4xHHII2x", b"PK\x05\x06", 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    check(read_bytes(data[:-22] + large + locator + end), {"a": SIX.numbers})


def test_old_files_that_lie():
    content = writer.pickled({"a": tensor(SIX.pointer(True), (6,))})
    version = "torch's old format of another version, or of a machine that is not little-endian"
    assert refused(writer.write_old(content, [SIX], magic=7)) == (
        "not a weights file: a pickle that torch.save did not write"
    )
    assert refused(writer.write_old(content, [SIX], protocol=1002)) == version
    assert refused(writer.write_old(content, [SIX], system={"little_endian": False})) == version
    assert refused(writer.write_old(content, [SIX], system=[])) == version
    for keys in ([], ["1"], ["0", "1"], ["0", "0"], "0", [0], [["0"]]):
        assert refused(writer.write_old(content, [SIX], keys=keys)) == (
            "damaged: its list of storages is not that of its tensors"
        )


# --- damage and bombs -----------------------------------------------------------------------------


@FORMATS
def test_a_file_cut_anywhere(old):
    run = Stored("0", "Float", np.arange(8, dtype="<f4"))
    data = writer.write({"state_dict": {"a": tensor(run.pointer(old), (2, 4)), "epoch": 2}}, [run], old)
    assert list(read_bytes(data)) == ["a"]
    for length in reversed(range(len(data))):
        os.truncate("a.pth", length)
        with pytest.raises(DataError) as caught:
            read_file("a.pth")
        message = str(caught.value)
        assert message.isprintable()
        if length > (30 if old else 3):
            assert message.startswith("cut off"), (length, message)
    assert list(read_bytes(data + b"more" if old else data)) == ["a"]


def test_storages_cut_off_are_seen_before_any_is_read():
    with open("a.pth", "wb") as file:
        file.write(writer.write({"a": tensor(SIX.pointer(True), (1,))}, [SIX], True)[:-1])
    with pytest.raises(DataError, match=r"^cut off: storage 0 goes on behind the end at byte \d+$"):
        torch_file.open_tensors("a.pth").__enter__()


def test_a_file_that_shrinks_while_it_is_open(reader):
    if reader == "torch":  # has read it already
        return
    with open("a.pth", "wb") as file:
        run = Stored("0", "Float", np.zeros(100_000, "<f4"))  # more than is read ahead
        file.write(writer.write({"a": tensor(run.pointer(True), (100_000,))}, [run], True))
    with torch_file.open_tensors("a.pth") as (_, read):
        os.truncate("a.pth", os.path.getsize("a.pth") - 1)
        with pytest.raises(DataError, match=r"^cut off: ends before byte "):
            read("a")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"", "damaged: its pickle makes no sense at byte 2 (IndexError)"),
        (b"N0", "damaged: its pickle has the instruction b'0' at byte 3"),
        (b"r\xff\xff\xff\xff", "damaged: its pickle makes no sense"),
        (b"Nr\xff\xff\xff\xff", "holds no dict of tensors"),
        (b"h\x05", "damaged: its pickle makes no sense at byte 2 (KeyError)"),
        (b"X\xff\xff\xff\xffab", "cut off, or damaged: its pickle goes on behind byte "),
        (b"X\x02\x00\x00\x00\xff\xfe", "damaged: its pickle makes no sense"),
        (b"\x8a\xff" + bytes(255), "refused: its pickle holds a giant number"),
        (b"\x8a\x00", "holds no dict of tensors"),
        (b"t", "damaged: its pickle makes no sense"),
        (b"N\x86", "damaged: its pickle makes no sense"),
        (b"Na", "damaged: its pickle makes no sense"),
        (b")Na", "damaged: its pickle makes no sense"),
        (b"}(Nu", "damaged: its pickle makes no sense"),
        (b"}]Ns", "refused: a dict has a key that is neither text nor a whole number (list)"),
        (b"})Ns", "refused: a dict has a key that is neither text nor a whole number (tuple)"),
        (b"}\x8a\x10" + bytes(15) + b"\x01Ns", "refused: a dict has a key that is neither text nor a whole "),
        (b"(" * 100_000, "damaged: its pickle makes no sense"),
        (b"]" * 100_000 + b"a" * 99_999, "holds no dict of tensors"),
        (b"N" + b"\x85" * 100_000, "holds no dict of tensors"),
        (b"c" + b"a" * 2000, "cut off, or damaged: its pickle has no name at byte 3"),
        (b"\x80\x03}", "its pickle is of protocol 3; save it with torch.save's own, 2"),
    ],
)
def test_pickles_that_make_no_sense(code, message):
    assert refused(writer.write(Raw(code))).startswith(message)
    gc.collect()


def test_pickles_have_limits(monkeypatch):
    monkeypatch.setattr(restricted_pickle, "_MAX_STEPS", 1000)
    assert "takes more than 1,000 steps" in refused(writer.write(Raw(b"N" * 1000)))
    # One list, copied again and again.
    pairs = b"](" + writer.encode(("a", 1)) * 100 + b"eq\x00"
    copies = writer.encode(Name("collections.OrderedDict")) + b"h\x00\x85R"
    assert "takes more than 1,000 steps" in refused(writer.write(Raw(pairs + copies * 10)))
    # One long text, joined again and again.
    long = writer.encode("a" * 400) + b"q\x00" + writer.encode("b" * 400) + b"q\x01"
    monkeypatch.setattr(restricted_pickle, "_MAX_NAME", 399)
    joined = []
    monkeypatch.setattr(torch_archive, "_find", lambda name: joined.append(name) or Global(name, None, False))
    for names in (b"h\x00h\x01\x93", b"h\x02h\x01\x93", b"h\x00h\x02\x93"):
        line = refused(writer.write(Raw(long + b"X\x01\x00\x00\x00aq\x02" + names * 10)))
        assert line.startswith("refused: would run code: it asks for a")
    assert joined == []
    monkeypatch.setattr(restricted_pickle, "MAX_BYTES", 1 << 20)
    assert refused(writer.write("a" * (1 << 20))) == "refused: its pickle is larger than 1 MiB"
    assert refused(writer.write("a" * (1 << 20), (), True)).startswith("cut off, or damaged: its pickle goes on")


@pytest.mark.parametrize(
    ("start", "description"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>", "a web page, so the download went wrong"),
        (b"<HTML>", "a web page, so the download went wrong"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes"),
        (b"\x1f\x8b\x08", "packed by gzip; unpack it"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "a Git LFS pointer; fetch the file itself (git lfs pull)",
        ),
        (bytes(257) + b"ustar\x0000", "a tar archive; unpack it"),
        (bytes(600), "nothing but zeros"),
        (b"a\x1b[2J", r"starts with b'a\x1b[2J'"),
    ],
)
def test_other_files(start, description):
    assert refused(start) == (
        f"not a weights file: {description} (expected a .pth file of torch.save or safetensors)"
    )


def test_no_file_at_all(tmp_path):
    os.mkfifo("fifo")
    for path, message in (
        ("missing.pth", "cannot read: no such file or directory"),
        (tmp_path, "cannot read: is a directory"),
        ("fifo", "cannot read: not a regular file"),
        ("a\0b", "cannot read: embedded null byte"),
    ):
        with pytest.raises(DataError) as caught:
            read_file(path)
        assert str(caught.value) == message


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_errors_of_the_caller_stay_the_callers(kind):
    data = writer.write({"a": A}, [SIX])
    if kind == "safetensors":
        data = pytest.importorskip("safetensors.numpy").save({"a": SIX.numbers})
    with open("a.bin", "wb") as file:
        file.write(data)
    with pytest.raises(OSError, match="mine"), torch_file.open_tensors("a.bin"):
        raise OSError("mine")


# --- torch itself ---------------------------------------------------------------------------------


def stand_in(monkeypatch, load):
    """A module in torch's place."""
    module = types.ModuleType("torch")
    module.load = load
    monkeypatch.setitem(sys.modules, "torch", module)


def test_torch_is_asked_for_weights_only_and_only_for_what_is_sound(monkeypatch):
    calls = []

    def load(file, map_location=None, weights_only=False):
        calls.append((file.tell(), map_location, weights_only))
        raise RuntimeError("first line\nsecond line")

    stand_in(monkeypatch, load)
    assert refused(writer.write({"a": A}, [SIX])) == "torch cannot read it: first line"
    assert calls == [(0, "cpu", True)]
    for data in (TRAPS["os.mkdir"], writer.write_zip(TRAPS["os.mkdir"]), writer.write({"a": A}, [])):
        refused(data)
    assert len(calls) == 1


def test_a_torch_without_weights_only_is_not_asked(monkeypatch):
    stand_in(monkeypatch, lambda file, map_location=None, **options: pytest.fail("called"))
    assert "weights_only" not in inspect.signature(sys.modules["torch"].load).parameters
    check(read_bytes(writer.write({"a": A}, [SIX])), {"a": SIX.numbers})


def test_names_are_those_that_pickles_use():
    assert torch_archive._find("torch.BFloat16Storage").known
    assert not torch_archive._find("torch.QInt8Storage").known
