"""lib.strategies: MONAI Label's strategies on the served model's own scores."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monailabel.datastore.local import LocalDatastore

from imis_net.networks.build import imis_net_compact
from imis_net.retraining.selection import ImageScore
from imis_net.segmenter import TorchSegmenter
from lib.infer import Engine
from lib.score_store import Scored, ScoreStore
from lib.strategies import NEED_SCORES, NextImage, ScoreImages, Scorer, strategies


@pytest.fixture
def store(tmp_path: Path) -> LocalDatastore:
    rng = np.random.default_rng(0)
    for name in "abc":
        pixels = sitk.GetImageFromArray(rng.integers(0, 255, (1, 40, 40), dtype=np.uint8))
        sitk.WriteImage(pixels, tmp_path / f"{name}.nii.gz")
    (tmp_path / "broken.nii.gz").write_bytes(b"torn")
    return LocalDatastore(str(tmp_path))


def _engine() -> Engine:
    torch.manual_seed(0)
    engine = Engine(TorchSegmenter(imis_net_compact(64)), 50_000_000)
    engine.is_warm.set()
    return engine


def _scorer(store: LocalDatastore, engine: Engine) -> Scorer:
    return Scorer(engine, lambda: store, ScoreStore(Path(store._datastore.base_path) / ".imis" / "scores.sqlite"))


def test_images_are_scored_in_the_background_and_again_for_a_new_model(store: LocalDatastore) -> None:
    """Breaks if scores never come, a broken image stops them, or a new model is chosen for by the old one's doubts."""
    engine = _engine()
    scorer = _scorer(store, engine)
    assert scorer.scores() == {}
    assert _wait(lambda: set(scorer.scores()) == {"a", "b", "c", "broken"})
    assert scorer.scores()["broken"] is None
    score = scorer.scores()["a"]
    assert score is not None
    assert 0 <= score.uncertainty <= 1
    assert np.linalg.norm(score.descriptor) == pytest.approx(1, abs=1e-3)
    engine.use(TorchSegmenter(imis_net_compact(64)))
    assert set(scorer._missing()) == {"a", "b", "c", "broken"}
    scorer.close()


def _wait(holds, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_every_strategy_answers_before_and_after_scoring(store: LocalDatastore) -> None:
    """Breaks if a viewer's Next Sample fails while nothing is scored, or a labelled image comes again."""
    scorer = _scorer(store, _engine())
    for name, strategy in strategies(scorer).items():
        answer = strategy({"strategy": name}, store)
        assert answer is not None
        assert answer["id"] in "abcbroken"
    assert _wait(lambda: len(scorer.scores()) == 4)
    for name in NEED_SCORES:
        assert strategies(scorer)[name]({}, store)["id"] in "abc"  # type: ignore[index]
    for image in ("a", "b", "c", "broken"):
        store.save_label(image, str(Path(store.get_image_uri("a"))), "final", {})
    assert NextImage("first", scorer)({}, store) is None
    scorer.close()


def test_the_scoring_method_scores_what_is_missing_and_names_the_least_sure(store: LocalDatastore) -> None:
    """Breaks if scoring on demand scores twice, tells of labelled images, or dies of a broken one."""
    method = ScoreImages(_scorer(store, _engine()))
    store.save_label("b", str(Path(store.get_image_uri("a"))), "final", {})
    told = method({}, store)
    least_sure = told.pop("least_sure")
    assert told == {"num_scored_now": 4, "num_scored": 3, "num_unreadable": 1}
    assert set(least_sure) == {"a", "c"}
    assert list(least_sure.values()) == sorted(least_sure.values(), reverse=True)
    assert method({}, store)["num_scored_now"] == 0


def test_scores_are_there_again_after_a_restart(store: LocalDatastore) -> None:
    """Breaks if every restart asks the model about each image again, or about another model's images never."""
    engine = _engine()
    first = _scorer(store, engine)
    assert len(list(first.score_missing())) == 4
    again = _scorer(store, engine)
    assert list(again.score_missing()) == []
    one, other = (s.store.read()["a"].score for s in (first, again))
    assert one is not None
    assert other is not None
    assert one.uncertainty == other.uncertainty
    np.testing.assert_array_equal(one.descriptor, other.descriptor)
    assert again.store.read()["broken"].score is None


def test_another_process_scores_are_seen(tmp_path: Path) -> None:
    """Breaks if the server never learns what a scoring task found, or forgets its own scores for it."""
    server, task = (ScoreStore(tmp_path / "scores.sqlite") for _ in range(2))
    score = Scored("weights", ImageScore(0.25, np.ones(3, np.float32)))
    server.keep("a", score)
    assert set(server.read()) == {"a"}
    task.keep("b", score)
    assert set(server.read()) == {"a", "b"}
    assert set(task.read()) == {"a", "b"}
    assert server.read()["b"].weights == "weights"


def test_two_annotators_are_not_given_the_same_image(store: LocalDatastore) -> None:
    """Breaks if the most uncertain image is drawn by everybody at once."""
    first = NextImage("first", _scorer(store, _engine()))
    store.update_image_info("a", {"strategy": {"first": {"ts": int(time.time()), "client_id": "ann"}}})
    assert first({"client_id": "ann"}, store) == {"id": "a", "num_scored": 0}
    assert first({"client_id": "bob"}, store) == {"id": "b", "num_scored": 0}
