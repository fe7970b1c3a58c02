"""Files that others publish, fetched into a cache: resumed where cut, checked before they are used."""

import bz2
import contextlib
import gzip
import http.client
import lzma
import os
import re
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from pathlib import Path, PurePosixPath

from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault, shown

CACHE_VARIABLE = "SSD_TF_CACHE"
_TRIES = 5
_WAIT = 1.0  # seconds before the second try; twice as long before each further one
_TIMEOUT = 30.0  # seconds of silence
_CHUNK = 1 << 20
_LIMIT = 4 << 30  # bytes of a file whose size is not known, and of what an archive holds
_HEADERS = 1 << 19  # bytes of an archive's headers, which tarfile keeps in memory
_RETRIED = (408, 416, 425, 429)  # and all from 500 on
_ELSEWHERE = "download it elsewhere and give --weights=FILE"
_PIECE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15}|\*)")
_ENDING = r"(|\.[\w.-]{1,80})"
_TAGS = {"tag": "ETag", "modified": "Last-Modified"}  # what is noted of the server's file, and its header
_PACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open, b"\x5d\0\0": lzma.open}


class _Cut(Exception):
    """The transfer failed in a way that another try may mend; `restart`: if it leaves out what is there."""

    def __init__(self, reason, restart=False):
        super().__init__(reason)
        self.restart = restart


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, response, code, message, headers, new):
        """Follows a redirection to the web alone, and from https to nothing less."""
        if urllib.parse.urlsplit(new).scheme not in (("https",) if request.type == "https" else ("http", "https")):
            return None  # which makes it an error of the redirection's status
        return super().redirect_request(request, response, code, message, headers, new)


class _Unpacked:
    """What an archive holds, unpacked: read onwards alone, and no more of it than is bearable."""

    def __init__(self, file):
        self._file, self._at, self._headers = file, 0, _HEADERS

    def tell(self):
        return self._at

    def seek(self, position):
        """Goes on to a place, or to the end before it."""
        if position < self._at:
            raise tarfile.ReadError("it leads backwards")
        while self.take(position - self._at):
            pass

    def read(self, count):
        """Returns the next bytes: what tarfile reads are headers, since members are taken."""
        if not 0 <= count <= self._headers:
            raise tarfile.ReadError("too many headers, or too large ones")
        self._headers -= count
        return self.take(count)

    def take(self, count):
        """Returns the next bytes, not too many at once; fewer at the end."""
        data = self._file.read(min(count, _CHUNK))
        self._at += len(data)
        if self._at > _LIMIT:
            raise tarfile.ReadError(f"more than {_LIMIT:,} bytes")
        return data


def cache_directory():
    """Returns where fetched files are kept: $SSD_TF_CACHE, or .cache/ssd_tf in the home directory."""
    named = os.environ.get(CACHE_VARIABLE)
    try:
        return Path(named) if named else Path.home() / ".cache" / "ssd_tf"
    except RuntimeError:
        raise EnvironmentFault(f"no home directory: name one for downloads by {CACHE_VARIABLE}") from None


def check_base_url(base_url):
    """Raises ConfigError unless `base_url` is None or a web address."""
    if base_url is not None:
        try:
            parts = urllib.parse.urlsplit(base_url)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            sound = False
        if not sound or not base_url.isprintable() or " " in base_url:
            raise ConfigError(f"--base_url: expected http://HOST/FOLDER or https://..., got {shown(base_url)!r}")


def fetch_all(downloads, folder, base_url=None, progress=None):
    """Fetches the files of a source into one folder.

    Args:
      downloads: catalogue.Downloads.
      folder: where they are kept; nobody else writes there meanwhile.
      base_url: where they lie in place of their owner's folder: BASE_URL/FILENAME, FILENAME being the last part of
        a download's url; or None.
      progress: function (bytes that are there, bytes in all), or None.

    Returns:
      path of the first one.

    Raises:
      as `fetch`.
    """
    folder = fileio.make_directory(folder)
    sizes = [download.size for download in downloads]
    paths, before = [], 0
    with fileio.directory_lock(folder):
        for download in downloads:
            shift, total = before, sum(sizes) if all(sizes) else 0

            def show(done, of, shift=shift, total=total):
                progress(shift + done, total or shift + of)

            paths.append(fetch(download, folder, base_url, show if progress else None))
            before += download.size
    return paths[0]


