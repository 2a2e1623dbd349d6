"""Examples: small programs, each of which goes all the way, on data that every machine has.

    python -m trainers.examples.text         a byte-level transformer on the source of Python's standard library
    python -m trainers.examples.pictures     a ResNet on JPEGs, tiles of two photographs
    python -m trainers.examples.finetune     a frozen backbone: from digits 0-5 to digits 6-9; what its checkpoints cost
    python -m trainers.examples.finance      ticks that come late and are corrected: point-in-time windows without look-ahead
    python -m trainers.examples.driving      camera, lidar, poses and IMU in one store, aligned on their timestamps
    python -m trainers.examples.keras_cnn    the article's Keras program, on a loader over the store
    python -m trainers.examples.jax_mnist    the CNN with JAX, data-parallel over a mesh, checkpoints in the store

Each of the first three has a TOML file of the same name beside it, which `lepton train DATASET --config FILE` takes too. `collect`
puts real files on a disk or reads them from one, and stores them as a dataset version; what follows is what the commands of `lepton` do.
"""
