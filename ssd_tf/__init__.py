"""ssd_tf: single-shot detectors on TensorFlow and Keras 3. Names are loaded when they are first used."""

import importlib

_PUBLIC = {
    "Detections": "ssd_tf.structures:Detections",
    "LabelMap": "ssd_tf.structures:LabelMap",
    "SsdError": "ssd_tf.errors:SsdError",
    "build_detector": "ssd_tf.api.build:build_model",
    "convert": "ssd_tf.api.convert:convert",
    "evaluate": "ssd_tf.api.evaluate:evaluate",
    "import_weights": "ssd_tf.api.import_weights:import_weights",
    "list_backbones": "ssd_tf.models.registry:list_backbones",
    "load": "ssd_tf.api.predict:load",
    "load_config": "ssd_tf.config:load_config",
    "make_dataset": "ssd_tf.api.dataset:make_dataset",
    "register_backbone": "ssd_tf.models.registry:register_backbone",
    "synthesize": "ssd_tf.api.synthesize:synthesize",
    "train": "ssd_tf.api.train:train",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ssd_tf' has no attribute {name!r}")
    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__():
    return [*globals(), *_PUBLIC]
