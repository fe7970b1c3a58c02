"""Files: whole or absent, read within limits, locked between processes."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest

from ssd_tf import fileio
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)


def message_of(error, function, *arguments, **options):
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_atomic_write_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("a long old content")
    with fileio.atomic_write(path, "w") as file:
        file.write("é\n")
        file.flush()
        assert path.read_text() == "a long old content"
        (hidden,) = [name for name in names_in(tmp_path) if name != "a.txt"]
        assert hidden.startswith(".a.txt.tmp-")
    assert path.read_bytes() == "é\n".encode()
    assert names_in(tmp_path) == ["a.txt"]


def test_reader_of_the_old_file_is_not_disturbed(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with open(path) as reader:
        write_bytes(path, b"new")
        assert reader.read() == "old"  # a rename, not a copy: nobody ever sees half a file


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda source, target: events.append("replace"))
    write_bytes(tmp_path / "a.bin", b"new")
    assert events == ["fsync", "replace", "fsync"]  # the file, its name, the directory


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_interrupted_write_keeps_the_old_content(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(type(error)), fileio.atomic_write(path) as file:
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "No space left on the device"),
        (errno.EDQUOT, "disk quota exceeded"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only file system"),
    ],
)
def test_refused_write_is_an_environment_fault(tmp_path, monkeypatch, number, reason):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    assert message_of(EnvironmentFault, write_bytes, path, b"new") == f"{reason}: {path}"
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


def write_bytes(path, data):
    with fileio.atomic_write(path) as file:
        file.write(data)


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.EIO, "input/output error"), (errno.EFBIG, "file too large")]
)
def test_any_refusal_of_the_operating_system_is_one_line(tmp_path, monkeypatch, number, reason):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    path = tmp_path / "a.bin"
    assert message_of(EnvironmentFault, write_bytes, path, b"new") == f"{reason}: {path}"
    assert names_in(tmp_path) == []


def test_output_behind_links_that_lead_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    message = message_of(EnvironmentFault, claim, tmp_path / "loop" / "x", ("*",), inputs=(tmp_path,))
    assert message == f"too many levels of symbolic links: {tmp_path / 'loop' / 'x'}"


def test_write_where_no_file_can_be(tmp_path):
    path = tmp_path / "missing" / "a.bin"
    assert message_of(EnvironmentFault, write_bytes, path, b"x") == f"no such directory: {path}"
    directory = "a directory stands where a file is wanted"
    assert message_of(EnvironmentFault, write_bytes, tmp_path, b"x") == f"{directory}: {tmp_path}"
    assert message_of(EnvironmentFault, fileio.claim_file, tmp_path) == f"{directory}: {tmp_path}"
    long = tmp_path / ("a" * 300)
    assert message_of(EnvironmentFault, fileio.claim_file, long) == f"file name too long: {long}"
    fileio.claim_file(path)
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_write_below_a_file_is_an_environment_fault(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = tmp_path / "file" / "a.bin"
    assert message_of(EnvironmentFault, write_bytes, path, b"x") == (
        f"a part of the path is a file, not a directory: {path}"
    )


@as_root
def test_write_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        message = message_of(EnvironmentFault, write_bytes, tmp_path / "a.bin", b"x")
    finally:
        tmp_path.chmod(0o700)
    assert message == f"permission denied: {tmp_path / 'a.bin'}"


def test_temporary_names_differ_and_fit_the_file_system(tmp_path):
    path = tmp_path / ("x" * 250)
    first, second = fileio.temporary_name(path), fileio.temporary_name(path)
    assert first != second and first.parent == tmp_path
    first.write_bytes(b"")
    assert len(first.name) < 255


@pytest.mark.parametrize("name", ["a.jpg", "b/../c.jpg", "./a", "b/..", "..a/b", ".", "é é.jpg"])
def test_safe_join_inside(tmp_path, name):
    assert fileio.safe_join(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "b/../../a", "..", "b/../../../etc/passwd"])
def test_safe_join_outside(tmp_path, name):
    assert message_of(DataError, fileio.safe_join, tmp_path, name) == (
        f"refused: path leaves the dataset root: {name}"
    )


def test_safe_join_is_no_comparison_of_letters(tmp_path):
    message_of(DataError, fileio.safe_join, tmp_path / "data", "../data2/a.jpg")
    assert fileio.safe_join("data", "a.jpg").as_posix() == "data/a.jpg"


def test_read_bytes_up_to_a_limit(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * (1 << 20))
    assert fileio.read_bytes(path, 1 << 20) == b"x" * (1 << 20)
    path.write_bytes(b"x" * ((1 << 20) + 1))
    assert message_of(DataError, fileio.read_bytes, path, 1 << 20) == f"refused: larger than 1 MiB: {path}"
    assert len(fileio.read_bytes(path)) == (1 << 20) + 1


def test_read_bytes_of_what_is_no_file(tmp_path):
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(tmp_path / "gone")
    assert message_of(DataError, fileio.read_bytes, fifo) == f"not a regular file: {fifo}"
    assert message_of(DataError, fileio.read_bytes, "/dev/null") == "not a regular file: /dev/null"
    assert message_of(DataError, fileio.read_bytes, link) == f"no such file: {link}"
    assert message_of(DataError, fileio.read_bytes, tmp_path / "gone") == f"no such file: {tmp_path / 'gone'}"
    assert message_of(DataError, fileio.read_bytes, tmp_path) == f"not a regular file: {tmp_path}"
    assert message_of(DataError, fileio.read_bytes, "a\0b") == "cannot read: embedded null byte: a\\x00b"
    long = tmp_path / ("x" * 300)
    assert message_of(DataError, fileio.read_bytes, long) == f"cannot read: file name too long: {long}"


@as_root
def test_read_bytes_without_permission(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    path.chmod(0)
    assert message_of(DataError, fileio.read_bytes, path) == f"cannot read: permission denied: {path}"


def test_names_in_messages_are_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/a\n\xff"
    expected = f"no such file: {tmp_path}/a\\n\\udcff"
    assert message_of(DataError, fileio.read_bytes, os.fsdecode(path)) == expected


def test_read_text_drops_the_byte_order_mark(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\n")
    assert fileio.read_text(path) == "café\n"
    path.write_bytes(b"caf\xe9")
    assert message_of(DataError, fileio.read_text, path) == f"{path} is not UTF-8 (byte 0xE9 at 3)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": [1,\n  2,, 3]}', "{path}:2:5: Expecting value"),
        ('{"a": NaN}', "{path}: NaN is not a number in JSON"),
        ("[-Infinity]", "{path}: -Infinity is not a number in JSON"),
        ('{"é": [1, 2', "{path}: cut at byte 12"),
        ('{"a": [1, 2], ', "{path}: cut at byte 14"),
        ("", "{path}: cut at byte 0"),
        ('{"a": "some te', "{path}: cut at byte 14"),
        ('{"a": "some\n"}', "{path}:1:12: Invalid control character at"),
        ("{} {}", "{path}:1:4: Extra data"),
        ("[" * 200_000, "{path}: nested too deeply"),
    ],
)
def test_bad_json_names_the_place(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode())
    assert message_of(DataError, fileio.read_json, path) == message.format(path=path)


def test_json_round_trip(tmp_path):
    path, value = tmp_path / "a.json", {"b": [1, 2.5, None, True], "a": {"é": "x\n"}}
    fileio.write_json(path, value)
    assert fileio.read_json(path) == value
    assert list(json.loads(path.read_text())) == ["b", "a"]
    with pytest.raises(ValueError, match="Out of range"):
        fileio.write_json(path, [float("nan")])
    assert fileio.read_json(path) == value
    assert names_in(tmp_path) == ["a.json"]


def test_sha256_of_a_file(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc" * 100_000)
    assert fileio.sha256_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_make_directory(tmp_path):
    assert fileio.make_directory(tmp_path / "a" / "b").is_dir()
    assert fileio.make_directory(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    file = tmp_path / "file"
    file.write_bytes(b"")
    assert message_of(EnvironmentFault, fileio.make_directory, file) == (
        f"a file stands where a directory is wanted: {file}"
    )
    assert message_of(EnvironmentFault, fileio.make_directory, file / "a") == (
        f"a part of the path is a file, not a directory: {file / 'a'}"
    )


def claim(path, own, **options):
    with fileio.claim_output(path, own, **options) as output:
        return output


def test_claim_output_of_a_new_or_empty_directory(tmp_path):
    output = tmp_path / "a" / "out"
    assert claim(str(output), ("*.txt",)) == output
    (output / ".hidden").write_text("hidden files do not count")
    assert claim(output, ("*.txt",), inputs=(None, "", tmp_path)) == output
    assert (output / ".hidden").exists()


def test_claim_output_that_is_not_empty(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.txt").write_text("precious")
    output = tmp_path / "out"
    own = ("*.txt", "folder", "link")
    claim(output, own)
    (output / "folder").mkdir()
    (output / "folder" / "b.txt").write_text("old")
    (output / "c.txt").write_text("old")
    (output / "link").symlink_to(tmp_path / "kept")
    message = f"{output} is not empty; pass --overwrite to replace what is in it"
    assert message_of(ConfigError, claim, output, own) == message
    assert visible(output) == ["c.txt", "folder", "link"]
    claim(output, own, overwrite=True)
    assert visible(output) == []
    assert (tmp_path / "kept" / "a.txt").read_text() == "precious"


def visible(path):
    return [name for name in names_in(path) if not name.startswith(".")]


def test_claim_output_removes_nothing_from_directories_of_others(tmp_path):
    (tmp_path / "a.txt").write_text("precious")
    message = message_of(ConfigError, claim, tmp_path, ("*.txt",), overwrite=True)
    assert message == f"{tmp_path} holds a.txt, which is not ours; choose another directory"
    assert names_in(tmp_path) == ["a.txt"]


def test_claim_output_that_holds_the_input(tmp_path):
    (tmp_path / "a.json").write_text("{}")
    message = message_of(ConfigError, claim, tmp_path, ("*",), inputs=(tmp_path / "a.json",), overwrite=True)
    assert message == f"the output holds the input: {tmp_path / 'a.json'}"


def test_claim_output_is_for_one_at_a_time(tmp_path):
    with fileio.claim_output(tmp_path, ("*",)):
        (tmp_path / "a.txt").write_text("of the first")
        assert "is in use by pid" in message_of(ConfigError, claim, tmp_path, ("*",), overwrite=True)
        assert (tmp_path / "a.txt").exists()


def test_claim_output_never_removes_foreign_files(tmp_path):
    claim(tmp_path, ("*.tfrecord",))
    (tmp_path / "a.tfrecord").write_text("ours")
    (tmp_path / "photo.jpg").write_text("precious")
    message = message_of(ConfigError, claim, tmp_path, ("*.tfrecord",), overwrite=True)
    assert message == f"{tmp_path} holds photo.jpg, which is not ours; choose another directory"
    assert visible(tmp_path) == ["a.tfrecord", "photo.jpg"]


def test_claim_output_after_a_failed_call(tmp_path):
    claim(tmp_path, ("report.json",))
    (tmp_path / "report.json").write_text("{}")
    claim(tmp_path, ("report.json",), reports=("report.json",))
    assert visible(tmp_path) == []


def test_claim_output_that_is_the_input(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("precious")
    monkeypatch.chdir(tmp_path)
    message = message_of(ConfigError, claim, tmp_path, ("*",), inputs=(".",), overwrite=True)
    assert message == f"the output is the input: {tmp_path}"
    assert (tmp_path / "a.txt").read_text() == "precious"


def test_free_space(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10 << 30, 9 << 30, 400 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda directory: usage)
    fileio.check_free_space(tmp_path, 400 << 20)
    message = message_of(EnvironmentFault, fileio.check_free_space, tmp_path, int(3.1 * 2**30))
    assert message == f"No space left: needs about 3.1 GiB, 0.4 free: {tmp_path}"


HOLDER = """
import sys
from ssd_tf import fileio
with fileio.directory_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock_between_processes(tmp_path, repository):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    child = subprocess.Popen(command, cwd=repository, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with child:
        assert child.stdout.readline() == "held\n"
        message = message_of(fileio.InUse, hold, tmp_path)
        assert message.startswith(f"{tmp_path} is in use by pid {child.pid} on ")
        # the refused process must not have touched what the holder wrote
        assert message_of(fileio.InUse, hold, tmp_path) == message
        child.kill()
        child.wait()
        assert hold(tmp_path) == f"pid {os.getpid()} on"  # the killed process' lock is free


def hold(directory):
    with fileio.directory_lock(directory):
        return " ".join((directory / ".lock").read_text().split()[:3])


def test_lock_is_freed_after_an_error(tmp_path):
    with pytest.raises(KeyError), fileio.directory_lock(tmp_path):
        raise KeyError
    hold(tmp_path)


def test_lock_of_a_place_that_is_no_directory(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    message = message_of(EnvironmentFault, hold, tmp_path / "file")
    assert message == f"a part of the path is a file, not a directory: {tmp_path / 'file' / '.lock'}"
