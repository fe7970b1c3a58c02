"""What there is to build on, and what it costs."""

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.models import detector, registry


def describe():
    """Returns a dict for each registered backbone: name, layouts, options (other settings that it takes),
    taps, preprocessing, summary.
    """
    found = [registry.get_backbone(name) for name in registry.list_backbones()]
    return [
        {
            "name": backbone.name,
            "layouts": [*backbone.layouts],
            "options": [name for name in backbone.options if name != "layout"],
            "taps": [*backbone.layouts["default"].taps],
            "preprocessing": backbone.preprocessing,
            "summary": backbone.summary,
        }
        for backbone in found
    ]


def measure(config):
    """Builds the detector of a Config and counts.

    Args:
      config: Config with model.num_classes set; no weights are read.

    Returns:
      (Detector, dict): backbone, input (text "300x300", width first), parameters, multiply_adds (of one image),
      anchors, maps (cells of each level, text).
    """
    built = build.build(config, load_weights=False)
    height, width = config.model.image_size
    return built, {
        "backbone": config.model.backbone,
        "input": f"{width}x{height}",
        "parameters": built.model.count_params(),
        "multiply_adds": detector.count_multiply_adds(built.model),
        "anchors": len(built.anchors),
        "maps": ", ".join(str(rows) for rows, _ in built.map_sizes),
    }


def standard_config(name):
    """Returns the Config by which backbones are compared: 20 classes, 300 px, everything else as by default."""
    overrides = [f"model.backbone={name}", "model.num_classes=20", "model.weights=none"]
    return configs.load_config(None, overrides)
