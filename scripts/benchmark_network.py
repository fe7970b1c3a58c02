"""The bare network of a recipe, float32 and bfloat16, beside torchvision's SSD300-VGG16 where torch is installed.

python scripts/benchmark_network.py [--config=ssd300_vgg16_voc] [--classes=90] [--batch=1]
"""

import argparse
import importlib.util

import numpy as np
import tensorflow as tf
import timing

from ssd_tf import config as configs
from ssd_tf.api import build

_PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


def main():
    """Prints milliseconds an image and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ssd300_vgg16_voc")
    parser.add_argument("--classes", type=int, default=90)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    config = configs.load_config(options.config, [f"model.num_classes={options.classes}", "model.weights=none"])
    size = config.model.image_size
    images = tf.constant(np.random.default_rng(0).integers(0, 256, (options.batch, *size, 3), np.uint8))
    works = {name: network(config, precision, images) for name, precision in _PRECISIONS.items()}
    if importlib.util.find_spec("torchvision"):
        works["torchvision_ssd300_vgg16"] = torchvision_network(options.batch, options.classes)
    seconds = timing.alternate(works, options.rounds, warm_up=3)
    each = {name: value * 1e3 / options.batch for name, value in timing.median(seconds).items()}
    timing.report(
        "network",
        config=options.config,
        batch=options.batch,
        **{f"{name}_ms_an_image": value for name, value in each.items()},
        float32_over_bfloat16=timing.ratio(seconds, "float32", "bfloat16"),
        **{
            f"torchvision_over_{name}": timing.ratio(seconds, other, name)
            for other in list(works)[len(_PRECISIONS) :]
            for name in _PRECISIONS
        },
    )


def network(config, precision, images):
    """A function that runs the network once."""
    model = build.build(config, load_weights=False, precision=precision).model
    call = tf.function(lambda batch: model(batch, training=False))
    return lambda: call(images)["class_logits"].numpy()


def torchvision_network(batch, classes):
    """The same for torchvision's SSD300-VGG16: backbone and heads, without its resizing and post-processing."""
    import torch
    import torchvision

    model = torchvision.models.detection.ssd300_vgg16(
        weights=None, weights_backbone=None, num_classes=classes + 1
    ).eval()
    images = torch.rand(batch, 3, 300, 300)

    def run():
        with torch.inference_mode():
            return model.head(list(model.backbone(images).values()))

    return run


if __name__ == "__main__":
    main()
