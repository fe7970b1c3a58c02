"""Files: read with a limit, written under a temporary name and renamed, locked, hashed."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from pathlib import Path

from ssd_tf.errors import ConfigError, DataError, EnvironmentFault, shown

JSON_LIMIT = 2 << 30
# What is left of a word, a number or an escape of JSON that was cut in it, from where the parser gives up.
_HALF = re.compile(r"|t|tr|tru|f|fa|fal|fals|n|nu|nul|-|\.|[eE][+-]?|u[0-9a-fA-F]{0,4}")
_MARKER = ".made_by_ssd_tf"
_OUTPUT_FAULTS = {
    errno.ENOSPC: "No space left on the device",
    errno.EDQUOT: "disk quota exceeded",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "read-only file system",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.ENOENT: "no such directory",
    errno.EISDIR: "a directory stands where a file is wanted",
    errno.ENAMETOOLONG: "file name too long",
}


@contextlib.contextmanager
def output_errors(path):
    """Turns the operating system's refusal to write into one line that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the system's
            raise
        reason = _OUTPUT_FAULTS.get(error.errno) or os.strerror(error.errno).lower()
        raise EnvironmentFault(f"{reason}: {shown(path)}") from error


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Opens a file that appears under its final name only when complete and on the disk.

    Args:
      path: final path; its directory must exist.
      mode: "wb" or "w" (UTF-8).

    Yields:
      the open file.

    Raises:
      EnvironmentFault: disk full or not writable; nothing is left behind.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with output_errors(path):
            with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            commit(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_name(path):
    """Returns a fresh hidden name beside `path`, for content that is not complete yet."""
    path = Path(path)
    return path.with_name(f".{path.name[:80]}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def commit(temporary, path):
    """Renames `temporary` (a file or directory, already synced) to `path` and syncs the directory."""
    os.replace(temporary, path)
    sync_directory(Path(path).parent)


def sync_directory(directory):
    """Makes the names in `directory` survive a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def make_directory(path):
    """Creates `path` and its parents; returns it as a Path.

    Raises:
      EnvironmentFault: not writable, or a file stands in the way.
    """
    path = Path(path)
    with output_errors(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise EnvironmentFault(f"a file stands where a directory is wanted: {shown(path)}") from None
    return path


def claim_file(path, inputs=()):
    """Makes sure that a file can be written later: creates its directory, refuses a directory of its name.

    Args:
      path: the file.
      inputs: files and directories the command reads, or None; nothing that exists in them is overwritten.

    Raises:
      ConfigError: it is an input.
      EnvironmentFault: not writable, or a directory stands there.
    """
    path = Path(path)
    make_directory(path.parent)
    with output_errors(path):  # a name may be too long to be asked for
        if path.is_dir():
            raise EnvironmentFault(f"{_OUTPUT_FAULTS[errno.EISDIR]}: {shown(path)}")
    for source in inputs:
        if source and path.exists() and path.resolve().is_relative_to(Path(source).resolve()):
            raise ConfigError(f"the output would overwrite an input: {shown(path)}")


@contextlib.contextmanager
def claim_output(path, own, inputs=(), overwrite=False, reports=(), clear=True, force=None):
    """Holds an output directory for one command.

    A directory is marked when it is claimed; only in marked ones is anything ever removed.

    Args:
      path: the directory.
      own: patterns of the names that the command writes; only these are removed.
      inputs: paths the command reads, or None; the output may be none of them and hold none of them.
      overwrite: accept what an earlier call of the command wrote.
      reports: names among `own` that do not count as content: what a failed call leaves.
      clear: remove it at once; else the caller replaces it when it has something better.
      force: take it even if another process seems to hold it; None where the command has no such flag.

    Yields:
      the directory as a Path.

    Raises:
      ConfigError: it is or holds an input, holds foreign files, is not empty without `overwrite`, or another
        process holds it.
      EnvironmentFault: not writable.
    """
    path = make_directory(path)  # also shows whether its links lead anywhere
    for source in filter(None, inputs):
        if Path(source).resolve() == path.resolve():
            raise ConfigError(f"the output is the input: {shown(path)}")
        if Path(source).resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"the output holds the input: {shown(source)}")
    _removable(path, own, overwrite, reports)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(directory_lock(path, bool(force)))
        except InUse as error:
            hint = "" if force is None else "; --force takes it all the same"
            raise ConfigError(f"{error}{hint}") from None
        leftovers = _removable(path, own, overwrite, reports)  # again: nobody else writes here now
        with output_errors(path):
            (path / _MARKER).touch()
            for entry in leftovers if clear else ():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        yield path


def _removable(path, own, overwrite, reports):
    """The entries that a claim removes; raises unless it may."""
    entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if not overwrite and any(entry.name not in reports for entry in entries):
        raise ConfigError(f"{shown(path)} is not empty; pass --overwrite to replace what is in it")
    for entry in entries:
        if not (path / _MARKER).exists() or not any(entry.match(pattern) for pattern in own):
            raise ConfigError(
                f"{shown(path)} holds {shown(entry.name)}, which is not ours; choose another directory"
            )
    return entries


def read_bytes(path, limit=None, count=-1):
    """Reads a regular file, the whole of it or its first bytes.

    Args:
      path: the file.
      limit: largest size accepted, in bytes.
      count: how many bytes to read; -1 for all.

    Returns:
      bytes.

    Raises:
      DataError: missing, unreadable, not a regular file, or larger than `limit`.
    """
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"not a regular file: {shown(path)}")
            if limit is not None and status.st_size > limit:
                raise DataError(f"refused: larger than {limit / 2**20:.0f} MiB: {shown(path)}")
            return file.read(count)
    except FileNotFoundError:
        raise DataError(f"no such file: {shown(path)}") from None
    except IsADirectoryError:
        raise DataError(f"not a regular file: {shown(path)}") from None
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno).lower() if isinstance(error, OSError) else str(error)
        raise DataError(f"cannot read: {reason}: {shown(path)}") from None


def _open_without_waiting(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # or a FIFO would wait for its writer


def read_text(path, limit=None):
    """Reads a UTF-8 text file (a byte order mark is dropped).

    Raises:
      DataError: as `read_bytes`, or the bytes are not UTF-8.
    """
    return _decode(read_bytes(path, limit), path)


def _decode(data, path):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = f"byte 0x{data[error.start]:02X} at {error.start}"
        raise DataError(f"{shown(path)} is not UTF-8 ({at})") from None


def read_json(path, limit=JSON_LIMIT, object_hook=None):
    """Reads a JSON file strictly (no NaN, no Infinity); `object_hook` is json.loads's.

    Raises:
      DataError: unreadable or malformed; the message names the file and the place.
    """
    data = read_bytes(path, limit)
    cut = DataError(f"{shown(path)}: cut at byte {len(data):,}")
    if _ends_inside_a_character(data):
        raise cut
    text = _decode(data, path)
    del data  # a large file is in memory once only

    def refuse(constant):
        raise DataError(f"{shown(path)}: {constant} is not a number in JSON")

    try:
        return json.loads(text, parse_constant=refuse, object_hook=object_hook)
    except json.JSONDecodeError as error:
        if _is_cut(text, error):
            raise cut from None
        raise DataError(f"{shown(path)}:{error.lineno}:{error.colno}: {error.msg}") from None
    except RecursionError:
        raise DataError(f"{shown(path)}: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{shown(path)}: {str(error).splitlines()[0]}") from None


def _ends_inside_a_character(data):
    for count, byte in enumerate(reversed(data[-3:]), 1):
        if byte >= 0xC0:  # the first of 2, 3 or 4 bytes in UTF-8
            return count < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        if byte < 0x80:
            return False
    return False


def _is_cut(text, error):
    """Whether JSON is malformed only because its end is missing."""
    rest = text[error.pos :].rstrip()
    return error.msg.startswith("Unterminated string") or _HALF.fullmatch(rest) is not None


def write_json(path, value):
    """Writes `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.write("\n")


def sha256_file(path):
    """Returns the hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_join(root, name):
    """Joins a name found inside a file to `root`.

    Raises:
      DataError: the result would lie outside `root`.
    """
    root = Path(root)
    joined = root / name
    # Compared as text: a link inside the root is the owner's own choice.
    if not Path(os.path.abspath(joined)).is_relative_to(os.path.abspath(root)):
        raise DataError(f"refused: path leaves the dataset root: {shown(name)}")
    return joined


def check_free_space(directory, needed):
    """Raises EnvironmentFault unless `directory`'s disk has `needed` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise EnvironmentFault(
            f"No space left: needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} free: {shown(directory)}"
        )


class InUse(EnvironmentFault):
    """Another process holds a directory."""


@contextlib.contextmanager
def directory_lock(directory, force=False):
    """Holds `directory` for one writing process; the system frees it when the process dies.

    Args:
      directory: where the lock file lies.
      force: go on even if another process holds it: network drives may keep the locks of the dead.

    Raises:
      InUse: another process holds it; names process, host and time.
    """
    path = Path(directory) / ".lock"
    with output_errors(path):
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below, after the lock's life
    try:
        try:
            _lock(file, directory)
        except InUse:
            if not force:
                raise
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield
    finally:
        file.close()


def _lock(file, directory):
    try:
        import fcntl
    except ImportError:  # Windows keeps the file open exclusively enough for one user
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        raise InUse(f"{shown(directory)} is in use by {owner}") from None
