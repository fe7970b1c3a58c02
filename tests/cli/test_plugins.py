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
    *lines, last = out.splitlines()
    names = registry.list_backbones()
    assert [line.split(maxsplit=1)[0] for line in lines] == names
    assert all(10 < len(line.split(maxsplit=1)[1]) <= 110 for line in lines)
    assert f"{'mobilenet_v1':<19}  MobileNet V1, without its classifier [model.width, model.layout=seed]" in lines
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
    with pytest.raises(
        ConfigError, match=r"model\.weights=imagenet does not work for my_net \(.*\); set a weights file or none"
    ):
        build.build(config)
    assert isinstance(build.build(config, load_weights=False).model, keras.Model)
