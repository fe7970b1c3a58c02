"""Packaging of ssd_tf; pyproject.toml holds the settings of the tools."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = (HERE / "ssd_tf" / "VERSION").read_text().strip()

setup(
    name="ssd_tf",
    version=VERSION,
    description="A modular SSD (Single Shot MultiBox Detector) framework on TensorFlow and Keras 3",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["ssd_tf", "ssd_tf.*"]), "ssd_tf.recipes"],
    package_dir={"ssd_tf.recipes": "configs"},
    package_data={"ssd_tf": ["VERSION"], "ssd_tf.recipes": ["*.toml"]},
    install_requires=[
        "tensorflow>=2.20,<2.23",
        "keras>=3.15,<4",
        "tensorflow-datasets>=4.9.9,<5",
        "numpy>=1.26,<3",
        "opencv-python-headless>=4.9",
        "pillow>=10.3",
        "absl-py>=2.1",
        "h5py>=3.10",
        "faster-coco-eval>=1.6.6,<2",
        "google-crc32c>=1.5,<2",
        "protobuf>=5",
    ],
    extras_require={
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.23"],
        "tensorboard": ["tensorboard>=2.20,<2.23"],
        "import": ["safetensors>=0.4"],
        "jax": ["jax>=0.10,<1"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "pycocotools>=2.0.8",
            "ruff>=0.14",
            "safetensors>=0.4",
            "jax>=0.10,<1",
        ],
    },
    entry_points={
        "console_scripts": [
            "ssd_image_to_tf = ssd_tf.cli.convert:main",
            "ssd-train = ssd_tf.cli.train:main",
            "ssd-test = ssd_tf.cli.test:main",
            "ssd-demo = ssd_tf.cli.demo:main",
            "ssd-synthesize = ssd_tf.cli.synthesize:main",
            "ssd-import = ssd_tf.cli.import_weights:main",
        ]
    },
)
