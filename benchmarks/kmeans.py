"""A yardstick for the clusters: k-means on raw pixels, matched to the classes in the same way as the categories of c.

    python benchmarks/kmeans.py

Fits on the training images, 28 x 28 pixels, with ten clusters and several seeds, and scores the test images.
"""

import torch
from _shared import parser, run, save
from sklearn.cluster import MiniBatchKMeans

from jointvae import data, evaluation

SEEDS = 8


def scores(name: str) -> list[float]:
    """One-to-one accuracy on the test set, for each seed."""
    pixels = data.as_floats(data.raw_images(name, "train")).flatten(1).numpy()
    test, labels = data.as_floats(data.raw_images(name, "test")).flatten(1).numpy(), data.load(name, "test").labels
    found = []
    for seed in range(SEEDS):
        model = MiniBatchKMeans(10, n_init=3, batch_size=2048, random_state=seed).fit(pixels)
        clusters = torch.from_numpy(model.predict(test)).long()
        found.append(evaluation.one_to_one(evaluation.confusion_matrix(labels, clusters, 10, 10))[0])
        print(f"{name}, seed {seed}: {found[-1]:.1%}")
    return found


def main() -> None:
    """Measure, print, record."""
    given = parser(__doc__).parse_args()
    save("kmeans", {name: scores(name) for name in ("mnist", "fashion")}, given.record, device="cpu")


if __name__ == "__main__":
    run(main)
