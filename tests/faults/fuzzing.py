"""Mutations of small valid files, and every reader they are given to; nothing here is random but `rng`.

A case is one file changed in a few places. Its reader may return a value, which is then looked at, or raise an
SsdError whose message names the file. Anything else is a fault.
"""

import copy
import io
import json
import re
import resource
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import h5py
import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_tf import config as configs
from ssd_tf import fileio, images, runs, weight_files
from ssd_tf.annotations import coco, voc
from ssd_tf.api import evaluate
from ssd_tf.boxes import anchors
from ssd_tf.data import augment, targets
from ssd_tf.errors import DataError, SsdError
from ssd_tf.pretrained import tf_checkpoint, tf_od, torch_file
from ssd_tf.records import damage, normalise, reader, schema
from ssd_tf.structures import Example, LabelMap
from ssd_tf.training import callbacks

sys.path.append(str(Path(__file__).resolve().parents[1] / "pretrained"))
import torch_writer

MAX_SECONDS = 1.0
MAX_BYTES = 200 << 20
MAX_PIXELS = 1_000_000
LABELS = LabelMap(("cat", "dog"), (17, 18))
HEIGHT, WIDTH = 48, 64
PICTURE = (20, 14)  # width, height of the images made here


@dataclass(frozen=True)
class Parser:
    """A reader of files.

    Attributes:
      seeds: function () -> list of the bytes of valid files.
      read: function (folder, bytes) that writes the file, reads it and asserts that the value makes sense.
      name: what every error must hold: the name of the file.
      structured: function (rng, bytes) -> bytes that changes parsed content, or None.
    """

    seeds: Callable
    read: Callable
    name: str = "fuzzed"
    structured: Callable | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of one case.

    Attributes:
      kind: "value", "SsdError" or "other", which includes errors that do not name the file.
      text: the message or the traceback.
      seconds: how long it took.
      grown: bytes by which the process's highest memory use rose.
    """

    kind: str
    text: str
    seconds: float
    grown: int

    @property
    def faults(self):
        """The rules that were broken: of "other", "slow", "large"."""
        broken = {
            "other": self.kind == "other",
            "slow": self.seconds > MAX_SECONDS,
            "large": self.grown > MAX_BYTES,
        }
        return [name for name, holds in broken.items() if holds]


def try_case(parser, folder, data):
    """Gives one file to its reader.

    Args:
      parser: Parser.
      folder: directory of this parser's own.
      data: content of the file.

    Returns:
      Outcome; `grown` is by how many bytes the process's highest memory use rose.
    """
    before, begun = _peak_bytes(), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            parser.read(folder, data)
        kind, text = "value", ""
    except SsdError as error:
        text = str(error)
        # One line that names the file and does nothing to a terminal.
        kind = "SsdError" if parser.name in text and text.isprintable() else "other"
    except Exception:
        kind, text = "other", traceback.format_exc()
    return Outcome(kind, text, time.perf_counter() - begun, _peak_bytes() - before)


def _peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# --- mutations ------------------------------------------------------------------------------------

NUMBERS = (b"0", b"-1", b"1", b"1e999", b"-1e308", b"1e-320", b"nan", b"inf", b"NaN", b"-Infinity", b"0.5")
NUMBERS += (b"4294967297", b"9223372036854775807", b"-9223372036854775809", b"1" * 5000, b"0x10", b"1_0", b"")
TOKENS = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b",",
    b":",
    b"=",
    b"<",
    b">",
    b"/>",
    b"&lt;",
    b"&x;",
    b"null",
    b"true",
)
TOKENS += (
    b"\\ud800",
    b"\\u0000",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xef\xbb\xbf",
    b"\n",
    b"../",
    b"<!DOCTYPE",
    b"<![CDATA[",
)
TOKENS += (b"<?xml encoding='utf-7'?>", b"[" * 3000, b"<a>" * 300, b"{} ", b"#", b"]]", b"\r", b"\x1b[2J")
BYTES = (0, 1, 0x7F, 0x80, 0xD8, 0xD9, 0xFE, 0xFF)


def mutate(rng, parser, data):
    """Returns `data` changed in one to six places.

    Args:
      rng: numpy Generator; equal states give equal results.
      parser: Parser whose structured mutation takes part.
      data: bytes of a valid file.
    """
    if parser.structured and rng.random() < 0.5:
        for _ in range(rng.integers(1, 4)):
            data = parser.structured(rng, data)
        if rng.random() < 0.8:
            return data
    for _ in range(rng.integers(1, 7)):
        data = _MUTATIONS[rng.integers(len(_MUTATIONS))](rng, data)
    return data


def _place(rng, data):
    return int(rng.integers(len(data) + 1))


def _span(rng, data):
    """A (start, end) inside `data`, mostly short."""
    start = _place(rng, data)
    return start, min(len(data), start + int(2 ** rng.uniform(0, 7)))


def _flip(rng, data):
    changed = bytearray(data)
    if changed:
        changed[rng.integers(len(changed))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _overwrite(rng, data):
    changed = bytearray(data)
    if changed:
        changed[rng.integers(len(changed))] = BYTES[rng.integers(len(BYTES))]
    return bytes(changed)


def _cut(rng, data):
    return data[: _place(rng, data)] if rng.random() < 0.3 else _without(data, _span(rng, data))


def _without(data, span):
    return data[: span[0]] + data[span[1] :]


def _insert(rng, data):
    at = _place(rng, data)
    return data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:]


def _duplicate(rng, data):
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * int(rng.integers(1, 4)) + data[end:]


def _swap(rng, data):
    start, end = _span(rng, data)
    at = _place(rng, data[:start] + data[end:])
    rest = data[:start] + data[end:]
    return rest[:at] + data[start:end] + rest[at:]


def _change_number(rng, data):
    found = list(re.finditer(rb"-?\d+(?:\.\d+)?", data))
    if not found:
        return _flip(rng, data)
    match = found[rng.integers(len(found))]
    return data[: match.start()] + NUMBERS[rng.integers(len(NUMBERS))] + data[match.end() :]


def _splice_token(rng, data):
    at = _place(rng, data)
    return data[:at] + TOKENS[rng.integers(len(TOKENS))] + data[at:]


_MUTATIONS = (_flip, _overwrite, _cut, _insert, _duplicate, _swap, _change_number, _splice_token)


def mutate_json(rng, data):
    """Removes, repeats, retypes or moves a value somewhere in a JSON text; bytes that are none are flipped."""
    try:
        root = {"root": json.loads(data)}
    except (ValueError, RecursionError):
        return _flip(rng, data)
    places = list(_json_places(root))
    holder, key = places[rng.integers(len(places))]
    action = rng.integers(5)
    if action == 0 and holder is not root:
        del holder[key]
    elif action == 1 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif action == 2:
        other, name = places[rng.integers(len(places))]
        holder[key] = copy.deepcopy(other[name])
    elif action == 3 and isinstance(holder, dict) and holder is not root:
        holder[_STRANGE_KEYS[rng.integers(len(_STRANGE_KEYS))]] = holder.pop(key)
    else:
        holder[key] = copy.deepcopy(_STRANGE[rng.integers(len(_STRANGE))])
    return json.dumps(root.get("root")).encode()


_STRANGE = (None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.5, -1e300, float("nan"), "", "x")
_STRANGE += ("1", "nan", "\ud800", "\0", "../../etc/passwd", "/", "a\nb", "é" * 300, [], {}, [[]], [1, 2, 3, 4])
_STRANGE += ([0, 0, 1e308, 1e308], [float("inf")] * 4, {"id": 1}, "os.system", "step-00000001", [["a"]] * 50)
_STRANGE_KEYS = ("", "x", "id", "__class__", "module", "é", "\ud800", "name", "a b\n")


def _json_places(value):
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _json_places(value[key])


def mutate_lines(rng, data):
    """Removes, repeats or moves a line."""
    lines = data.splitlines(keepends=True) or [b""]
    at = int(rng.integers(len(lines)))
    line = lines.pop(at) if rng.random() < 0.5 else lines[at]
    if rng.random() < 0.7:
        lines.insert(int(rng.integers(len(lines) + 1)), line)
    return b"".join(lines)


def mutate_elements(rng, data):
    """Removes, repeats or moves an XML element, or gives it another's name."""
    found = [match.span() for match in re.finditer(rb"<(\w+)>[^<]*</\1>|</?\w+>", data)]
    if not found:
        return _flip(rng, data)
    start, end = found[rng.integers(len(found))]
    element, rest = data[start:end], data[:start] + data[end:]
    action = rng.integers(4)
    if action == 0:
        return rest
    if action == 1:
        names = re.findall(rb"<(\w+)>", data) or [b"x"]
        return data[:start] + re.sub(rb"\w+", names[rng.integers(len(names))], element, count=1) + data[end:]
    base = data if action == 2 else rest
    at = found[rng.integers(len(found))][0]
    return base[:at] + element + base[at:]


