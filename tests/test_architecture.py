"""The house rules: who may import whom, how long things may be, what must be documented, what starts light."""

import ast
import importlib.util
import inspect
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import ssd_tf

PACKAGE = Path(__file__).resolve().parents[1] / "ssd_tf"
BASE = {"errors"}
# Rooms and the rooms they may import. config and images read files through the limits of fileio, the floor.
MAY_IMPORT = {
    "errors": set(),
    "config": BASE | {"fileio", "settings", "contradictions"},
    "settings": BASE,
    "contradictions": BASE,
    "fileio": BASE,
    "structures": BASE,
    "images": BASE | {"fileio", "jpeg", "png"},
    "jpeg": BASE,
    "png": BASE,
    "weight_files": BASE,
    "boxes": BASE,
    "annotations": BASE | {"fileio", "structures"},
    "records": BASE | {"fileio", "structures", "images", "annotations", "boxes"},
    "data": BASE | {"config", "structures", "images", "records", "boxes"},
    "models": BASE | {"config", "weight_files"},
    "runs": BASE | {"config", "fileio", "structures"},
    "training": BASE | {"config", "fileio", "runs", "boxes", "models", "weight_files"},
    "inference": BASE | {"config", "fileio", "structures", "images", "boxes"},
    "evaluation": BASE | {"fileio", "structures", "boxes"},
    "pretrained": BASE | {"config", "fileio", "structures", "boxes", "models", "weight_files"},
    "synthesis": BASE | {"fileio", "structures", "images", "annotations"},
    "cli": BASE | {"config", "api"},
}
MAY_IMPORT["api"] = {*MAY_IMPORT}
# Packages of others: (rooms or modules that may import them, modules among those that may not).
THIRD_PARTY = {
    "tensorflow": (
        {"images", "records", "data", "inference", "pretrained", "training", "boxes.matcher"},
        {"inference.nms", "training.losses", "training.optimizers"},
    ),
    "keras": ({"models", "training", "inference", "pretrained", "api.build", "api.train"}, set()),
    "cv2": ({"inference.drawing", "inference.video"}, set()),
    "PIL": ({"images", "synthesis", "inference.predictor"}, set()),
    "absl": ({"cli"}, set()),
    "numpy": (
        {*MAY_IMPORT, "api.build"}
        - {"errors", "config", "settings", "contradictions", "fileio", "png", "models", "runs", "cli", "api"},
        set(),
    ),
    "faster_coco_eval": ({"evaluation"}, set()),
    "tensorflow_datasets": ({"annotations"}, set()),
    "google": ({"records", "pretrained.frozen_graph"}, set()),  # protobuf, which records and graphs are made of
    "google_crc32c": ({"records"}, set()),
    "torch": ({"pretrained"}, set()),
    "safetensors": ({"pretrained"}, set()),
    "h5py": ({"pretrained", "weight_files"}, set()),
}
# These work where there is no TensorFlow at all: on another Keras backend.
NEUTRAL = ("models", "training.losses", "training.optimizers", "inference.nms", "api.build")
NEUTRAL += ("boxes.ops", "boxes.anchors", "boxes.coder")
LAZY_IMPORTERS = {"", "cli.runner"}
# Methods that Keras defines and documents; ours only fill them in.
KERAS_METHODS = {"call", "build", "get_config", "from_config", "compute_output_spec", "update_step"}
KERAS_METHODS |= {"on_train_batch_end", "on_train_begin", "on_epoch_end"}


def read_modules():
    """{dotted name below ssd_tf: syntax tree}; a package's own name stands for its __init__."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return modules


MODULES = read_modules()
NAMES = sorted(MODULES)


def imports(tree):
    """All absolute dotted names that a module imports, wherever the statement stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def own_rooms(tree):
    return {name.split(".")[1] for _, name in imports(tree) if name.startswith("ssd_tf.")}


def forbidden_rooms(module, tree):
    """The rooms that `module` imports against the table."""
    room = module.split(".")[0]
    return own_rooms(tree) - MAY_IMPORT[room] - {room}


def within(module, places):
    return any(module == place or module.startswith(f"{place}.") for place in places)


def forbidden_packages(module, tree):
    """The packages of others that `module` imports against the table."""
    found = {name.split(".")[0] for _, name in imports(tree)} - {"ssd_tf"} - sys.stdlib_module_names
    allowed = {
        package
        for package, (places, but) in THIRD_PARTY.items()
        if within(module, places) and not within(module, but)
    }
    return found - allowed


