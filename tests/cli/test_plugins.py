"""Backbones of a user's own, from a file named on the command line, and the list of all backbones."""

import contextlib
import importlib
import io
import json
import subprocess
import sys

import keras
import pytest

from ssd_tf import config as configs
from ssd_tf.api import build, plugins
from ssd_tf.cli import runner
from ssd_tf.errors import ConfigError
from ssd_tf.models import registry


@pytest.fixture(autouse=True)
def fresh_registry(monkeypatch):
    """What a plugin registers is forgotten after the test."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))


def call(module, *argv):
    """Runs a command; returns its exit code, stdout and stderr."""
    command = importlib.import_module(f"ssd_tf.cli.{module}").COMMAND
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = runner.run(command, [str(part) for part in argv])
    return code, out.getvalue(), err.getvalue()


def test_list_backbones():
    code, out, err = call("train", "--list_backbones", "--json")
    assert (code, err) == (0, "")
    *lines, others, last = out.splitlines()
    assert others.startswith("Any other model of keras.applications with --set model.taps=")
    names = registry.list_backbones()
    assert [line.split(maxsplit=1)[0] for line in lines] == names
    assert all(10 < len(line.split(maxsplit=1)[1]) <= 110 for line in lines)
    options = "model.width, model.padding, model.activation, model.layout=seed"
    assert f"{'mobilenet_v1':<19}  MobileNet V1, without its classifier [{options}]" in lines
    rows = {row["name"]: row for row in json.loads(last)}
    assert [*rows] == names
    assert rows["vgg16"]["layouts"] == ["default", "seed"]
    assert rows["vgg16"]["taps"] == ["neck_block4_conv3", "fc7"]
    assert rows["vgg16"]["preprocessing"] == "caffe"


def test_a_backbone_of_ones_own_in_25_lines(repository, tmp_path):
    path = repository / "docs" / "my_backbone.py"
    assert len(path.read_text().splitlines()) <= 25
    code, out, _ = call("train", "--list_backbones", "--plugin", path)
    assert code == 0
    assert "my_net" in out.split()
    assert registry.get_backbone("my_net").summary == "Five separable convolutions of stride 2"


def test_no_other_command_knows_it_without_the_file(tmp_path):
    command = "from ssd_tf.cli import train; train.main()"
    flags = [f"--train={tmp_path}/none", f"--run_dir={tmp_path}/run", "--set=model.backbone=my_net"]
    done = subprocess.run([sys.executable, "-c", command, *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("unknown backbone 'my_net'")
    assert done.stderr.count("\n") == 1
    assert "--plugin=FILE" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import keras\n\nvalue = keras.nothing\n", "line 3: AttributeError: "),
        ("x = 1\ny = (\n", "line 2: SyntaxError: "),
        ("x = 1\n", "registers no backbone (ssd_tf.register_backbone does)"),
        (
            "import ssd_tf\nssd_tf.register_backbone('vgg16', taps=('a',))\n",
            "backbone 'vgg16' is registered already",
        ),
        ("raise RuntimeError\n", "line 1: RuntimeError: "),
        ("x = 1\nraise SystemExit(0)\n", "line 2: SystemExit: 0"),
    ],
)
def test_files_that_are_refused(text, message, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(text)
    code, out, err = call("train", "--list_backbones", "--plugin", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"--plugin: {path}")
    assert message in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path):
    assert call("demo", "--run_dir=a", "--input=b", f"--plugin={tmp_path}/own.py") == (
        2,
        "",
        f"--plugin: no such file: {tmp_path}/own.py\n",
    )


def test_weights_that_a_plugin_cannot_read_are_one_line(repository):
    plugins.load(repository / "docs" / "my_backbone.py")
    config = configs.load_config(None, ["model.backbone=my_net", "model.num_classes=2"])
    with pytest.raises(ConfigError, match=r"no ImageNet weights for my_net to fetch: set model\.weights=none"):
        build.check(config)
    assert isinstance(build.build(config, load_weights=False).model, keras.Model)


OWN = """import keras
import ssd_tf


@ssd_tf.register_backbone("own", taps="last")
def own(image_shape, weights):
    {line}
    return keras.Model(image, keras.layers.Conv2D(4, 3, strides=2, name="last")(image))
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "image = keras.Input((64, 64, 3))",
            r"'own': its model takes \(64, 64, 3\), not image_shape \(96, 96, 3\)",
        ),
        ("image = keras.Input((96, 96, 1))", r"its model takes \(96, 96, 1\), not image_shape"),
        (
            "image = keras.Input(shape)",
            r"own cannot be built .* 'shape' is not defined \(.*own\.py, line 7\)",
        ),
        (
            "image = keras.Input(image_shape); weights and image.load(weights)",
            r"weights=imagenet does not work for own \(.*own\.py, line 7\)\); set a weights file or none",
        ),
    ],
)
def test_mistakes_inside_of_the_function(line, message, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN.format(line=line))
    plugins.load(path)
    config = configs.load_config(None, ["model.backbone=own", "model.num_classes=2", "model.image_size=96"])
    with pytest.raises(ConfigError, match=message):
        build.check(config)
        build.build(config)


def test_several_plugins(repository, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN.format(line="image = keras.Input(image_shape)"))
    code, out, _ = call(
        "train", "--list_backbones", f"--plugin={path}", f"--plugin={repository}/docs/my_backbone.py"
    )
    assert code == 0
    assert {"own", "my_net"} <= set(out.split())


def test_list_recipes_as_json():
    code, out, _ = call("train", "--list_recipes", "--json")
    assert code == 0
    *lines, last = out.splitlines()
    assert (
        [row["name"] for row in json.loads(last)] == configs.list_recipes() == [line.split()[0] for line in lines]
    )