def mutate_example(rng, data):
    """Changes one feature of a tf.train.Example: its presence, its kind, its length, one of its values."""
    try:
        example = tf.train.Example.FromString(data)
    except Exception:  # an earlier mutation broke it
        return _flip(rng, data)
    features = example.features.feature
    keys = sorted(features) or ["image/encoded"]
    key = keys[rng.integers(len(keys))]
    kind = features[key].WhichOneof("kind") or "bytes_list"
    values = getattr(features[key], kind).value
    action = rng.integers(6)
    if action == 0:
        del features[key]
    elif action == 1:
        features[keys[rng.integers(len(keys))]].CopyFrom(features[key])
    elif action == 2:
        values.extend(list(values)[: int(rng.integers(3))] or _strange_values(rng, kind))
    elif action == 3:
        del values[int(rng.integers(len(values) + 1)) :]
    elif action == 4 and len(values):
        values[int(rng.integers(len(values)))] = _strange_values(rng, kind)[0]
    else:
        other = ("bytes_list", "int64_list", "float_list")[rng.integers(3)]
        del features[key]
        getattr(features[key], other).value.extend(_strange_values(rng, other))
    return example.SerializeToString(deterministic=True)


def _strange_values(rng, kind):
    choices = {
        "bytes_list": (b"", b"x", b"\xff\xfe", b"\xff\xd8\xff", b"a" * 3000, _png(3, 2)),
        "int64_list": (0, 1, -1, 2, 3, 2**31, 2**32 + 1, 2**62, -(2**63), 100_000, 4),
        "float_list": (0.0, -0.0, 1.0, 1.5, -0.5, float("nan"), float("inf"), 3.4e38, 1e-45, 0.3),
    }[kind]
    return [choices[rng.integers(len(choices))]]


