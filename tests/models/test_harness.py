"""Every registered backbone, one of a family, through the same harness."""

import backbone_harness
import keras
import pytest
from backbone_cases import make_config

from ssd_tf.api import build, plugins
from ssd_tf.models import registry

# Variants of another depth have the same code: their names and shapes are tested where they are particular.
DEPTHS = {"resnet101", "resnet152", "resnet101_v2", "resnet152_v2"}
BACKBONES = [name for name in registry.list_backbones() if name not in DEPTHS]
# As networks that were trained elsewhere are built.
TORCH = {
    "mobilenet_v2 of torch": {"model__padding": "symmetric", "model__activation": "relu"},
    "mobilenet_v3_large of torch": {"model__padding": "symmetric", "model__reduced_tail": True},
    "vgg16 of torch": {"model__tap_norm": "bn", "model__norm_epsilon": 1e-5},
}
OWN = "my_net"  # of the plugin that the README shows
SIDE = 160


@pytest.fixture(scope="module", params=[*BACKBONES, *TORCH, OWN])
def built(request, repository):
    """(Detector, Config) of a backbone, untrained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
        if request.param == OWN:
            plugins.load(repository / "docs" / "my_backbone.py")
        keras.utils.set_random_seed(2)
        config = make_config(request.param.split()[0], SIDE, **TORCH.get(request.param, {}))
        yield build.build(config), config


def test_one_row_per_anchor(built):
    backbone_harness.check_rows(built[0])


def test_rows_stand_where_their_anchors_stand(built):
    backbone_harness.check_places(*built)


def test_bfloat16_keeps_the_outputs_float32(built):
    backbone_harness.check_precision(*built)


def test_saved_weights_give_equal_outputs_and_a_second_build_equal_names(built, tmp_path):
    detector, config = built
    other = backbone_harness.check_saving(detector, config, tmp_path)
    backbone_harness.check_names(detector.model, other, config)


def test_every_weight_gets_a_gradient(built):
    backbone_harness.check_gradients(*built)