def fetch(download, folder, base_url=None, progress=None):
    """Fetches one file, unless a sound copy is there.

    Args:
      download: catalogue.Download.
      folder: where it is kept.
      base_url: as of fetch_all.
      progress: function (bytes that are there, bytes in all), or None.

    Returns:
      path of the file; of its `member`, taken out beside it, where that is asked for. A member that is the common
      beginning of several names stays such a beginning: nothing of exactly that name is there.

    Raises:
      DataError: the transfer was cut again and again, or gave another file than expected; nothing of it is used.
      EnvironmentFault: nothing can be fetched from there, or the cache cannot be written.
    """
    url = _address(download.url, base_url)
    target = _target(download, folder)
    if not _is_sound(target, download, url):
        _fetch_anew(url, target, download, progress)
    if not download.member:
        return target
    try:
        return _extract(target, download.member)
    except DataError:
        target.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def forgetting(downloads, path, but=()):
    """Removes fetched files that may be anything if they cannot be used, so that the next try fetches them again.

    Args:
      downloads: catalogue.Downloads that the block uses; those whose SHA-256 is known are what was expected: they
        stay.
      path: what fetch_all has returned for them.
      but: kinds of DataErrors that are not the files' fault.

    Raises:
      DataError: of the block; tells of the removal.
    """
    try:
        yield
    except but:
        raise
    except DataError as error:
        if not _remove_unknown(downloads, Path(path).parent):
            raise
        raise DataError(f"{error}: removed from the cache, the next try fetches it again") from None


def _remove_unknown(downloads, folder):
    """Whether a file was removed; none is while another process writes there."""
    targets = [_target(download, folder) for download in downloads if not download.sha256]
    found = [target for target in targets if target.is_file()]
    with contextlib.suppress(EnvironmentFault):
        if found:
            with fileio.directory_lock(folder), fileio.output_errors(folder):
                for target in found:
                    _state_path(target).unlink(missing_ok=True)
                    target.unlink(missing_ok=True)
            return True
    return False


def _target(download, folder):
    return Path(folder) / _file_name(download.url)


def _file_name(url):
    return PurePosixPath(urllib.parse.urlsplit(url).path).name


def _address(url, base_url):
    check_base_url(base_url)
    return f"{base_url.rstrip('/')}/{_file_name(url)}" if base_url else url


def _state_path(target):
    return target.with_name(f".{target.name}.json")


def _read_state(target):
    """What was noted: url, of a whole file size and sha256, of a beginning the whole's total, tag and modified."""
    try:
        state = fileio.read_json(_state_path(target), _CHUNK)
    except DataError:
        return {}
    return state if isinstance(state, dict) else {}


def _is_sound(target, download, url):
    """Whether a whole file of the expected content is there; by what was noted where nothing is known about it."""
    if not target.is_file():
        return False
    size, digest = download.size, download.sha256
    if not digest:
        state = _read_state(target)
        size, digest = (state.get("size"), state.get("sha256")) if state.get("url") == url else (None, None)
        if download.size not in (0, size) or not isinstance(digest, str) or not digest:
            return False
    return target.stat().st_size == (size or target.stat().st_size) and _has_digest(target, digest)


def _has_digest(path, digest):
    return fileio.sha256_file(path).startswith(digest.lower())


def _fetch_anew(url, target, download, progress):
    part = target.with_name(f".{target.name}.part")
    resumed = part.exists()
    _transfer(url, target, part, download, progress)
    if resumed and not _has_digest(part, download.sha256):  # its beginning may be another file's
        _forget(target, part)
        _transfer(url, target, part, download, progress)
    size, digest = part.stat().st_size, fileio.sha256_file(part)
    if not digest.startswith(download.sha256.lower()):
        _forget(target, part)
        raise _changed(url, f"SHA-256 {digest}, expected {download.sha256}{'...' * (len(download.sha256) < 64)}")
    fileio.write_json(_state_path(target), {"url": url, "size": size, "sha256": digest})
    with fileio.output_errors(target), open(part, "rb") as file:
        os.fsync(file.fileno())
        fileio.commit(part, target)


