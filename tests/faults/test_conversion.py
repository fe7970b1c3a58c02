"""Faults around the converter: directories held by others, full disks, kills, outputs in the way."""

import errno
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from fault_helpers import CONVERT, call, fault, succeed, visible, voc_xml

from ssd_tf import fileio
from ssd_tf.annotations import voc as voc_files
from ssd_tf.records import holdout, overlap, writer

# The real command on shards so small that four pictures make four, killed at the N-th time that NAME is called.
KILLED = """
import os, signal, sys
from ssd_tf.records import report, shard, writer
writer._SHARD_BYTES = 1
place, name, count, calls = eval(sys.argv.pop(1)), sys.argv.pop(1), int(sys.argv.pop(1)), []
called = getattr(place, name)
def killer(*arguments, **options):
    calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return called(*arguments, **options)
setattr(place, name, killer)
from ssd_tf.cli import convert
convert.main()
"""


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name[0] != "."}


@pytest.fixture
def whole(voc, monkeypatch):
    """What an uninterrupted conversion to rec gives, with a shard for each picture."""
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    succeed("convert", *CONVERT[:-1], "--output=whole/rec")
    found = contents(Path("whole/rec"))
    assert len(found) == 4 + 3
    return found


def test_row_56_two_converters_in_one_directory(voc):
    Path("rec").mkdir()
    with fileio.directory_lock("rec"):
        owner = Path("rec/.lock").read_text()
        message = fault("convert", *CONVERT, code=2)
        assert message == f"rec is in use by {owner}; --force takes it all the same"
        assert owner.startswith(f"pid {os.getpid()} on ") and " since 20" in owner
        assert visible(Path("rec")) == []
        succeed("convert", *CONVERT, "--force")
    assert len(visible(Path("rec"))) == 4


