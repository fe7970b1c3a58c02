"""The two formats of torch.save: what was saved, its tensors still unread, and where their numbers lie."""

import itertools
import os
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass, field

import numpy as np

from ssd_tf.errors import DataError, shown
from ssd_tf.pretrained import restricted_pickle
from ssd_tf.pretrained.restricted_pickle import Global, Opaque

_MAGIC = 0x1950A86A20F9469CFC6C  # first value of the old format
_PROTOCOL = 1001  # and its second
_MAX_AXES = 32
_MAX_DIRECTORY = 16 << 20  # bytes that tell of a hundred thousand members
_TAIL = 22 + (1 << 16)  # of a zip file: the last record with the longest comment
_FOREIGN_ZIP = "not a weights file: a zip archive that torch.save did not write"
_ENCRYPTED = 1  # flag of a member
_FOLDER = 16  # attribute: other readers then find nothing in it
_PIECE = 1 << 20  # bytes that are summed up at once
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LAYOUTS = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "BFloat16": "u2",  # the upper half of a float32
    "Byte": "u1",
    "Char": "i1",
    "Short": "i2",
    "Int": "i4",
    "Long": "i8",
    "Bool": "u1",
}
_STORAGES = {f"torch.{kind}Storage": kind for kind in _LAYOUTS}
# Named by optimizers and settings beside a state dict; looked at by nobody.
_OPAQUE_CALLS = {"collections.Counter", "_codecs.encode", "torch.device"}
_OPAQUE_CALLS |= {
    f"{room}.{name}" for room in ("builtins", "__builtin__") for name in ("set", "bytearray", "complex")
}
_NUMBER_TYPES = {"float16", "float32", "float64", "bfloat16", "half", "float", "double", "bool", "uint8", "int8"}
_NUMBER_TYPES |= {"int16", "int32", "int64", "complex64", "complex128"}


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of numbers.

    Attributes:
      key: its name in the file.
      kind: "Float", "Long"...: torch's name of its class without "Storage".
      count: how many numbers.
      first: index of its first number in the run of that name, of which it may be a part.
    """

    key: str
    kind: str
    count: int
    first: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage that stays inside it.

    Attributes:
      storage: Storage.
      offset: index of its first number in the storage.
      shape: tuple of sizes.
      strides: tuple: how many numbers further each axis's next one is.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class Archive:
    """A file of torch.save.

    Attributes:
      content: what was saved: plain values, dicts and Tensors.
      places: {storage key: offset in the file, in bytes}.
      order: "<" or ">": the byte order of the numbers.
    """

    content: object
    places: dict[str, int] = field(repr=False)
    order: str


def read_zip(file):
    """Reads the zip format but for its numbers.

    Args:
      file: open binary file.

    Returns:
      Archive.

    Raises:
      DataError: cut off, damaged, compressed, no state dict, or it would run code; does not name the file.
    """
    size = os.fstat(file.fileno()).st_size
    members = _list_members(file, size)
    folder = _find_folder(members)
    _check_version(file, members, folder, size)
    start = _locate(file, members[f"{folder}data.pkl"], size)
    length = members[f"{folder}data.pkl"].file_size
    if length > restricted_pickle.MAX_BYTES:
        raise DataError(f"refused: its pickle is larger than {restricted_pickle.MAX_BYTES >> 20} MiB")
    builder = _Builder(old=False)
    content, _ = restricted_pickle.load(read_at(file, start, length), 0, _find, builder.find_storage)
    places = {}
    for key, storage in builder.storages.items():
        member = members.get(f"{folder}data/{key}")
        if member is None:
            raise DataError(f"damaged: the numbers of storage {_name(key)} are missing")
        places[key] = _locate(file, member, size)
        if member.file_size != _bytes_of(storage):
            found, claimed = f"{member.file_size:,}", f"{_bytes_of(storage):,}"
            raise DataError(f"damaged: storage {_name(key)} has {found} bytes of numbers, not {claimed}")
    return Archive(content, places, _byte_order(file, members.get(f"{folder}byteorder"), size))


def _list_members(file, size):
    if _directory_size(read_at(file, max(0, size - _TAIL), min(size, _TAIL))) > _MAX_DIRECTORY:
        raise DataError(f"refused: its zip directory is larger than {_MAX_DIRECTORY >> 20} MiB")
    try:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except Exception as error:  # zipfile raises a dozen kinds over broken files
        reason = str(error).splitlines() or [type(error).__name__]
        raise DataError(
            f"cut off, or damaged: the zip directory at its end cannot be read: {shown(reason[0])[:80]}"
        ) from None
    members = {member.filename: member for member in listed}
    if len(members) < len(listed):
        raise DataError("damaged: has two members of one name")
    _refuse_overlaps(listed)
    return members


def _refuse_overlaps(members):
    """Those that lie in each other could have the same bytes read again and again."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    for member, after in itertools.pairwise(ordered):
        if member.header_offset + _LOCAL_HEADER.size + member.compress_size > after.header_offset:
            raise DataError(f"damaged: {_name(member.filename)} and {_name(after.filename)} in it overlap")