def _changed(url, what):
    return DataError(f"another file than expected ({what}): {shown(url)}: {_ELSEWHERE} if it is meant")


def _forget(target, part):
    for path in (part, _state_path(target)):
        path.unlink(missing_ok=True)


def _transfer(url, target, part, download, progress):
    """Brings the whole file to `part`, in several tries if need be."""
    for number in range(_TRIES):
        if number:
            time.sleep(_WAIT * 2 ** (number - 1))
        try:
            while not _receive(url, target, part, download, progress):
                pass  # the server hands it out in pieces
            return
        except _Cut as error:
            reason = str(error)
            if error.restart:
                part.unlink(missing_ok=True)
    kept = part.stat().st_size if part.exists() else 0
    if kept:
        raise DataError(f"download cut at {kept:,} bytes ({reason}): {shown(url)}: try again, or {_ELSEWHERE}")
    raise EnvironmentFault(f"cannot fetch ({reason}): {shown(url)}: {_ELSEWHERE}")


def _receive(url, target, part, download, progress):
    """One try, from where the last one ended if the server's file is still the same; whether it is whole then."""
    headers = _resuming_headers(url, target, part, download)
    with _open(url, headers) as response:
        asked, noted = (part.stat().st_size, _read_state(target)) if headers else (0, {})
        start, end, total = _find_piece(response, asked, noted, download)
        if download.size and total != download.size:
            _forget(target, part)
            raise _changed(url, f"{total:,} bytes, expected {download.size:,}")
        if total > _LIMIT:
            raise _changed(url, f"{total:,} bytes")
        fileio.check_free_space(part.parent, total - start)
        if not start:
            part.unlink(missing_ok=True)  # before what is noted is no longer about it
            tags = {key: response.headers.get(header) or "" for key, header in _TAGS.items()}
            fileio.write_json(_state_path(target), {"url": url, "total": total, **tags})
        done = _append(response, part, start, end, total, progress)
    if done < end:
        raise _Cut(f"it has {total:,}")
    if start and done > end:
        raise _Cut("the server sent more than it announced", restart=True)
    if done > (end or _LIMIT):
        _forget(target, part)
        raise _changed(url, f"more than {end or _LIMIT:,} bytes")
    return done >= total


def _resuming_headers(url, target, part, download):
    """Asks for the rest of what is there, if it can be told that it is the rest of the same file."""
    state, start = _read_state(target), part.stat().st_size if part.exists() else 0
    tag = state.get("tag") or state.get("modified")
    tag = tag if isinstance(tag, str) and tag.isprintable() and not tag.startswith("W/") else ""
    if not start or state.get("url") != url or not (tag or download.sha256):
        return {}
    return {"Range": f"bytes={start}-", **({"If-Range": tag} if tag else {})}


def _open(url, headers):
    """The response to a request; without handlers of file:, ftp: and data: addresses."""
    opener = urllib.request.OpenerDirector()
    kinds = ("ProxyHandler", "HTTPHandler", "HTTPSHandler", "HTTPDefaultErrorHandler", "HTTPErrorProcessor")
    for handler in (*(getattr(urllib.request, kind)() for kind in kinds), _Redirects()):
        opener.add_handler(handler)
    headers = {"User-Agent": "ssd_tf", "Accept-Encoding": "identity", **headers}
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _RETRIED or error.code >= 500:
            raise _Cut(f"HTTP status {error.code}", restart=error.code == 416) from None
        moved = f", it leads to {shown(error.headers.get('Location'))[:200]}" if error.code < 400 else ""
        raise EnvironmentFault(
            f"cannot fetch (HTTP status {error.code}{moved}): {shown(url)}: {_ELSEWHERE}"
        ) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Cut(_reason(error)) from None


