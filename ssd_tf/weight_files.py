"""Weight files, judged before anything is read from them: a stranger's may be no weights at all."""

import math
import os
import zipfile

import h5py
import numpy as np

from ssd_tf.errors import DataError, shown

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_OBJECTS = 100_000
_MAX_EXPANSION = 8  # weights hardly compress; a file that unpacks to more than this is made to fill the memory
_SMALL = 16 << 20
_SLACK = 64 << 10  # names and counters that a file may hold beside the weights
_MAX_HEADER = 4096  # of an array in an .npz file


def check_weights_file(path, limit=None):
    """Refuses a file that is no HDF5, reaches outside itself, or claims more than it can hold.

    Args:
      path: the file.
      limit: bytes of the model's weights, or None: what the file's own size makes credible.

    Raises:
      DataError: why it is refused; names the file.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(len(_SIGNATURE))
    except OSError as error:
        raise DataError(f"cannot read: {os.strerror(error.errno).lower()}: {shown(path)}") from None
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":  # .keras, pickles and what torch makes of them
        raise DataError(f"refused: would run code; use keras.saving with safe_mode yourself: {shown(path)}")
    if start != _SIGNATURE:
        raise DataError(f"not an HDF5 weights file (starts with {start.hex(' ')}): {shown(path)}")
    try:
        with h5py.File(path, "r") as file:
            declared = _declared_bytes(file)
            credible = max(_SMALL, _MAX_EXPANSION * file.id.get_filesize())
    except DataError as error:
        raise DataError(f"{error}: {shown(path)}") from None
    except Exception as error:  # a broken file makes the HDF5 library raise whatever it stumbles over
        raise DataError(f"cannot read HDF5: {str(error).splitlines()[0][:120]}: {shown(path)}") from None
    if limit is not None and declared > limit + _SLACK:
        raise DataError(
            f"weights do not fit: {_mebibytes(declared)}, the model has {_mebibytes(limit)}: {shown(path)}"
        )
    if declared > credible:
        raise DataError(f"refused: claims to hold {_mebibytes(declared)}: {shown(path)}")


def _mebibytes(count):
    return f"{count / 2**20:,.1f} MiB"


def _declared_bytes(file):
    """Bytes of all arrays as their headers state them; nothing is read, no link out of the file is followed."""
    waiting, seen, total = [file], set(), 0
    while waiting:
        group = waiting.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise DataError(f"refused: {shown(name)[:80]} is a link")
            entry = group[name]
            address = h5py.h5o.get_info(entry.id).addr
            if address in seen:
                continue
            seen.add(address)
            if len(seen) > _MAX_OBJECTS:
                raise DataError(f"refused: more than {_MAX_OBJECTS:,} objects")
            if isinstance(entry, h5py.Dataset):
                total += _dataset_bytes(entry, name)
            elif isinstance(entry, h5py.Group):
                waiting.append(entry)
    return total


def _dataset_bytes(dataset, name):
    if dataset.external or dataset.is_virtual:
        raise DataError(f"refused: {shown(name)[:80]} lies in another file")
    if dataset.dtype.hasobject:
        raise DataError(f"refused: {shown(name)[:80]} holds objects, not numbers")
    return math.prod(dataset.shape or (0,)) * dataset.dtype.itemsize


def read_arrays(path, shapes):
    """Reads an .npz file of arrays whose shapes are known, and nothing else.

    Args:
      path: the file.
      shapes: the shape of each array, in the order of their names.

    Returns:
      list of arrays.

    Raises:
      DataError: other arrays, other shapes, compressed or damaged; names the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.filename)
            if len(members) != len(shapes):
                raise DataError(f"{len(members)} arrays, expected {len(shapes)}")
            return [_read_array(archive, member, shape) for member, shape in zip(members, shapes)]
    except DataError as error:
        raise DataError(f"{error}: {shown(path)}") from None
    except Exception as error:  # zipfile and NumPy raise a dozen kinds over broken files
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise DataError(f"cannot read arrays: {reason}: {shown(path)}") from None


def _read_array(archive, member, shape):
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise DataError(f"{shown(member.filename)[:80]} is compressed")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
        if read_header is None:
            raise DataError(f"{shown(member.filename)[:80]} has a header of version {version}")
        found, _, dtype = read_header(file, max_header_size=_MAX_HEADER)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise DataError(f"{shown(member.filename)[:80]} holds objects, not numbers")
    if found != tuple(shape):
        raise DataError(f"{shown(member.filename)[:80]} is {list(found)}, expected {list(shape)}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False, max_header_size=_MAX_HEADER)
