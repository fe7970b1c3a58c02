"""Every test of faults works in a folder of its own, so that messages hold short names."""

from pathlib import Path

import pytest
from fault_helpers import CONVERT, succeed, write_voc


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory; messages then hold short names."""
    monkeypatch.chdir(tmp_path)
    return Path(tmp_path)


@pytest.fixture
def voc(folder):
    """Four good images: 000000 .. 000003, classes blue and red."""
    stems = [f"{number:06d}" for number in range(4)]
    write_voc(folder / "voc", {stem: [("red", 5, 5, 30, 20), ("blue", 20, 10, 60, 40)] for stem in stems})
    return Path("voc")


@pytest.fixture
def records(voc):
    """Records of the four images."""
    succeed("convert", *CONVERT)
    return Path("rec")
