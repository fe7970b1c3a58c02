"""Files as torch.save writes them, made without torch; and such as it never would."""

import io
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Name(str):
    """A function or class that a pickle asks for: "module.name", the module up to the last point."""


@dataclass
class Call:
    """A function of a pickle applied to arguments; `state` is then given to what came of it."""

    function: object
    arguments: tuple = ()
    state: object = None


@dataclass
class Persistent:
    """A value that the reader knows by an id."""

    key: object


@dataclass
class Raw:
    """Instructions of a pickle as they are."""

    code: bytes


def pickled(value):
    """Returns the pickle of a value in protocol 2."""
    return b"\x80\x02" + encode(value) + b"."


def encode(value):
    """Returns the instructions that make a value."""
    if isinstance(value, Name):
        return b"c" + "\n".join(value.rsplit(".", 1)).encode() + b"\n"
    if isinstance(value, Call):
        state = b"" if value.state is None else encode(value.state) + b"b"
        return encode(value.function) + encode(value.arguments) + b"R" + state
    if isinstance(value, dict):
        return b"}(" + b"".join(encode(key) + encode(entry) for key, entry in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(encode, value)) + b"e"
    return _SIMPLE[type(value)](value)


def _encode_integer(value):
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


_SIMPLE = {
    type(None): lambda value: b"N",
    bool: lambda value: b"\x88" if value else b"\x89",
    int: _encode_integer,
    float: lambda value: b"G" + struct.pack(">d", value),
    str: lambda value: b"X" + struct.pack("<I", len(value.encode())) + value.encode(),
    tuple: lambda value: b"(" + b"".join(map(encode, value)) + b"t",
    Raw: lambda value: value.code,
    Persistent: lambda value: encode(value.key) + b"Q",
}


@dataclass
class Stored:
    """Numbers as they lie in a file.

    Attributes:
      key: their name.
      kind: "Float", "Half"...: what torch calls them.
      numbers: array of one axis.
    """

    key: str
    kind: str
    numbers: np.ndarray

    def pointer(self, old, part=None, count=None):
        """What stands for them in the pickle; `part` is (key, first, count) in the old format."""
        count = len(self.numbers) if count is None else count
        key = ("storage", Name(f"torch.{self.kind}Storage"), self.key, "cpu", count)
        return Persistent((*key, part) if old else key)


def tensor(pointer, shape, strides=None, offset=0, *more):
    """Returns what makes a tensor of some numbers; `strides` of rows unless given."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    arguments = (
        pointer,
        offset,
        tuple(shape),
        tuple(strides),
        False,
        Call(Name("collections.OrderedDict")),
        *more,
    )
    return Call(Name("torch._utils._rebuild_tensor_v2"), arguments)


def write_zip(pickle, stored=(), folder="archive", order="little", **members):
    """Returns a file of the zip format.

    Args:
      pickle: bytes.
      stored: the numbers, Stored.
      folder: name of the folder inside.
      order: byte order that it claims; None: none.
      members: further members.
    """
    contents = {"data.pkl": pickle}
    contents |= {} if order is None else {"byteorder": order.encode()}
    contents |= {f"data/{run.key}": run.numbers.tobytes() for run in stored}
    contents |= {"version": b"3\n", **members}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(f"{folder}/{name}"), content)
    return buffer.getvalue()


def write_old(pickle, stored=(), magic=MAGIC, protocol=1001, system=SYSTEM, keys=None):
    """Returns a file of the old format; `keys` are those of `stored` unless given."""
    keys = [run.key for run in stored] if keys is None else keys
    head = pickled(magic) + pickled(protocol) + pickled(system) + pickle + pickled(keys)
    return head + b"".join(struct.pack("<q", len(run.numbers)) + run.numbers.tobytes() for run in stored)


def write(content, stored=(), old=False):
    """Returns a file of either format that holds `content`."""
    return (write_old if old else write_zip)(pickled(content), stored)


def write_state(arrays, old=False):
    """Returns a file of either format that holds an OrderedDict of {name: float32 array}."""
    stored = [Stored(str(i), "Float", np.ravel(array).astype("<f4")) for i, array in enumerate(arrays.values())]
    tensors = [
        (name, tensor(run.pointer(old), np.shape(arrays[name]))) for name, run in zip(arrays, stored, strict=True)
    ]
    instructions = b"".join(encode(name) + encode(value) for name, value in tensors)
    content = encode(Call(Name("collections.OrderedDict"))) + b"(" + instructions + b"u"
    return write(Raw(content), stored, old)
