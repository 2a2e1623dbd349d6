"""Examples: small programs, each of which goes all the way, on data that every machine has. docs/examples.md is for users.

Of fields, with --workdir, --store and --quick; each ends with a result that has to be better than a baseline which it prints:

    python -m trainers.examples.images       a ResNet on JPEGs and PNGs, tiles of two photographs
    python -m trainers.examples.text         a transformer on packs of tokens, the docstrings of Python's standard library
    python -m trainers.examples.medical      a 3-D network on volumes of 16 bits, and a patient who is erased
    python -m trainers.examples.finance      ticks that come late and are corrected: point-in-time windows without look-ahead
    python -m trainers.examples.driving      camera, lidar, poses and IMU in one store, aligned on their timestamps

Of ways to train:

    python -m trainers.examples.finetune     a frozen backbone: from digits 0-5 to digits 6-9; what its checkpoints cost
    python -m trainers.examples.keras_cnn    the article's Keras program, on a loader over the store
    python -m trainers.examples.jax_mnist    the CNN with JAX, data-parallel over a mesh, checkpoints in the store

Some have a TOML file of the same name beside them, which `lepton train DATASET --config FILE` takes too. `collect` puts real files on a
disk or reads them from one, and stores them as a dataset version; what follows is what the commands of `lepton` do.
"""