def mutate_picture(rng, data):
    """Changes or drops a chunk of a PNG and makes its checksum sound again; other images are flipped."""
    if data[:4] != b"\x89PNG":
        return _flip(rng, data)
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    if not chunks:
        return _flip(rng, data)
    index = int(rng.integers(len(chunks)))
    change = (_flip, _overwrite, _insert, _cut, lambda rng, chunk: b"")[rng.integers(5)]
    chunks[index] = chunks[index][:4] + change(rng, chunks[index][4:])
    if rng.random() < 0.2:
        chunks.insert(int(rng.integers(len(chunks))), chunks.pop(index))
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks if len(c) >= 4)
    return data[:8] + b"".join(framed)


def mutate_shard(rng, data):
    """Changes the length or the checksum of a record, or swaps, repeats or drops records."""
    starts, at = [], 0
    while at + 12 <= len(data):
        starts.append(at)
        at += 16 + int.from_bytes(data[at : at + 8], "little")
    start = starts[rng.integers(len(starts))] if starts else 0
    if rng.random() < 0.5:
        length = struct.pack("<Q", int(2 ** rng.uniform(0, 63)))
        return data[:start] + length + _checksum(length) + data[start + 12 :]
    end = starts[rng.integers(len(starts))] if starts else 0
    return data[: max(start, end)] + data[min(start, end) :]


def mutate_archive(rng, data):
    """Changes the content of a member of a zip archive and packs it soundly; other files are flipped."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [[name, archive.read(name)] for name in archive.namelist()]
    except Exception:  # an earlier mutation broke it
        return _flip(rng, data)
    if not members:
        return _flip(rng, data)
    member = members[rng.integers(len(members)) if rng.random() < 0.3 else 0]
    member[1] = _MUTATIONS[rng.integers(len(_MUTATIONS))](rng, member[1])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


# --- seeds ----------------------------------------------------------------------------------------


def _picture(mode="RGB", size=PICTURE):
    rng = np.random.default_rng(len(mode))
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)


def _saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _encoded(kind, mode="RGB", **options):
    return _saved(_picture(mode), kind, **options)


def _png(width, height):
    return _saved(_picture(size=(width, height)), "PNG")


def image_seeds():
    """JPEG, PNG, GIF, BMP and WebP files of several kinds."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [_picture("P")]}
    return [
        _encoded("JPEG", quality=60),
        _encoded("JPEG", progressive=True, quality=50),
        _encoded("JPEG", "L", exif=exif.tobytes(), quality=50),
        _encoded("JPEG", "CMYK", quality=50),
        _encoded("JPEG", restart_marker_blocks=2, quality=50),
        _encoded("PNG"),
        _encoded("PNG", "RGBA"),
        _encoded("PNG", "P"),
        _saved(Image.fromarray(np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000), "PNG"),
        _encoded("GIF", "P", **frames),
        _encoded("BMP"),
        _encoded("BMP", "L"),
        _encoded("WEBP", quality=30),
        _encoded("WEBP", lossless=True),
    ]