def _reason(error):
    reason = getattr(error, "reason", None) or error
    return shown(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)[:120].lower()


def _find_piece(response, asked, noted, download):
    """Where in the file a response begins, where it ends, and the file's size; both 0 if they are not told."""
    headers = response.headers
    if response.status != 206:
        length = headers.get("Content-Length", "")
        total = int(length) if re.fullmatch(r"[0-9]{1,15}", length) else download.size
        return 0, total, total
    match = _PIECE.fullmatch(headers.get("Content-Range", "").strip())
    if not match or int(match[1]) != asked:
        raise _Cut("the server sent another part than asked for", restart=True)
    known = download.size or noted.get("total") or 0
    end, total = int(match[2]) + 1, known if match[3] == "*" else int(match[3])
    if not asked < end <= total or known not in (0, total):
        raise _Cut("the server sent a part of a file of another size", restart=True)
    if any(noted.get(key) and headers.get(header, noted[key]) != noted[key] for key, header in _TAGS.items()):
        raise _Cut("the file has changed", restart=True)
    return asked, end, total


def _append(response, part, start, end, total, progress):
    """Writes what comes; returns how many bytes there are then, one more than there may be if there are more."""
    done, limit = start, end or _LIMIT
    with fileio.output_errors(part), open(part, "ab" if start else "wb") as file:
        while done <= limit:
            chunk = _read(response, min(_CHUNK, limit + 1 - done))
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, max(total, done))
    return done


def _read(response, count):
    try:
        return response.read1(count)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Cut(_reason(error)) from None


def _extract(archive, member):
    """Takes a regular file, or those whose names go on after `member` and a dot, out of a tar archive."""
    target = archive.with_name(PurePosixPath(member).name)
    _remove_members(archive, target.name)
    names = re.compile(r"(?:\./)?" + re.escape(member) + _ENDING)
    try:
        with _open_unpacked(archive) as file:
            found = _take_members(_Unpacked(file), names, target)
    except DataError as error:
        raise DataError(f"{error}: {shown(archive)}") from None
    except (RecursionError, MemoryError):
        raise DataError(f"cannot read the archive: it needs too much memory: {shown(archive)}") from None
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, ArithmeticError, OSError) as error:
        raise DataError(f"cannot read the archive: {shown(error)[:120]}: {shown(archive)}") from None
    if not found:
        raise DataError(f"no {shown(member)} in the archive: {shown(archive)}")
    return target


def _remove_members(archive, name):
    """Removes what an earlier archive held: beside new files it could be read in their place."""
    names = re.compile(re.escape(name) + _ENDING)
    with fileio.output_errors(archive.parent):
        for path in list(archive.parent.iterdir()):
            if path != archive and names.fullmatch(path.name) and not path.is_dir():
                path.unlink()


def _open_unpacked(archive):
    with open(archive, "rb") as file:
        start = file.read(max(map(len, _PACKERS)))
    opener = next((opener for magic, opener in _PACKERS.items() if start.startswith(magic)), open)
    return opener(archive, "rb")


def _take_members(unpacked, names, target):
    """Writes the members of such names to files; tells whether there are any."""
    found = False
    with tarfile.open(fileobj=unpacked, mode="r:") as tar:
        while entry := tar.next():
            tar.members.clear()  # each may hold all the pax headers before it
            match = names.fullmatch(entry.name)
            if match is None:
                continue
            if not entry.isreg() or entry.issparse() or not 0 <= entry.size <= _LIMIT - unpacked.tell():
                raise DataError(f"refused: {shown(entry.name)[:80]} is a link, sparse or too large")
            with fileio.atomic_write(target.with_name(target.name + match[1])) as file:
                _copy(unpacked, entry, file)
            found = True
            if not match[1]:
                break
    return found


def _copy(unpacked, entry, file):
    end = entry.offset_data + entry.size
    unpacked.seek(entry.offset_data)
    while unpacked.tell() < end:
        data = unpacked.take(end - unpacked.tell())
        if not data:
            raise tarfile.ReadError("unexpected end of data")
        file.write(data)