def _directory_size(tail):
    """Bytes that the end of a zip file claims for its directory."""
    at = len(tail) - 22
    if tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != bytes(2):
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise DataError("cut off: the zip directory at its end is missing")
    (length,) = struct.unpack_from("<I", tail, at + 12)
    large = at - 76  # where the same is told for files over 4 GiB
    if large >= 0 and tail[large : large + 4] == b"PK\x06\x06":
        length = max(length % 0xFFFFFFFF, *struct.unpack_from("<Q", tail, large + 40))
    return length


def _find_folder(members):
    folders = [
        name.removesuffix("data.pkl") for name in members if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(folders) != 1 or not all(name.startswith(folders[0]) for name in members):
        raise DataError(_FOREIGN_ZIP)
    if f"{folders[0]}constants.pkl" in members:
        raise DataError("refused: would run code: a TorchScript program; save model.state_dict()")
    return folders[0]


def _check_version(file, members, folder, size):
    member = members.get(f"{folder}.data/version") or members.get(f"{folder}version")
    word = read_at(file, _locate(file, member, size), min(member.file_size, 10)) if member else b""
    if not re.fullmatch(rb"[1-9][0-9]?\s*", word):
        raise DataError(_FOREIGN_ZIP)


def _locate(file, member, size):
    """Offset of the content of a member, which is neither compressed nor damaged and stays in the file."""
    name = _name(member.filename)
    stored = member.compress_type == zipfile.ZIP_STORED and member.file_size == member.compress_size
    if not stored or member.flag_bits & _ENCRYPTED or member.external_attr & _FOLDER:
        raise DataError(f"refused: {name} in it is compressed, encrypted or a folder")
    head = read_at(file, member.header_offset, _LOCAL_HEADER.size) if member.header_offset >= 0 else bytes(30)
    signature, *lengths = _LOCAL_HEADER.unpack(head)
    start = member.header_offset + _LOCAL_HEADER.size + sum(lengths)
    if signature != b"PK\x03\x04" or start + member.file_size > size:
        raise DataError(f"cut off, or damaged: {name} is not where the zip directory says")
    # torch.save writes 0 where it is told not to compute the sums.
    if member.CRC and _sum_up(file, start, member.file_size) != member.CRC:
        raise DataError(f"damaged: {name} in it is not what was written: its CRC-32 differs")
    return start


def _sum_up(file, start, count):
    """The CRC-32 of bytes of a file."""
    total = 0
    for at in range(start, start + count, _PIECE):
        total = zlib.crc32(read_at(file, at, min(_PIECE, start + count - at)), total)
    return total


def _byte_order(file, member, size):
    if member is None:
        return "<"
    word = read_at(file, _locate(file, member, size), min(member.file_size, 10))
    if word not in (b"little", b"big"):
        raise DataError("damaged: its byte order is neither little nor big")
    return "<" if word == b"little" else ">"


def read_old(file):
    """Reads the format that torch wrote before version 1.6, but for its numbers.

    Args, Returns, Raises: as `read_zip`.
    """
    size = os.fstat(file.fileno()).st_size
    data = read_at(file, 0, min(size, restricted_pickle.MAX_BYTES))
    builder = _Builder(old=True)
    magic, at = restricted_pickle.load(data, 0, _find, builder.refuse_storage)
    if magic != _MAGIC or type(magic) is not int:
        raise DataError("not a weights file: a pickle that torch.save did not write")
    protocol, at = restricted_pickle.load(data, at, _find, builder.refuse_storage)
    system, at = restricted_pickle.load(data, at, _find, builder.refuse_storage)
    if protocol != _PROTOCOL or type(system) is not dict or system.get("little_endian") is not True:
        raise DataError("torch's old format of another version, or of a machine that is not little-endian")
    content, at = restricted_pickle.load(data, at, _find, builder.find_storage)
    keys, at = restricted_pickle.load(data, at, _find, builder.refuse_storage)
    return Archive(content, _follow_storages(file, at, keys, builder.storages, size), "<")


def _follow_storages(file, at, keys, storages, size):
    """{key: offset} of the runs of numbers, each behind its count."""
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise DataError("damaged: its list of storages is not that of its tensors")
    places = {}
    for key in keys:
        (count,) = struct.unpack("<q", read_at(file, at, 8))
        if count != storages[key].count:
            raise DataError(f"damaged: storage {_name(key)} has {count:,} numbers, not {storages[key].count:,}")
        places[key] = at + 8
        at += 8 + _bytes_of(storages[key])
        if at > size:
            raise DataError(f"cut off: storage {_name(key)} goes on behind the end at byte {size:,}")
    return places


def read_at(file, start, count):
    """Returns `count` bytes of a file from `start` on.

    Raises:
      DataError: the file ends before, or cannot be read.
    """
    try:
        file.seek(start)
        data = file.read(count)
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"cannot read: {shown(error)[:80]}") from None
    if len(data) < count:
        raise DataError(f"cut off: ends before byte {start + count:,}")
    return data


