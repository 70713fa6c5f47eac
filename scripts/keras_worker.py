"""Trains the Keras CIFAR-10 tutorial as its readers do, on command: the other side of scripts/bench_keras.py.

Runs in an environment of its own, with Keras and a backend, and imports nothing of ours. `KERAS_BACKEND` names the
backend. Standard input has one JSON object a line, standard output one answer a line; Keras' own output goes to
standard error.
"""

import json
import os
import sys
import time


def build(keras):
    """Makes the network of the tutorial: three 3×3 convolutions, two poolings, two dense layers, Adam."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    return model


def main():
    """Answers commands until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Libraries write to standard output.
    import keras
    import numpy

    folder = sys.argv[1]
    # Pixels in [0, 1] as float64, as in the tutorial.
    images, labels = numpy.load(f"{folder}/images.npy") / 255.0, numpy.load(f"{folder}/labels.npy")[:, None]
    model = build(keras)
    backend = __import__(keras.backend.backend())
    versions = f"Keras {keras.__version__}, {keras.backend.backend()} {backend.__version__}"
    hello = {"versions": versions, "images": len(images), "parameters": model.count_params()}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        count, batch = command["images"], command["batch_size"]
        began = time.perf_counter()
        history = model.fit(images[:count], labels[:count], batch_size=batch, epochs=1, verbose=0)
        answer = {"seconds": time.perf_counter() - began, "images": count, **history.history}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
