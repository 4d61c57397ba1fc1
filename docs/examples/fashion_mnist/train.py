"""Trains the networks of docs/distillation.md: a teacher, students with and without it, and pruned students.

    make distill-train            (or, in docs/examples: ../../build/venvs/distill/bin/python -m fashion_mnist.train)

Each network is written to build/distill/networks as soon as it is trained, with its accuracy on the validation
pictures, and is not trained again while it is there. Keras does the training, its Distiller the distillation.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from fashion_mnist.data import Pictures, fetch_package, read_pictures
from fashion_mnist.network import STRIDES, Convolution, Network, prune

ROOT = Path(__file__).resolve().parents[3]

TEACHER = (32, 64, 128)
STUDENT = (16, 32, 32)
PRUNED = (12, 24, 24)

_FEW = 2_000  # labels, where they are hard to come by
_BATCH = 128
_EPOCHS = {"teacher": 8, "student": 6, "pruned": 2, "small": 8}  # small: as many as student and pruned together
_RATE = {"teacher": 3e-3, "student": 4e-3, "pruned": 2e-3, "small": 4e-3}


def build(channels: Sequence[int], start: Network | None = None) -> keras.Model:
    """A network that gives logits; with the weights of `start` where it is given."""
    pixels = value = keras.Input((28, 28, 1))
    for index, (count, stride) in enumerate(zip(channels, STRIDES, strict=True)):
        size = 5 if index == 0 else 3
        value = keras.layers.Conv2D(
            count, size, strides=stride, padding="same", use_bias=False, name=f"convolution{index}"
        )(value)
        value = keras.layers.BatchNormalization(name=f"normalisation{index}")(value)
        value = keras.layers.ReLU()(value)
    value = keras.layers.GlobalAveragePooling2D()(value)
    model = keras.Model(pixels, keras.layers.Dense(10, name="classes")(value))
    if start is not None:
        for index, each in enumerate(start.convolutions):
            model.get_layer(f"convolution{index}").set_weights([each.kernel])
            model.get_layer(f"normalisation{index}").set_weights([each.scale, each.shift, each.mean, each.variance])
        model.get_layer("classes").set_weights([start.weight, start.bias])
    return model


def network_of(model: keras.Model) -> Network:
    """The arrays of a model that `build` made."""
    convolutions = []
    for index in range(len(STRIDES)):
        (kernel,) = model.get_layer(f"convolution{index}").get_weights()
        scale, shift, mean, variance = model.get_layer(f"normalisation{index}").get_weights()
        convolutions.append(Convolution(kernel=kernel, scale=scale, shift=shift, mean=mean, variance=variance))
    weight, bias = model.get_layer("classes").get_weights()
    return Network(convolutions=tuple(convolutions), weight=weight, bias=bias)


def fit(
    model: keras.Model, train: Pictures, kind: str, saved: Path, *,
    teacher: keras.Model | None = None, num_labels: int | None = None,
) -> None:  # fmt: skip
    """Train a model on its labels, and on the teacher's answers too where there is one. All else is the same.

    saved       where each epoch is kept until the last: what was interrupted goes on from there
    num_labels  of so many pictures only, as often as all would be seen; 0: on the teacher's answers alone; None: of all
    """
    count = num_labels or len(train.labels)
    epochs = _EPOCHS[kind] * len(train.labels) // count
    steps = epochs * -(-count // _BATCH)
    learner = model
    if teacher is not None:
        learner = keras.distillation.Distiller(
            teacher=teacher,
            student=model,
            student_loss_weight=0.0 if num_labels == 0 else 0.5,
            distillation_losses=keras.distillation.LogitsDistillation(
                temperature=3.0,
                loss=keras.losses.KLDivergence(),  # said by name, Keras 3.15 takes it of logits, not of probabilities
            ),
        )
    learner.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(_RATE[kind], steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    learner.fit(
        train.values()[:count], train.labels[:count].astype(np.int32), batch_size=_BATCH, epochs=epochs, verbose=0,
        callbacks=[keras.callbacks.BackupAndRestore(str(saved))],
    )  # fmt: skip


def accuracy(model: keras.Model, pictures: Pictures) -> float:
    answers = model.predict(pictures.values(), batch_size=500, verbose=0).argmax(axis=1)
    return float((answers == pictures.labels).mean())


class Workshop:
    """Trains what is missing in a folder, and reads what is there."""

    def __init__(self, folder: Path, train: Pictures, validation: Pictures) -> None:
        self._folder = folder
        self._train = train
        self._validation = validation

    def network(
        self, name: str, kind: str, channels: Sequence[int], seed: int, *,
        start: Network | None = None, teacher: Network | None = None, num_labels: int | None = None,
    ) -> Network:  # fmt: skip
        """The network of this name: from the folder, else trained and written there."""
        path = self._folder / f"{name}.npz"
        if path.is_file():
            return Network.load(path)
        keras.utils.set_random_seed(seed)
        began = time.perf_counter()
        model = build(channels, start)
        taught_by = None if teacher is None else build(teacher.channels, teacher)
        fit(model, self._train, kind, self._folder / f".{name}", teacher=taught_by, num_labels=num_labels)
        seconds = time.perf_counter() - began
        reached = accuracy(model, self._validation)
        network = network_of(model)
        network.save(path)
        record = {"validation_accuracy": reached, "seconds": round(seconds, 1), "parameters": network.num_parameters}
        path.with_suffix(".json").write_text(json.dumps(record) + "\n", encoding="utf-8")
        print(f"{name}: {reached:.4f} of the validation pictures, {network.num_parameters} parameters, {seconds:.0f} s",
              flush=True)  # fmt: skip
        return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "cache")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "distill" / "networks")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    train, validation, _ = read_pictures(fetch_package(arguments.cache))
    workshop = Workshop(arguments.out, train, validation)
    teacher = workshop.network("teacher", "teacher", TEACHER, 0)
    for seed in range(arguments.seeds):
        workshop.network(f"student-alone-{seed}", "student", STUDENT, seed)
        distilled = workshop.network(f"student-distilled-{seed}", "student", STUDENT, seed, teacher=teacher)
        cut = prune(distilled, PRUNED)
        cut.save(arguments.out / f"cut-{seed}.npz")  # before fine-tuning: what cutting alone costs
        workshop.network(f"pruned-{seed}", "pruned", PRUNED, seed, start=cut, teacher=teacher)
        workshop.network(f"small-distilled-{seed}", "small", PRUNED, seed, teacher=teacher)
    for seed in range(arguments.seeds):
        workshop.network(f"few-labels-{seed}", "student", STUDENT, seed, num_labels=_FEW)
        workshop.network(f"no-labels-{seed}", "student", STUDENT, seed, teacher=teacher, num_labels=0)


if __name__ == "__main__":
    main()
