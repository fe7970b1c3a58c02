"""The converter beside reading, hashing and writing the same files, and its memory at 1,000 and 10,000 images.

python scripts/benchmark_convert.py [--images=FOLDER] [--num_images=4000] [--workers=0]

FOLDER holds JPEGs (by default drawn ones of 640 pixels); each is used as often as needed, made a file of its own
by a comment in it. The annotations are a COCO file with four boxes an image. The ceiling only reads each
file, takes its SHA-256 and writes its bytes to files of 64 MiB, in as many processes, and syncs them too.
"""

import argparse
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timing

from ssd_tf import synthesize
from ssd_tf.api.convert import convert

_SHARD_BYTES = 64 << 20
_BOXES = ([10, 20, 100, 50], [5, 5, 30, 30], [60, 80, 40, 90], [1, 2, 3, 4])


def main():
    """Prints images/s and MB/s of both, the share of the ceiling, and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", default=None)
    parser.add_argument("--num_images", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", default=None, help="folder for the files; a temporary one by default")
    options = parser.parse_args()
    workers = options.workers or len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        work = Path(work)
        originals = find_images(options.images, work)
        annotations = make_set(work / "set", originals, options.num_images)
        files = sorted(map(str, (work / "set" / "images").iterdir()))
        works = {
            "convert": lambda: run_converter(annotations, work / "records", workers),
            "ceiling": lambda: run_ceiling(files, work / "plain", workers),
        }
        seconds = timing.alternate(works, options.rounds, warm_up=1)
        megabytes = sum(os.path.getsize(file) for file in files) / 1e6
        memory = {count: peak_memory(work, originals, count, workers) for count in (1000, 10_000)}
        growth = {f"{kind}_memory_ratio": memory[10_000][kind] / memory[1000][kind] for kind in ("voc", "coco")}
        timing.report(
            "convert",
            images=options.num_images,
            kilobytes_an_image=megabytes * 1000 / options.num_images,
            workers=workers,
            **rates("convert", seconds, options.num_images, megabytes),
            **rates("ceiling", seconds, options.num_images, megabytes),
            share_of_ceiling=timing.ratio(seconds, "ceiling", "convert"),
            **{f"{kind}_peak_megabytes_{n}": memory[n][kind] for n in memory for kind in memory[n]},
            **growth,
        )


def rates(name, seconds, num_images, megabytes):
    """Images and megabytes per second of one of the works."""
    median = timing.median(seconds)[name]
    return {f"{name}_images_per_second": num_images / median, f"{name}_megabytes_per_second": megabytes / median}


def find_images(folder, work):
    """The JPEGs of a folder, or drawn ones."""
    if folder is None:
        synthesize(work / "drawn", 100, image_size=640)
        folder = work / "drawn" / "images"
    return [path.read_bytes() for path in sorted(Path(folder).glob("*.jpg"))]


def make_set(folder, originals, num_images):
    """Writes that many different JPEGs and their annotations; returns the annotations' path."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    images, boxes = [], []
    for number, data in zip(range(num_images), itertools.cycle(originals)):
        note = b"%08d" % number
        comment = b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note
        name = f"{number:08d}.jpg"
        (folder / "images" / name).write_bytes(data[:2] + comment + data[2:])
        images.append({"id": number, "file_name": name})
        boxes += [
            {"id": len(boxes) + i, "image_id": number, "category_id": 1, "bbox": b} for i, b in enumerate(_BOXES)
        ]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    write_voc(folder / "Annotations", images)
    return path


def write_voc(folder, images):
    """Writes the same annotations as XML files."""
    folder.mkdir()
    rows = ""
    for x, y, width, height in _BOXES:
        corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
        edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in corners.items())
        rows += f"<object><name>thing</name><bndbox>{edges}</bndbox></object>"
    for image in images:
        text = f"<annotation><filename>{image['file_name']}</filename>{rows}</annotation>"
        (folder / image["file_name"]).with_suffix(".xml").write_text(text)


def run_converter(annotations, output, workers):
    """Converts, over what was there."""
    convert("coco", annotations, output, overwrite=True, workers=workers)


def run_ceiling(files, folder, workers):
    """Reads, hashes and writes the files, each process its share."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    parts = [files[len(files) * i // workers : len(files) * (i + 1) // workers] for i in range(workers)]
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        pool.starmap(functools.partial(copy_files, folder), enumerate(parts))


def copy_files(folder, part, files):
    """Copies files into large ones, hashing each."""
    remaining = iter(files)
    for number in itertools.count():
        size = 0
        with open(folder / f"{part}-{number}", "wb") as output:
            for file in remaining:
                with open(file, "rb") as opened:
                    data = opened.read()
                hashlib.sha256(data).hexdigest()
                output.write(data)
                size += len(data)
                if size >= _SHARD_BYTES:
                    break
            output.flush()
            os.fsync(output.fileno())
        if size < _SHARD_BYTES:
            return


def peak_memory(work, originals, num_images, workers):
    """{format: megabytes at most}, all processes of the command added up."""
    annotations = make_set(work / "memory", originals, num_images)
    inputs = {"voc": annotations.parent, "coco": annotations}
    return {kind: watch(kind, path, work / "memory_records", workers) for kind, path in inputs.items()}


def watch(kind, source, output, workers):
    """Runs the command and adds up the peaks of its processes."""
    command = [
        sys.executable,
        "-c",
        "from ssd_tf.cli.convert import main; main()",
        f"--format={kind}",
        "--overwrite",
    ]
    command += [f"--input={source}", f"--output={output}", f"--workers={workers}"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    peaks = {}
    while process.poll() is None:
        peaks.update(_peaks_of_session(process.pid))
        time.sleep(0.01)
    if process.returncode:
        raise SystemExit("the converter failed")
    return sum(peaks.values()) / 1000


def _peaks_of_session(session):
    """{process: its peak in kB} of the session's processes, as the system keeps it."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(entry.name)) == session:
                lines = (entry / "status").read_text().splitlines()
                found[entry.name] = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):  # ended meanwhile
            continue
    return found


if __name__ == "__main__":
    main()