def code_lines(node, source):
    """Line numbers of `node` that hold code: no docstrings, comments or blank lines."""
    text = source.splitlines()
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", len(text))
    skipped = set()
    for inner in ast.walk(node):
        if (
            isinstance(inner, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(inner, False) is not None
        ):
            skipped |= set(range(inner.body[0].lineno, inner.body[0].end_lineno + 1))
    lines = set(range(first, last + 1)) - skipped
    return [line for line in lines if text[line - 1].strip() and not text[line - 1].lstrip().startswith("#")]


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def source_of(name):
    path = PACKAGE.joinpath(*name.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")


def public_definitions(tree):
    """(qualified name, node) of the public functions, classes and methods of a module."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            for method in node.body if isinstance(node, ast.ClassDef) else ():
                inherited = isinstance(node, ast.ClassDef) and node.bases and method_name(method) in KERAS_METHODS
                if not method_name(method).startswith("_") and not inherited:
                    yield f"{node.name}.{method.name}", method


def method_name(node):
    return node.name if isinstance(node, ast.FunctionDef) else "_"


@pytest.mark.parametrize("module", [name for name in NAMES if name])
def test_module_imports_only_rooms_it_may(module):
    assert module.split(".")[0] in MAY_IMPORT, f"{module}: a room that the table does not know"
    assert forbidden_rooms(module, MODULES[module]) == set()


@pytest.mark.parametrize("module", NAMES)
def test_module_imports_only_packages_it_may(module):
    assert forbidden_packages(module, MODULES[module]) == set()


@pytest.mark.parametrize(
    ("module", "source", "rooms"),
    [
        ("boxes.ops", "from ssd_tf.models import registry", {"models"}),
        ("training.trainer", "from ssd_tf import runs, evaluation", {"evaluation"}),
        ("evaluation.voc", "def f():\n    import ssd_tf.inference.nms as nms", {"inference"}),
        ("models.vgg", "from ssd_tf.errors import shown\nfrom ssd_tf.models import layers", set()),
        ("cli.train", "from ssd_tf.api.train import train\nfrom ssd_tf.training import trainer", {"training"}),
    ],
)
def test_checker_sees_forbidden_rooms(module, source, rooms):
    assert forbidden_rooms(module, ast.parse(source)) == rooms


@pytest.mark.parametrize(
    ("module", "source", "packages"),
    [
        ("models.vgg", "import keras\nimport tensorflow as tf", {"tensorflow"}),
        ("inference.nms", "from tensorflow.experimental import numpy", {"tensorflow"}),
        ("inference.nms_tensorflow", "import tensorflow as tf", set()),
        ("training.losses", "def f():\n    import tensorflow", {"tensorflow"}),
        ("boxes.coder", "from keras import ops\nimport math", {"keras"}),
        ("api.train", "import keras\nimport numpy as np", {"numpy"}),
        ("records.writer", "import cv2\nfrom PIL import Image", {"cv2", "PIL"}),
        ("config", "import requests", {"requests"}),
    ],
)
def test_checker_sees_forbidden_packages(module, source, packages):
    assert forbidden_packages(module, ast.parse(source)) == packages


@pytest.mark.parametrize("module", NAMES)
def test_own_modules_are_imported_at_the_top(module):
    nested = [
        inner.lineno
        for function in functions(MODULES[module])
        for inner, name in imports(function)
        if name.startswith("ssd_tf")
    ]
    assert nested == []
    if module not in LAZY_IMPORTERS:
        assert "importlib.import_module" not in source_of(module)


def test_neutral_modules_never_reach_tensorflow():
    for start in (name for name in NAMES if within(name, NEUTRAL)):
        seen, waiting = set(), [start]
        while waiting:
            module = waiting.pop()
            seen.add(module)
            names = {name for _, name in imports(MODULES[module])}
            assert not any(name.split(".")[0] == "tensorflow" for name in names), f"{start} reaches {module}"
            for name in names:
                parts = name.removeprefix("ssd_tf.").split(".")
                # importing a.b runs a/__init__ too
                near = (
                    {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
                    if name.startswith("ssd_tf.")
                    else ()
                )
                waiting += [other for other in near if other in MODULES and other not in seen]


def test_code_lines_leave_out_what_is_no_code():
    source = '"""Module.\n\nText.\n"""\n\n# comment\ndef f():\n    """Doc."""\n'
    source += "    # why\n\n    return (\n        1\n    )\n"
    tree = ast.parse(source)
    assert sorted(code_lines(tree, source)) == [7, 11, 12, 13]
    assert sorted(code_lines(tree.body[1], source)) == [7, 11, 12, 13]


@pytest.mark.parametrize("module", NAMES)
def test_modules_and_functions_stay_short(module):
    source = source_of(module)
    assert len(code_lines(MODULES[module], source)) <= 350
    lengths = {node.name: len(code_lines(node, source)) for node in functions(MODULES[module])}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_median_function_is_short():
    lengths = [len(code_lines(node, source_of(name))) for name in NAMES for node in functions(MODULES[name])]
    assert len(lengths) > 100
    assert statistics.median(lengths) <= 12


def test_verbs_of_the_api_are_wiring():
    for module in (name for name in NAMES if name.startswith("api.")):
        assert len(source_of(module).splitlines()) <= 150, module


@pytest.mark.parametrize("module", NAMES)
def test_public_definitions_have_docstrings(module):
    tree = MODULES[module]
    if tree.body:
        assert ast.get_docstring(tree), "the module has none"
    assert [name for name, node in public_definitions(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("name", ssd_tf.__all__)
def test_public_api_documents_arguments_and_results(name):
    value = getattr(ssd_tf, name)
    text = inspect.getdoc(value)
    assert text
    if inspect.isclass(value):
        fields = getattr(value, "__dataclass_fields__", {})
        assert [field for field in fields if field not in text.partition("Attributes:")[2]] == []
    elif parameters := inspect.signature(value).parameters:
        assert "\nArgs:\n" in text
        documented = text.partition("\nArgs:\n")[2]
        assert [name for name in parameters if name not in documented] == []
        assert "\nReturns:\n" in text


def run_python(code, **environment):
    """Runs code in a fresh interpreter; returns its last line of output as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LIGHT_START = """
import contextlib, importlib, io, json, sys
import ssd_tf
from ssd_tf.cli import runner

HEAVY = ("tensorflow", "keras", "cv2", "PIL", "numpy")
seen = {"import ssd_tf": [name for name in HEAVY if name in sys.modules]}
for module in sys.argv[1:] or COMMANDS:
    command = importlib.import_module("ssd_tf.cli." + module).COMMAND
    for argv, expected in (["--help"], 0), (["--no_such_flag=1"], 2), ([], 2), (["--version"], 0):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert runner.run(command, argv) == expected, (module, argv)
        seen[f"{module} {argv}"] = [name for name in HEAVY if name in sys.modules]
command = importlib.import_module("ssd_tf.cli.train").COMMAND
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    argv = ["--train=x", "--run_dir=y", "--set", "train.batchsize=8"]
    assert runner.run(command, argv) == 2
    assert runner.run(command, ["--list_recipes"]) == 0
seen["train --set train.batchsize"] = [name for name in HEAVY if name in sys.modules]
print(json.dumps(seen))
"""


def test_help_and_usage_errors_import_nothing_heavy():
    commands = [name.removeprefix("cli.") for name in NAMES if name.startswith("cli.") and name != "cli.runner"]
    seen = run_python(f"COMMANDS = {commands!r}\n{LIGHT_START}")
    assert len(seen) == 2 + 4 * len(commands)
    assert {place: names for place, names in seen.items() if names} == {}


def test_every_console_script_is_a_command():
    setup = (PACKAGE.parent / "setup.py").read_text(encoding="utf-8")
    for module in (name for name in NAMES if name.startswith("cli.") and name != "cli.runner"):
        command = importlib.import_module(f"ssd_tf.{module}").COMMAND
        assert f'"{command.name} = ssd_tf.{module}:main"' in setup


WITHOUT_TENSORFLOW = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tf_keras"):
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Block())
import importlib
for module in MODULES:
    importlib.import_module("ssd_tf." + module)

import keras
import ssd_tf
from ssd_tf.api import build

@ssd_tf.register_backbone("two_layers", taps=("first", "second"))
def two_layers(image_shape, weights):
    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(4, 3, 16, "same", name="first")(image)
    return keras.Model(image, keras.layers.Conv2D(4, 3, 2, "same", name="second")(x))

overrides = ["model.backbone=two_layers", "model.weights=none", "model.image_size=64", "model.num_classes=3"]
overrides += ["model.levels=2"]
detector = build.build(ssd_tf.load_config(None, overrides))
shapes = {name: list(output.shape) for name, output in detector.model.output.items()}
image = keras.ops.zeros([1, 64, 64, 3], "uint8")
finite = all(bool(keras.ops.all(keras.ops.isfinite(v))) for v in detector.model(image).values())
result = {"anchors": len(detector.anchors), "shapes": shapes, "finite": finite}
print(json.dumps({**result, "backend": keras.backend.backend(), "tensorflow": "tensorflow" in sys.modules}))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="needs jax, the Keras backend that needs no TensorFlow (pip install jax); "
    "test_neutral_modules_never_reach_tensorflow reads the imports without it",
)
def test_models_are_built_without_tensorflow():
    modules = [name for name in NAMES if within(name, NEUTRAL)]
    found = run_python(f"MODULES = {modules!r}\n{WITHOUT_TENSORFLOW}", KERAS_BACKEND="jax", JAX_PLATFORMS="cpu")
    assert found["backend"] == "jax" and not found["tensorflow"] and found["finite"]
    rows = found["anchors"]
    assert rows == 4 * 4 * 4 + 2 * 2 * 4  # two maps; coarse and fine levels have 4 anchors a cell
    assert found["shapes"] == {"class_logits": [None, rows, 4], "box_deltas": [None, rows, 4]}
