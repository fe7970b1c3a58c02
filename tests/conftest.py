"""Fixtures that every room shares; the only place that knows where real data and golden values lie."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SSD_TF_TEST_DATA", REPOSITORY.parent / "shared"))


def _shared(*parts):
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path} (set SSD_TF_TEST_DATA to the folder that holds golden/, data/, weights/)")
    return path


@pytest.fixture(scope="session")
def repository():
    """The checkout's root folder."""
    return REPOSITORY


@pytest.fixture(scope="session")
def golden():
    """Folder of reference values computed by other implementations."""
    return _shared("golden")


@pytest.fixture(scope="session")
def bccd():
    """Folder of the BCCD data set in VOC layout."""
    return _shared("data", "bccd", "BCCD")


@pytest.fixture(scope="session")
def weights():
    """Folder of trained weights."""
    return _shared("weights")