def voc_seeds():
    """Two VOC annotations."""
    box = "<bndbox>\n<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>"
    objects = [
        f"<object>\n<name>{name}</name><difficult>{flag}</difficult>{box.format(*corners)}\n</object>\n"
        for name, flag, corners in (("cat", 0, (3, 4, 30, 40)), ("dog", 1, (10.5, 2, 64, 48)))
    ]
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>\n"
    head = "<?xml version='1.0' encoding='utf-8'?>\n"
    whole = f"{head}<annotation>\n<filename>fuzzed.jpg</filename>\n{size}{''.join(objects)}</annotation>\n"
    return [whole.encode(), f"<annotation>{objects[0]}</annotation>".encode()]


def coco_seeds():
    """One instances file."""
    boxes = ((1, 1, [3, 4, 27, 36], 17), (2, 1, [10.5, 2, 53, 46], 18), (3, 2, [0, 0, 64, 48], 17))
    content = {
        "images": [
            {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT} for number in (1, 2)
        ],
        "annotations": [
            {"id": i, "image_id": image, "bbox": bbox, "category_id": c, "area": 9.5, "iscrowd": 0}
            for i, image, bbox, c in boxes
        ],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
    }
    return [json.dumps(content).encode()]


def results_seeds():
    """One results file."""
    rows = [(1, 17, [3, 4, 27, 36], 0.9), (2, 18, [10.5, 2, 53, 46], 0.25), ("1", 17, [0, 0, 1, 1], 1e-3)]
    return [json.dumps([dict(zip(("image_id", "category_id", "bbox", "score"), row)) for row in rows]).encode()]


def recipe_seeds():
    """A recipe with a key of every type."""
    return [
        b'[model]\nbackbone = "vgg16"\nimage_size = [300, 300]\nweights = "none"\n'
        b"[anchors]\nsizes = [0.1, 0.2, 0.9]\nratios = [[1.0, 2.0], [1.0]]\n"
        b"[augment]\nhue = 18.0\n[data]\nuse_difficult = true\n[postprocess]\ntopk_candidates = 200\n"
        b'[train]\nsteps = 100\nmilestones = [0.5, 0.75]\nschedule = "multistep"\n'
    ]


def make_example(labels=(1, 2), **changes):
    corners = ((0.1, 0.2), (0.15, 0.25), (0.6, 0.7), (0.65, 0.95))
    features = {key: list(values[: len(labels)]) for key, values in zip(schema.CORNERS, corners, strict=True)}
    features |= {
        schema.ENCODED: [_encoded("PNG")],
        schema.SOURCE_ID: [b"7"],
        schema.HEIGHT: [PICTURE[1]],
        schema.WIDTH: [PICTURE[0]],
        schema.LABEL: list(labels),
        schema.TEXT: [b"cat", b"dog"][: len(labels)],
        schema.AREA: [9.5, 3.0][: len(labels)],
        schema.DIFFICULT: [0, 1][: len(labels)],
        schema.CROWD: [0] * len(labels),
        **changes,
    }
    example = tf.train.Example()
    for key, values in features.items():
        kind = {bytes: "bytes_list", int: "int64_list", float: "float_list"}[type(values[0])] if values else None
        if kind:
            getattr(example.features.feature[key], kind).value.extend(values)
    return example.SerializeToString(deterministic=True)


def example_seeds():
    """Records with two objects and with one."""
    return [make_example(), make_example((2,), **{schema.ENCODED: [_encoded("JPEG", quality=40)]})]