def test_row_57_disk_too_full_to_begin(voc, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(fileio.shutil, "disk_usage", lambda _: usage(100))
    message = fault("convert", *CONVERT, code=5)
    assert message == "No space left: needs about 0.0 GiB, 0.0 free: rec"
    assert visible(Path("rec")) == []


def test_row_57_disk_full_in_the_middle(voc, whole, monkeypatch):
    synced = []

    def full(descriptor):
        synced.append(descriptor)
        if len(synced) == 5:  # the second shard
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = fault("convert", *CONVERT, "--workers=1", code=5)
    assert message.startswith("No space left on the device: rec/.incoming/rec-0000")
    assert visible(Path("rec")) == []
    assert not [path for path in Path("rec/.incoming").iterdir() if ".tmp-" in path.name]
    succeed("convert", *CONVERT, "--resume")
    assert contents(Path("rec")) == whole


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("place", "name", "count"),
    [
        ("report.Report", "add", 3),  # in the middle of a shard
        ("os", "replace", 3),  # between a shard and its state, or before either
        ("os", "replace", 10),
        ("os", "replace", 13),  # while the finished files move to their places
        ("report.Report", "merge", 2),
        ("writer", "_judge", 1),
        ("writer", "publish", 1),
        ("os", "replace", 14),
    ],
)
def test_row_58_killed_conversion_goes_on(voc, whole, repository, workers, place, name, count):
    if workers == 2 and (name == "add" or (name == "replace" and count < 10)):
        return  # these happen in the worker processes
    if workers == 2 and name == "replace":
        count -= 8  # the shards' own renames happen there
    path = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", KILLED, place, name, str(count), *CONVERT, f"--workers={workers}"]
    killed = subprocess.run(command, env=path, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert "manifest.json" not in visible(Path("rec"))
    message = fault("train", "--train=rec", "--run_dir=run", code=3)
    assert message == "conversion was interrupted; rerun ssd_image_to_tf with --resume or delete: rec"
    if visible(Path("rec")) == []:
        message = fault("convert", *CONVERT, code=2)
        assert message == (
            "a conversion to rec was interrupted; --resume goes on with it, --overwrite starts again"
        )
    succeed("convert", *CONVERT, "--resume", f"--workers={3 - workers}")
    assert contents(Path("rec")) == whole
    assert not Path("rec/.incoming").exists()


def test_row_58_resuming_what_is_finished_or_was_never_begun(voc, whole):
    succeed("convert", *CONVERT, "--resume")
    assert contents(Path("rec")) == whole
    before = {path: path.stat().st_mtime_ns for path in Path("rec").iterdir() if path.name[0] != "."}
    out = succeed("convert", *CONVERT, "--resume")
    assert "already finished: rec" in out.splitlines()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    message = fault("convert", *CONVERT, "--resume", "--classes=red", code=2)
    assert message == "rec holds another conversion (other classes); --overwrite replaces it"


def test_row_58_finished_conversion_is_looked_at_again(voc, whole):
    succeed("convert", *CONVERT)
    shard, image = Path("rec/rec-00001-of-00004.tfrecord"), voc / "JPEGImages" / "000001.jpg"
    succeed("convert", "--format=voc", f"--input={voc.resolve()}", *CONVERT[2:], "--resume")
    shard.rename("elsewhere")
    message = fault("convert", *CONVERT, "--resume", code=3)
    assert message == f"{shard.name} is damaged; --overwrite converts again: rec"
    Path("elsewhere").rename(shard)
    succeed("convert", *CONVERT[:-1], "--output=again")
    code, _, err = call("convert", *CONVERT, "--resume", "--check_overlap=again")
    message = err[0]
    assert code == 3
    assert message == "4 images are in the other records too (here = there): 000000 = 000000"
    image.write_bytes(image.read_bytes() + b"more")
    message = fault("convert", *CONVERT, "--resume", code=2)
    assert message == "rec holds another conversion (other images or annotations); --overwrite replaces it"


def test_conversion_that_failed_goes_on_without_being_asked(voc, whole):
    image = voc / "JPEGImages" / "000002.jpg"
    data, status = image.read_bytes(), image.stat()
    image.write_bytes(b"")
    fault("convert", *CONVERT, code=3)
    kept = Path("rec/.incoming/rec-00000-of-00004.tfrecord").stat().st_ino
    image.write_bytes(data)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    succeed("convert", *CONVERT)
    assert contents(Path("rec")) == whole
    assert Path("rec/rec-00000-of-00004.tfrecord").stat().st_ino == kept


def test_row_59_output_is_the_input_or_not_empty(voc, whole):
    for output in ("voc", "."):
        message = fault("convert", *CONVERT[:-1], f"--output={output}", code=2)
        assert message == (
            "the output is the input: voc" if output == "voc" else "the output holds the input: voc"
        )
    assert sorted(path.name for path in Path("voc").iterdir()) == ["Annotations", "ImageSets", "JPEGImages"]
    succeed("convert", *CONVERT)
    message = fault("convert", *CONVERT, code=2)
    assert message == "rec is not empty; pass --overwrite to replace what is in it"
    succeed("convert", *CONVERT, "--overwrite")
    assert contents(Path("rec")) == whole


def test_failed_overwriting_keeps_the_earlier_records(voc, whole):
    succeed("convert", *CONVERT)
    (voc / "JPEGImages" / "000001.jpg").write_bytes(b"")
    fault("convert", *CONVERT, "--overwrite", code=3)
    after = contents(Path("rec"))
    assert json.loads(after.pop("convert_report_failed.json"))["skipped"]
    assert after == whole
    succeed("convert", *CONVERT, "--overwrite", "--on_error=skip", "--max_skipped=1")
    after = contents(Path("rec"))
    assert json.loads(after["manifest.json"])["examples"] == 3
    assert "convert_report_failed.json" not in after


def test_resume_and_overwrite_exclude_each_other(voc):
    message = fault("convert", *CONVERT, "--resume", "--overwrite", code=2)
    assert message == "--resume goes on, --overwrite starts again: give one of them"


def test_flat_folder_split_in_two(voc):
    flat = Path("flat")
    flat.mkdir()
    for index in range(10):
        (flat / f"{index}.xml").write_text(voc_xml([("red" if index % 2 else "blue", 5, 5, 30, 20)]))
        (flat / f"{index}.jpg").write_bytes((voc / "JPEGImages" / "000000.jpg").read_bytes() + bytes([index]))
    argv = ("--format=voc", "--input=flat", "--output=tf/flat", "--val_fraction=.2", "--seed=3", "--json")
    code, out, _ = call("convert", *argv)
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and "records in tf/flat_train" in out and "records in tf/flat_val" in out
    assert (result["examples"], result["val"]["examples"]) == (8, 2)
    assert (result["output"], result["val"]["output"]) == ("tf/flat_train", "tf/flat_val")
    maps = [Path(f"tf/flat_{part}/label_map.json").read_bytes() for part in ("train", "val")]
    assert maps[0] == maps[1] and json.loads(maps[0])["classes"][0]["name"] == "blue"
    message = fault("convert", *argv[:-3], "--val_fraction=1.5", code=2)
    assert message == "--val_fraction: 1.5 is outside 0..1"
    assert fault("convert", *argv, code=2) == (
        "tf/flat_train is not empty; pass --overwrite to replace what is in it"
    )


def flat_folder(voc, numbers):
    flat = Path("flat")
    flat.mkdir()
    for index in numbers:
        (flat / f"{index}.xml").write_text(voc_xml([("red", 5, 5, 30, 20)]))
        (flat / f"{index}.jpg").write_bytes((voc / "JPEGImages" / "000000.jpg").read_bytes() + bytes([index]))
    return flat


def ids(folder):
    return set(overlap.read_digests(folder).values())


def test_split_in_two_is_replaced_as_a_whole_or_not_at_all(voc):
    flat = flat_folder(voc, range(10))
    argv = ("--format=voc", "--input=flat", "--output=tf/flat", "--val_fraction=.3")
    succeed("convert", *argv)
    before = ids("tf/flat_train"), ids("tf/flat_val")
    other = holdout.hold_out(voc_files.read("flat").examples, 0.3, 1)[1][0].source_id
    (flat / f"{other}.jpg").write_bytes(b"")
    fault("convert", *argv, "--seed=1", "--overwrite", code=3)
    assert (ids("tf/flat_train"), ids("tf/flat_val")) == before
    assert len(before[0]) == 7 and len(before[1]) == 3 and not before[0] & before[1]


def test_row_18_same_bytes_in_both_parts_of_a_split(voc):
    flat = flat_folder(voc, range(10))
    for index in range(10):
        (flat / f"{index}.jpg").write_bytes((voc / "JPEGImages" / "000000.jpg").read_bytes())
    out = succeed("convert", "--format=voc", "--input=flat", "--output=tf/flat", "--val_fraction=.3")
    assert len([line for line in out.splitlines() if line.startswith("same image bytes in both sets: ")]) == 1
    assert len([line for line in out.splitlines() if line.startswith("same image bytes under two ids: ")]) == 8


def test_row_18_image_that_stands_in_the_other_set(voc):
    succeed("convert", *CONVERT)
    argv = (*CONVERT[:-1], "--output=again", "--check_overlap=rec")
    code, _, err = call("convert", *argv)
    assert code == 3
    assert err == [
        "4 images are in the other records too (here = there): 000000 = 000000",
        *(f"{number:06d} = {number:06d}" for number in (1, 2, 3)),
    ]
    assert visible(Path("again")) == ["convert_report.json"]
    assert fault("convert", *argv[:-1], "--check_overlap=gone", code=3) == ("no such records directory: gone")
