"""One process of a training on several devices or machines; run by test_team.py, which explains its arguments."""

import json
import sys

import numpy as np
import tensorflow as tf


def main():
    options = json.loads(sys.argv[1])
    if options["devices"] > 1:
        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * options["devices"]
        tf.config.set_logical_device_configuration(cpu, parts)
    tf.config.threading.set_inter_op_parallelism_threads(2)

    import small_network

    from ssd_tf import config as configs
    from ssd_tf.api import train as trains
    from ssd_tf.errors import SsdError

    small_network.register()
    config = configs.load_config(None, options["set"])
    try:
        result = trains.train(config, options["records"], options["run_dir"], val=options.get("val"))
    except SsdError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
    print("RESULT", json.dumps(result))


def read_weights(run_dir, step):
    """Returns all weights of a checkpoint, one after the other, float32 [N]."""
    import h5py

    values = []

    def visit(_, item):
        if isinstance(item, h5py.Dataset):
            values.append(np.ravel(item[()]))

    with h5py.File(run_dir / f"step-{step:08d}" / "model.weights.h5") as file:
        file.visititems(visit)
    return np.concatenate(values)


if __name__ == "__main__":
    main()