def _checksum(data):
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def frame(record):
    """Returns a record as it lies in a shard, with sound checksums."""
    length = struct.pack("<Q", len(record))
    return length + _checksum(length) + record + _checksum(record)


def shard_seeds():
    """One shard of three records, the last without objects."""
    return [b"".join(map(frame, [*example_seeds(), make_example(())]))]


def label_map_seeds():
    """One label map."""
    return [json.dumps(LABELS.to_json()).encode()]


def manifest_seeds():
    """The manifest of one shard."""
    size = len(shard_seeds()[0])
    shards = [{"file": "set-00000-of-00001.tfrecord", "examples": 3, "bytes": size, "sha256": "0" * 64}]
    content = {"format_version": 1, "name": "set", "made_by": "ssd_tf 0.1", "examples": 3, "shards": shards}
    return [json.dumps(content).encode()]


def run_seeds():
    """The config.json of a run."""
    config = configs.to_dict(configs.load_config(None, ["train.steps=10", "model.num_classes=2"]))
    return [json.dumps({"format_version": 1, "examples": 3, "config": config}).encode()]


def state_seeds():
    """The state.json of the checkpoint that `_make_checkpoint` writes."""
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of b"x"
    return [json.dumps({"examples": 32, "step": 1, "files": {"a": [1, digest]}, "best": None}).encode()]


def best_seeds():
    """The pointer to the best checkpoint."""
    return [json.dumps({"checkpoint": "step-00000001", "metric": "voc07", "value": 0.5}).encode()]


def latest_seeds():
    """The pointer to the latest checkpoint."""
    return [b"step-00000001\n", b"step-00000002\n"]


def log_seeds():
    """The log of a training."""
    rows = [{"step": step, "loss": 1.5, "class_loss": 1.0, "box_loss": 0.5, "mAP": None} for step in (1, 2, 9)]
    return ["".join(json.dumps(row) + "\n" for row in rows).encode()]


ARRAYS = ((3, 4), (), (5,))


def arrays_seeds():
    """An optimizer's state."""
    buffer = io.BytesIO()
    np.savez(buffer, **{f"{i:04d}": np.ones(shape, np.float32) for i, shape in enumerate(ARRAYS)})
    return [buffer.getvalue()]


def weights_seeds():
    """An HDF5 file laid out as Keras's."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((3, 4), np.float32))
        file["layers/dense/vars/1"] = np.zeros(4, np.float32)
        file.attrs["layer_names"] = np.array([b"dense"])
    return [buffer.getvalue()]


def torch_seeds():
    """A state dict and a training checkpoint in both formats of torch."""
    halves = torch_writer.Stored("1", "Half", np.arange(6, dtype="<f2"))
    counts = torch_writer.Stored("2", "Long", np.arange(3, dtype="<i8"))
    seeds = []
    for old in (False, True):
        seeds.append(torch_writer.write_state({"a.weight": np.ones((2, 3)), "a.bias": np.zeros(3)}, old))
        tensors = {
            "module.a": torch_writer.tensor(halves.pointer(old), (3, 2), (1, 3)),
            "module.b": torch_writer.tensor(halves.pointer(old, ("x", 2, 4) if old else None), (2,), (2,), 1),
            "module.c": torch_writer.tensor(counts.pointer(old), ()),
        }
        content = {"epoch": 2, "lr": [0.5, None], "state_dict": tensors}
        seeds.append(torch_writer.write(content, [halves, counts], old))
    return seeds


# Two convolutions' worth of arrays of a detector that they do not make up.
_ARRAYS_OF_A_GRAPH = {
    "FeatureExtractor/MobilenetV2/Conv/weights": np.ones((1, 1, 3, 2), np.float32),
    "FeatureExtractor/MobilenetV2/Conv/BatchNorm/batchnorm/sub": np.zeros(2, np.float32),
    "Preprocessor/map/while/ResizeImage/stack": np.array([320, 256], np.int32),
    "MultipleGridAnchorGenerator/Sqrt/x": np.array([1, 2, 0.5], np.float32),
}
_TFJS_SHARD = "group1-shard1of1"


def tfjs_seeds():
    """A model.json whose shard is _TFJS_SHARD, as it is and quantised."""
    types = {"f": "float32", "i": "int32"}
    weights = [
        {"name": name, "shape": list(array.shape), "dtype": types[array.dtype.kind]}
        for name, array in _ARRAYS_OF_A_GRAPH.items()
    ]
    nodes = [{"name": "a", "op": "FusedBatchNorm", "attr": {"epsilon": {"f": 0.001}}}, {"name": "b", "op": "Relu"}]
    group = {"paths": [_TFJS_SHARD], "weights": weights}
    whole = {"modelTopology": {"node": nodes}, "weightsManifest": [group]}
    quantised = copy.deepcopy(whole)
    entry = quantised["weightsManifest"][0]["weights"][0]
    entry.update(shape=[1, 1, 6, 4], quantization={"dtype": "uint8", "scale": 0.1, "min": -1})
    return [json.dumps(content).encode() for content in (whole, quantised)]


def graph_seeds():
    """A frozen graph with constants of several types, and one with repeated values."""
    graph = tf.compat.v1.GraphDef()
    for name, array in {**_ARRAYS_OF_A_GRAPH, "d": np.ones(2), "t": np.array("x"), "e": np.float16(2)}.items():
        node = graph.node.add(name=name, op="Const")
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(array))
    graph.node.add(name="n", op="FusedBatchNormV3").attr["epsilon"].f = 0.001
    repeated = copy.deepcopy(graph)
    tensor = repeated.node[0].attr["value"].tensor
    tensor.ClearField("tensor_content")
    tensor.float_val.append(2.0)
    return [graph.SerializeToString(deterministic=True), repeated.SerializeToString(deterministic=True)]


def _checkpoint_parts(version):
    """{ending: bytes} of the files of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            arrays = {**_ARRAYS_OF_A_GRAPH, "a": np.float32(1), "a/Momentum": np.float32(1)}
            made = [tf.compat.v1.get_variable(name, initializer=array) for name, array in arrays.items()]
            session.run(tf.compat.v1.global_variables_initializer())
            saver = tf.compat.v1.train.Saver(made, write_version=version)
            saver.save(session, f"{folder}/fuzzed", write_meta_graph=False, write_state=False)
        return {path.name.removeprefix("fuzzed"): path.read_bytes() for path in Path(folder).iterdir()}


