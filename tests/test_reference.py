"""The published figures of the authors' models, and MNIST itself. Needs the real files; skipped where they are not."""

import pytest

from jointvae import checkpoints, data, results
from jointvae.evaluation import evaluate

PUBLISHED = {
    "mnist": {"accuracy": 0.8873, "accuracy_majority": 0.8873, "kl_z": 4.997, "kl_c": 2.274, "reconstruction": 147.64},
    "fashion": {
        "accuracy": 0.4502,
        "accuracy_majority": 0.5183,
        "kl_z": 5.138,
        "kl_c": 2.293,
        "reconstruction": 319.35,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_models_score_what_they_score(name, reference_folder):
    model = checkpoints.load_authors(reference_folder / "authors" / name)
    found = evaluate(model, data.load(name, "test"))
    expected = PUBLISHED[name]
    assert found.accuracy == pytest.approx(expected["accuracy"], abs=1e-9)
    assert found.accuracy_majority == pytest.approx(expected["accuracy_majority"], abs=1e-9)
    assert sum(found.kl_z) == pytest.approx(expected["kl_z"], abs=6e-4)
    assert sum(found.kl_c) == pytest.approx(expected["kl_c"], abs=6e-4)
    assert found.reconstruction == pytest.approx(expected["reconstruction"], abs=6e-3)
    recorded = next(r for r in results.references() if r.name == f"authors-{name}").test
    assert found.confusion == recorded.confusion
