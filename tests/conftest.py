"""What several tests share: a small data set, quick configs, and the places of optional real data."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chromium import CHROMIUM, FLAGS
from hypothesis import settings
from playwright.sync_api import Browser, sync_playwright
from torch import Tensor

from jointvae import data, training
from jointvae.evaluation import Evaluation
from jointvae.latents import Noise, draw_noise
from jointvae.model import JointVAE
from jointvae.results import Checkpoint, Provenance, Record

torch.set_num_threads(1)  # the same arithmetic in the same order, whatever the machine
settings.register_profile("jointvae", deadline=None)  # how long a case takes depends on what else the machine does
settings.load_profile("jointvae")


@pytest.fixture(scope="session")
def digits() -> data.Dataset:
    """The first 160 training digits: three batches, the last one short."""
    full = data.load("digits", "train")
    return data.Dataset("digits", "train", full.images[:160], full.labels[:160], {})


@pytest.fixture
def quick() -> training.Config:
    """Three epochs of the digits recipe, in batches of 64."""
    return replace(training.recipe("digits"), epochs=3, batch_size=64)


@pytest.fixture(scope="module")
def started() -> tuple[JointVAE, training.Config, Tensor, Noise]:
    """A model of the digits recipe that has seen ten steps, its config, the next images, and noise for them."""
    config = training.recipe("digits")
    trainer = training.Trainer(config)
    images = data.as_floats(data.load("digits", "train").images)
    for x in images[:320].split(32):
        trainer.train_step(x)
    noise = draw_noise(config.latents, (32,), torch.Generator().manual_seed(1))
    return trainer.model, config, images[320:352], noise


@pytest.fixture
def generator() -> torch.Generator:
    """Seeded noise."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def reference_folder() -> Path:
    """The folder of the authors' published models, named by JOINTVAE_REFERENCE; without it the test is skipped."""
    folder = os.environ.get("JOINTVAE_REFERENCE")
    if folder and os.environ.get("CI") and not Path(folder).is_dir():
        pytest.fail(f"JOINTVAE_REFERENCE names {folder}, which is no folder, and CI must not leave this out.")
    if not folder:
        pytest.skip("set JOINTVAE_REFERENCE to the folder of the authors' models to run this test")
    return Path(folder)


@pytest.fixture
def make_evaluation() -> Callable[..., Evaluation]:
    """Builds an evaluation on the test set; give it any of its fields."""

    def make(**scores: object) -> Evaluation:
        evaluation = Evaluation(
            split="test",
            images=20,
            reconstruction=150.0,
            kl_z=[4.0, 1.0, *[0.01] * 8],
            kl_c=[2.3],
            information=[2.2],
            unit=0,
            accuracy=0.9,
            accuracy_majority=0.95,
            nmi=0.8,
            ari=0.7,
            usage=[0.5, 0.5, *[0.0] * 8],
            confusion=[[9, 1, *[0] * 8], [1, 9, *[0] * 8], *[[0] * 10 for _ in range(8)]],
        )
        return replace(evaluation, **scores)

    return make


@pytest.fixture
def make_record(make_evaluation) -> Callable[..., Record]:
    """Builds a valid record; give it a recipe, a seed and any fields of the test evaluation."""

    def make(recipe: str = "mnist", seed: int = 0, **scores: object) -> Record:
        test = make_evaluation(**scores)
        config = replace(training.recipe(recipe), seed=seed)
        return Record(
            name=config.run_name,
            status="finished",
            error=None,
            config=config,
            data={"images": "00"},
            provenance=[Provenance("0.1.0", None, None, "3.11", "2.15", "a CPU", 1, "2026-01-01T00:00:00+00:00")],
            seconds=1.0,
            images_per_second=100.0,
            curves={"step": [1, 2], "reconstruction": [200.0, 150.0], "kl_z": [[0.1], [0.2]], "kl_c": [[0.1], [0.2]]},
            train=replace(test, split="train"),
            test=test,
            scores={"information": 2.2},
            checkpoint=Checkpoint("x.safetensors", "00"),
        )

    return make


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; skipped where there is none, except in CI."""
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("No Chromium on this machine, and CI must have one.")
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()