def checkpoint_seeds():
    """A checkpoint of the older format."""
    return [_checkpoint_parts(tf.compat.v1.train.SaverDef.V1)[""]]


def checkpoint_index_seeds():
    """The index of a checkpoint of the newer format."""
    return [_checkpoint_parts(tf.compat.v1.train.SaverDef.V2)[".index"]]


# --- readers --------------------------------------------------------------------------------------


def _write(folder, name, data):
    path = folder / name
    path.write_bytes(data)
    return path


def _check_annotations(found, name):
    for problem in found.problems:
        assert name in problem.message and "\n" not in problem.message, problem
    for example in found.examples:
        fitted = normalise.fit_boxes(example, HEIGHT, WIDTH)
        assert np.isfinite(fitted.boxes).all() and (fitted.boxes >= 0).all() and (fitted.boxes <= 1).all()
        assert (fitted.boxes[:, 2:] > fitted.boxes[:, :2]).all()
        assert all(class_name in found.label_map.names for class_name in example.names)
        assert example.area is None or np.isfinite(example.area).all()


def read_voc(folder, data):
    """Reads a flat VOC folder of one image."""
    _write(folder, "fuzzed.jpg", b"")
    _write(folder, "fuzzed.xml", data)
    _check_annotations(voc.read(folder), "fuzzed")


def read_coco(folder, data):
    """Reads an instances file."""
    _check_annotations(coco.read(_write(folder, "fuzzed.json", data), folder), "fuzzed.json")


def _truths():
    box = [[4, 3, 40, 30]]
    return [
        Example("1", "", box, ("cat",), size=(HEIGHT, WIDTH), area=np.array([972.0])),
        Example("2", "", box, ("dog",), size=(HEIGHT, WIDTH), area=np.array([972.0])),
    ]


def read_results(folder, data):
    """Reads and scores a results file."""
    found = evaluate.read_detections(_write(folder, "fuzzed.json", data), LABELS)
    known = {key: value for key, value in found.items() if key in ("1", "2")}
    for metric in ("voc07", "coco"):
        mean = evaluate.score(_truths(), known, LABELS, metric)["mAP"]
        assert mean is None or 0 <= mean <= 1


def read_recipe(folder, data):
    """Reads a recipe."""
    config = configs.load_config(str(_write(folder, "fuzzed.toml", data)))
    assert configs.from_dict(configs.to_dict(config), "dump") == config


