"""Weights that PyTorch users keep, read by what a file is and not by how it is called; nothing in it is run."""

import contextlib
import inspect
import os
import stat
import warnings

import numpy as np

from ssd_tf.errors import DataError, is_text, shown
from ssd_tf.pretrained import safetensors_file, torch_archive
from ssd_tf.pretrained.torch_archive import Tensor

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
_EXPECTED = "expected a .pth file of torch.save or safetensors"
_MAX_DEPTH = 3  # dicts around the tensors
# What people have in place of weights, by how it starts.
_STRANGERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"BZh": "packed by bzip2; unpack it",
    b"\xfd7zXZ": "packed by xz; unpack it",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself (git lfs pull)",
    b"%PDF": "a PDF document",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89PNG": "a PNG image",
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")


@contextlib.contextmanager
def open_tensors(path):
    """Opens weights in safetensors, torch's zip format or its old one; numbers are read when asked for.

    A dict of tensors inside a training checkpoint is found; the "module." that DataParallel puts before all names
    is taken off. With torch installed its own reader reads the numbers, behind the same checks.

    Args:
      path: the file.

    Yields:
      ({name: shape}, function from a name to its array, float32).

    Raises:
      DataError: unreadable, damaged, of another kind, without tensors, or it would run code; the caller names the
        file.
      EnvironmentFault: a safetensors file, and its package is missing.
    """
    with _open(path) as file:
        start = file.read(512)
        if _is_safetensors(start):
            with safetensors_file.open_safetensors(path) as (shapes, read):
                yield _renamed(shapes, read)
            return
        if start[:4] == b"PK\x03\x04":
            archive = torch_archive.read_zip(file)
        elif start[:1] == b"\x80":
            archive = torch_archive.read_old(file)
        else:
            raise DataError(f"not a weights file: {_describe(start)} ({_EXPECTED})")
        keys, tensors = find_tensors(archive.content)
        read = _torch_reader(file, keys, tensors) or (
            lambda name: torch_archive.read_array(file, archive, tensors[name])
        )
        yield _renamed({name: tensor.shape for name, tensor in tensors.items()}, read)


def _open(path):
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - the caller closes it
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) else shown(error)
        raise DataError(f"cannot read: {reason}") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError("cannot read: not a regular file")
    return file


def _open_without_waiting(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # or a FIFO would wait for its writer


def _is_safetensors(start):
    """Whether a file begins with the length of a JSON header and its brace."""
    return start[8:9] == b"{" and start[5:8] == bytes(3)


def _describe(start):
    if not start:
        return "empty"
    if start.lstrip().lower().startswith(_PAGES):
        return "a web page, so the download went wrong"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it"
    if not any(start):
        return "nothing but zeros"
    for signature, description in _STRANGERS.items():
        if start.startswith(signature):
            return description
    return f"starts with {start[:16]!r}"


def _renamed(shapes, read):
    """The same without the "module." that all names may begin with."""
    prefix = "module." if all(name.startswith("module.") for name in shapes) else ""
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()}, lambda name: read(prefix + name)


# --- the state dict -------------------------------------------------------------------------------


def find_tensors(content):
    """Finds the one dict of tensors in what was saved.

    Args:
      content: plain values, dicts and torch_archive.Tensors.

    Returns:
      (keys that lead to the dict, {name: Tensor}); entries of other kinds are left out.

    Raises:
      DataError: there is none, or more than one and no known name tells which.
    """
    keys = _find(content, _MAX_DEPTH, set())
    if keys is None:
        entries = (
            ", ".join(shown(key)[:40] for key in list(content)[:5]) if _is_dict(content) else "something else"
        )
        raise DataError(f"holds no dict of tensors, only {entries or 'an empty dict'}")
    for key in keys:
        content = content[key]
    tensors = {name: value for name, value in content.items() if type(value) is Tensor}
    for name in tensors:
        if not is_text(name):
            raise DataError(f"a tensor's name is not text: {shown(repr(name))[:80]}")
    return keys, tensors


def _find(value, depth, seen):
    """The keys that lead to a dict of tensors, or None; dicts already looked at are passed over."""
    if not _is_dict(value) or not depth or id(value) in seen:
        return None
    seen.add(id(value))
    for key in _WRAPPERS:
        keys = _find(value.get(key), depth - 1, seen)
        if keys is not None:
            return (key, *keys)
    if _holds_tensors(value):
        return ()
    inner = [key for key, entry in value.items() if _is_dict(entry) and _holds_tensors(entry)]
    if len(inner) > 1:
        names = ", ".join(shown(key)[:40] for key in inner[:5])
        raise DataError(f"holds several dicts of tensors: {names}; save the one state dict that is meant")
    return (inner[0],) if inner else None


def _is_dict(value):
    return type(value) is dict


def _holds_tensors(value):
    return any(type(entry) is Tensor for entry in value.values())


# --- torch's own reader ---------------------------------------------------------------------------


def _torch_reader(file, keys, tensors):
    """A function from a name to its array by torch's own reader; None where there is no torch that is safe."""
    try:
        import torch
    except (ImportError, OSError):  # missing, or its libraries are
        return None
    if "weights_only" not in inspect.signature(torch.load).parameters:  # older than 1.13
        return None
    with _torch_errors():
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
        for key in keys:
            content = content[key]
        values = {name: content[name] for name in tensors}
    for name, tensor in tensors.items():
        if tuple(values[name].shape) != tensor.shape:
            raise DataError(f"{shown(name)[:80]} has another shape for torch")

    def read(name):
        with _torch_errors():
            return np.array(values[name].detach().to(torch.float32).numpy(), order="C")

    return read


@contextlib.contextmanager
def _torch_errors():
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # torch has many kinds, and texts of many lines
        reason = str(error).splitlines() or [type(error).__name__]
        raise DataError(f"torch cannot read it: {shown(reason[0])[:120]}") from None
