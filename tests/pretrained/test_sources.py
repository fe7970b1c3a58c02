"""The list of sources: names, what each needs, and that a file of a backbone fills all of it."""

import pytest
from golden_cases import assert_fills

from ssd_tf import config as configs
from ssd_tf.api import sources as described
from ssd_tf.errors import ConfigError
from ssd_tf.models import registry
from ssd_tf.pretrained import catalogue, sources
from ssd_tf.pretrained.source import BackboneSource, DetectorSource

SOURCES = sources.SOURCES
DETECTORS = {
    "tfjs_coco_ssd": ("coco", False),
    "tf_od_ssd_mobilenet": ("coco", False),
    "torchvision_ssd300_vgg16": ("coco", True),
    "torchvision_ssdlite320_mobilenet_v3_large": ("coco", True),
    "amdegroot_ssd300": ("voc", True),
    "qfgaohao_mb1_ssd": ("voc", True),
    "qfgaohao_mb2_ssd_lite": ("voc", True),
    "qfgaohao_vgg16_ssd": ("voc", True),
}
BACKBONES = {
    "vgg16_reducedfc": "vgg16",
    "slim_vgg_16": "vgg16",
    "slim_resnet_v1_50": "resnet50",
    "slim_resnet_v1_101": "resnet101",
    "slim_resnet_v1_152": "resnet152",
    "slim_resnet_v2_50": "resnet50_v2",
    "slim_resnet_v2_101": "resnet101_v2",
    "slim_resnet_v2_152": "resnet152_v2",
    "slim_mobilenet_v1": "mobilenet_v1",
    "slim_mobilenet_v2": "mobilenet_v2",
    "slim_inception_v4": "inception_v4",
    "slim_inception_resnet_v2": "inception_resnet_v2",
}


def test_there_are_these():
    found = {name: (s.classes, s.has_background) for name, s in SOURCES.items() if isinstance(s, DetectorSource)}
    assert found == DETECTORS
    found = {name: s.about.backbone for name, s in SOURCES.items() if isinstance(s, BackboneSource)}
    assert found == BACKBONES
    assert list(SOURCES) == list(catalogue.ENTRIES)  # whatever is listed can be read
    assert all(source.about is catalogue.get_entry(name) for name, source in SOURCES.items())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("tfjs_coco_sdd", "tfjs_coco_ssd"),
        ("qfgaohao_mb1ssd", "qfgaohao_mb1_ssd"),
        ("slim_resnet50_v1", "slim_resnet_v1_50"),
    ],
)
def test_mistyped_name(name, near):
    with pytest.raises(ConfigError) as caught:
        catalogue.get_entry(name)
    assert str(caught.value).startswith(
        f"unknown source {name!r} (did you mean {near}?); there are: tfjs_coco_ssd, "
    )


def test_description():
    rows = {row["name"]: row for row in described.describe()}
    assert list(rows) == list(SOURCES)
    for name, row in rows.items():
        assert row["kind"] == ("detector" if name in DETECTORS else "backbone")
        assert row["backbone"] == BACKBONES.get(name)
        assert row["summary"] and row["licence"] and "\n" not in row["summary"] + row["licence"]
        assert [set(file) for file in row["downloads"]] == [{"url", "size", "sha256", "member"}] * len(
            row["downloads"]
        )
        for key in ("downloads", "others"):
            files = getattr(catalogue.ENTRIES[name], key)
            assert [file["url"] for file in row[key]] == [file.url for file in files]
    zoo = [file["url"].rpartition("/")[2] for file in rows["tf_od_ssd_mobilenet"]["others"]]
    assert zoo == ["ssd_mobilenet_v1_coco_2018_01_28.tar.gz", "ssdlite_mobilenet_v2_coco_2018_05_09.tar.gz"]
    published = {
        "tfjs_coco_ssd": "22",
        "tf_od_ssd_mobilenet": "22",
        "torchvision_ssd300_vgg16": "25.1",
        "torchvision_ssdlite320_mobilenet_v3_large": "21.3",
        "amdegroot_ssd300": "77.43",
        "qfgaohao_mb1_ssd": "67.",
        "qfgaohao_mb2_ssd_lite": "68.",
        "qfgaohao_vgg16_ssd": "77.",
    }
    assert {name for name, number in published.items() if number not in rows[name]["summary"]} == set()


@pytest.mark.parametrize("name", [name for name in DETECTORS if name.startswith(("torch", "amde", "qf"))])
def test_settings_are_settings(name):
    """Those of files that need not be looked into; keys, types and ranges are checked."""
    overrides = SOURCES[name].settings({})
    config = configs.load_config(None, [*overrides, "model.num_classes=7"])
    assert config.model.weights == "none"
    assert config.loss.has_background == SOURCES[name].has_background


@pytest.mark.parametrize(
    "name", ["vgg16_reducedfc", "slim_mobilenet_v1", "slim_mobilenet_v2", "slim_resnet_v2_50"]
)
def test_files_of_backbones_fill_all_of_them(name):
    source = SOURCES[name]
    model = registry.get_backbone(source.about.backbone).build((224, 224, 3), None)
    # Nobody's classifier has a normalisation before the first head.
    but = {("neck_block4_conv3", "gamma")} if source.about.backbone == "vgg16" else set()
    assert_fills(source.places({}), model, but)