def read_image(folder, data):
    """Makes an image file fit for a record; TensorFlow must then decode it to the size that was found."""
    picture = images.standardise(data, "fuzzed.jpg", max_pixels=MAX_PIXELS)
    decoded = images.decode(tf.constant(picture.data))
    assert tuple(decoded.shape) == (picture.height, picture.width, 3)
    pixels = images.read_rgb(_write(folder, "fuzzed.jpg", data), MAX_PIXELS)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size


_SETTINGS = configs.AugmentConfig(crop_trials=5)
_ANCHORS = anchors.make_anchors(anchors.default_spec(2), [(4, 4), (2, 2)], (32, 32))


@tf.function(input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([], tf.int32)])
def _prepare(serialized, num_classes):
    """What training does with one record."""
    sample = reader.parse_checked(serialized, num_classes)
    ignore = sample["crowd"] | sample["difficult"]
    image, boxes, classes, ignore = augment.augment(
        sample, ignore, tf.constant([1, 2], tf.int64), (32, 32), _SETTINGS, "bilinear"
    )
    return image, targets.build_targets(boxes, classes, ignore, _ANCHORS, 0.5, "argmax")


def _check_records(path):
    records = reader.open_records(path)
    num_classes = len(records.label_map)
    assert 0 < num_classes <= damage.MAX_CLASSES
    with reader.record_errors(records):
        for serialized in damage.read_shard(records.files[0], 0):
            _, target = _prepare(serialized, num_classes)
            labels = target["class_logits"].numpy()
            assert np.isfinite(target["box_deltas"]).all()
            assert ((labels >= -1) & (labels <= num_classes)).all()


def read_shard(folder, data):
    """Opens a shard without a manifest and prepares its records for training."""
    _check_records(_write(folder, "fuzzed.tfrecord", data))


def read_example(folder, data):
    """The same with one record whose checksums are sound."""
    _check_records(_write(folder, "fuzzed.tfrecord", frame(data)))


def read_label_map(folder, data):
    """Reads a label map."""
    path = _write(folder, "fuzzed.json", data)
    found = LabelMap.from_json(fileio.read_json(path), path)
    assert LabelMap.from_json(found.to_json(), "dump") == found


def read_manifest(folder, data):
    """Opens a records directory."""
    folder = folder / "fuzzed"
    folder.mkdir(exist_ok=True)
    _write(folder, "set-00000-of-00001.tfrecord", shard_seeds()[0])
    _write(folder, "label_map.json", label_map_seeds()[0])
    _write(folder, "manifest.json", data)
    assert reader.open_records(folder).num_examples > 0


def _make_run(folder):
    folder = folder / "fuzzed"
    checkpoint = folder / "step-00000001"
    checkpoint.mkdir(parents=True, exist_ok=True)
    _write(folder, "config.json", run_seeds()[0])
    _write(folder, "label_map.json", label_map_seeds()[0])
    _write(folder, "LATEST", latest_seeds()[0])
    _write(folder, "BEST", best_seeds()[0])
    _write(checkpoint, "a", b"x")
    _write(checkpoint, "state.json", state_seeds()[0])
    return folder


def read_run(folder, data):
    """Opens a run directory with a strange config."""
    folder = _make_run(folder)
    _write(folder, "config.json", data)
    run = runs.open_run(folder)
    assert configs.from_dict(configs.to_dict(run.config), "dump") == run.config
    runs.start_run(folder, run.config, run.label_map, 3)


def _find_checkpoints(folder):
    for which in ("latest", "best", "step-1"):
        found = runs.find_checkpoint(folder, which)
        assert found is None or (type(found.state["step"]) is int and found.path.parent == folder)
    best = runs.read_best(folder)
    assert best is None or (isinstance(best["metric"], str) and 0 <= best["value"] <= 1)


def read_state(folder, data):
    """Finds the checkpoints of a run with a strange state.json."""
    folder = _make_run(folder)
    _write(folder / "step-00000001", "state.json", data)
    _find_checkpoints(folder)


def read_best(folder, data):
    """The same with a strange BEST."""
    folder = _make_run(folder)
    _write(folder, "BEST", data)
    _find_checkpoints(folder)


def read_latest(folder, data):
    """The same with a strange LATEST."""
    folder = _make_run(folder)
    _write(folder, "LATEST", data)
    _find_checkpoints(folder)