def read_array(file, archive, tensor):
    """Reads the numbers of one tensor.

    Args:
      file: the open file that `archive` was read from.
      archive: Archive.
      tensor: Tensor of it.

    Returns:
      float32 array of the tensor's shape; what float32 cannot hold becomes infinite.

    Raises:
      DataError: unreadable.
    """
    layout = np.dtype(archive.order + _LAYOUTS[tensor.storage.kind])
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, np.float32)
    start = archive.places[tensor.storage.key] + (tensor.storage.first + tensor.offset) * layout.itemsize
    numbers = np.frombuffer(read_at(file, start, (_reach(tensor) + 1) * layout.itemsize), layout)
    steps = [stride * layout.itemsize for stride in tensor.strides]
    return _to_float32(np.lib.stride_tricks.as_strided(numbers, tensor.shape, steps), tensor.storage.kind)


def _to_float32(array, kind):
    if kind == "BFloat16":
        return (array.astype(np.uint32, order="C") << 16).view(np.float32)
    if kind == "Bool":
        array = array != 0
    with np.errstate(over="ignore"):
        return array.astype(np.float32, order="C")


def _reach(tensor):
    """How far the last number of a tensor that is not empty lies behind its first."""
    return sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides))


def _bytes_of(storage):
    return storage.count * np.dtype(_LAYOUTS[storage.kind]).itemsize


def _name(key):
    return shown(key[:80])


# --- what pickles of tensors ask for ----------------------------------------------------------------


class _Builder:
    """Collects the storages that a pickle names: {key: the whole run of that name}.

    Args:
      old: whether their ids end with which part of the run is meant.
    """

    def __init__(self, old):
        self.storages, self.old = {}, old

    def find_storage(self, persistent_id):
        """The Storage for ("storage", class, key, device, count); old ids end with (key, first, count) or None."""
        kind, storage_class, *rest = persistent_id
        if type(storage_class) is not Global:
            raise TypeError
        if kind == "module":
            raise restricted_pickle.whole_model(storage_class.name)
        key, _, count, *part = rest
        if storage_class.name not in _STORAGES:
            raise restricted_pickle.refusal(storage_class.name)
        if kind != "storage" or type(key) is not str or not _is_count(count) or len(part) != self.old:
            raise TypeError
        whole = Storage(key, _STORAGES[storage_class.name], count)
        known = self.storages.setdefault(key, whole)
        # Those without numbers may share a key.
        if count and (known.kind, known.count) != (whole.kind, whole.count):
            raise DataError(f"damaged: storage {_name(key)} is claimed in two sizes or types")
        return _part(whole, part[0]) if part and part[0] is not None else whole

    def refuse_storage(self, persistent_id):
        """Where no tensor has its place."""
        raise TypeError


def _part(whole, view):
    _, first, count = view
    if not _is_count(first) or not _is_count(count) or first + count > whole.count:
        raise DataError(f"damaged: a part of storage {_name(whole.key)} reaches out of it")
    return Storage(whole.key, whole.kind, count, first)


def _is_count(value):
    return type(value) is int and 0 <= value < 1 << 62


def _rebuild_tensor(storage, offset, shape, strides, requires_grad=False, hooks=None, metadata=None):
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError
    if metadata:
        raise DataError("refused: holds tensors that are negated or conjugated views")
    if len(shape) != len(strides) or len(shape) > _MAX_AXES or not all(map(_is_count, (offset, *shape, *strides))):
        raise DataError("damaged: a tensor with a shape and strides that do not go together")
    # Those of one number or none are never taken, and may be larger than any address.
    strides = tuple(stride if length > 1 else 0 for length, stride in zip(shape, strides, strict=True))
    tensor = Tensor(storage, offset, shape, strides)
    _check_bounds(tensor)
    return tensor


def _check_bounds(tensor):
    count = 1
    for length in tensor.shape:
        count *= length or 1
        if count > max(tensor.storage.count, 1 << 40 if 0 in tensor.shape else 1):
            raise DataError("refused: a tensor has more numbers than its storage")
    if 0 not in tensor.shape and tensor.offset + _reach(tensor) >= tensor.storage.count:
        raise DataError("refused: a tensor reaches out of its storage")


def _rebuild_parameter(tensor, *_):
    if type(tensor) is not Tensor:
        raise TypeError
    return tensor


def _ordered_dict(pairs=()):
    """Python 2 gives the entries here."""
    return {restricted_pickle.check_key(key): value for key, value in pairs}


def _size(lengths):
    if type(lengths) is not tuple:
        raise TypeError
    return lengths


_CALLS = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    "torch.nn.parameter.Parameter": _rebuild_parameter,
    "torch.Size": _size,
    **{name: lambda *_: Opaque() for name in _OPAQUE_CALLS},
}
_NAMED = _STORAGES.keys() | {f"torch.{name}" for name in _NUMBER_TYPES}


def _find(name):
    return Global(name, _CALLS.get(name), name in _CALLS or name in _NAMED)
