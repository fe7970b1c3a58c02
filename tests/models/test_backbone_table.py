"""The README's table of backbones: every one is in it, and what does not depend on the machine is true."""

import importlib
import sys

import pytest

from ssd_tf.api import backbones
from ssd_tf.models import registry


@pytest.fixture
def script(repository, monkeypatch):
    """scripts/benchmark_backbones.py as a module."""
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    yield importlib.import_module("benchmark_backbones")
    for name in ("benchmark_backbones", "timing"):
        sys.modules.pop(name, None)


@pytest.fixture
def rows(repository, script):
    """{backbone: cells} of the README's table."""
    text = (repository / "README.md").read_text(encoding="utf-8")
    table = text.split(script.BEGIN)[1].split(script.END)[0]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.strip().splitlines()[2:]]
    return {row[0].strip("`"): row for row in cells}


def test_table_has_every_backbone_once(rows):
    assert sorted(rows) == registry.list_backbones()


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "tiny_ssd", "tiny_ssd_d2l", "vgg16"])
def test_sizes_in_the_table(name, rows, script):
    _, figures = backbones.measure(backbones.standard_config(name))
    assert list(script.row(figures, 0.0))[:-1] == rows[name][:-1]
    assert int(rows[name][-1]) > 0


def test_measure_of_ssd300():
    built, figures = backbones.measure(backbones.standard_config("vgg16"))
    assert figures == {
        "backbone": "vgg16",
        "input": "300x300",
        "parameters": 26_285_486,
        "multiply_adds": figures["multiply_adds"],
        "anchors": 8732,
        "maps": "38, 19, 10, 5, 3, 1",
    }
    assert round(figures["multiply_adds"] / 1e9, 1) == 31.4  # OpenVINO publishes 62.8 G operations, two each
    assert len(built.anchors) == 8732


def test_table_is_replaced_between_its_marks(script, tmp_path):
    path = tmp_path / "text.md"
    path.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n")
    script.replace_table(path, script.markdown([("a", "b")]))
    lines = path.read_text().splitlines()
    assert (lines[:2], lines[-3:]) == (["before", script.BEGIN], ["| a | b |", script.END, "after"])
    assert "old" not in lines