def read_log(folder, data):
    """Takes up the log of an interrupted training."""
    rows = callbacks._earlier_rows(_write(folder, "fuzzed.jsonl", data), 5)
    assert all(row["step"] <= 5 for row in rows)
    json.dumps(rows, allow_nan=False)


def read_arrays(folder, data):
    """Reads an optimizer's state."""
    found = weight_files.read_arrays(_write(folder, "fuzzed.npz", data), ARRAYS)
    assert [array.shape for array in found] == list(ARRAYS)


def read_weights(folder, data):
    """Judges an HDF5 file."""
    weight_files.check_weights_file(_write(folder, "fuzzed.h5", data))


def read_torch(folder, data):
    """Reads all tensors of a .pth file."""
    path = _write(folder, "fuzzed.pth", data)
    try:
        with torch_file.open_tensors(path) as (shapes, read):
            assert shapes
            for name, shape in shapes.items():
                array = read(name)
                assert isinstance(name, str) and array.shape == shape and array.dtype == np.float32
    except DataError as error:
        raise DataError(f"{error}: {path.name}") from None  # as every caller does


def _read_arrays_of(open_file, path):
    """Reads all arrays of a file as an import does."""
    try:
        with open_file(path) as (shapes, read):
            for name, shape in shapes.items():
                array = read(name)
                assert isinstance(name, str) and array.shape == shape and array.dtype == np.float32
    except DataError as error:
        raise DataError(f"{error}: {path.name}") from None  # as every caller does


def read_tfjs(folder, data):
    """Reads a TensorFlow.js model with a strange model.json."""
    _write(folder, _TFJS_SHARD, b"".join(array.tobytes() for array in _ARRAYS_OF_A_GRAPH.values()))
    _read_arrays_of(tf_od.open_tfjs, _write(folder, "fuzzed.json", data))


def read_graph(folder, data):
    """Reads a frozen graph."""
    _read_arrays_of(tf_od.open_tf_od, _write(folder, "fuzzed.pb", data))


def read_checkpoint(folder, data):
    """Reads a checkpoint of the older format."""
    _read_arrays_of(tf_checkpoint.open_checkpoint, _write(folder, "fuzzed.ckpt", data))


def read_checkpoint_index(folder, data):
    """Reads a checkpoint of the newer format with a strange index."""
    ending = ".data-00000-of-00001"
    if not (folder / f"fuzzed{ending}").exists():
        _write(folder, f"fuzzed{ending}", _checkpoint_parts(tf.compat.v1.train.SaverDef.V2)[ending])
    _read_arrays_of(tf_checkpoint.open_checkpoint, _write(folder, "fuzzed.index", data))


PARSERS = {
    "voc": Parser(voc_seeds, read_voc, structured=mutate_elements),
    "coco": Parser(coco_seeds, read_coco, structured=mutate_json),
    "results": Parser(results_seeds, read_results, structured=mutate_json),
    "recipe": Parser(recipe_seeds, read_recipe, structured=mutate_lines),
    "shard": Parser(shard_seeds, read_shard, structured=mutate_shard),
    "example": Parser(example_seeds, read_example, structured=mutate_example),
    "image": Parser(image_seeds, read_image, structured=mutate_picture),
    "label_map": Parser(label_map_seeds, read_label_map, structured=mutate_json),
    "manifest": Parser(manifest_seeds, read_manifest, structured=mutate_json),
    "run": Parser(run_seeds, read_run, structured=mutate_json),
    "state": Parser(state_seeds, read_state, structured=mutate_json),
    "best": Parser(best_seeds, read_best, structured=mutate_json),
    "latest": Parser(latest_seeds, read_latest, structured=mutate_lines),
    "log": Parser(log_seeds, read_log, structured=mutate_lines),
    "arrays": Parser(arrays_seeds, read_arrays),
    "weights": Parser(weights_seeds, read_weights),
    "torch": Parser(torch_seeds, read_torch, structured=mutate_archive),
    "tfjs": Parser(tfjs_seeds, read_tfjs, structured=mutate_json),
    "frozen_graph": Parser(graph_seeds, read_graph),
    "checkpoint": Parser(checkpoint_seeds, read_checkpoint),
    "checkpoint_index": Parser(checkpoint_index_seeds, read_checkpoint_index),
}
