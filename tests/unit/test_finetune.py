"""Fine-tuning on a frozen trunk's features."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from imis_net.checkpoint import TRUNK, load_weights, save_weights
from imis_net.errors import DatasetError
from imis_net.networks.build import imis_net_compact
from imis_net.segmenter import TorchSegmenter, trunk_digest
from imis_net.training.dataset import Record
from imis_net.training.finetune import FineTuning, Unfinished, fine_tune, save_fine_tuned
from imis_net.training.trunk_features import OwnTrunk, TrunkCache, TrunkFedSegmenter

SIDE = 64


def record(patient: str, value: int = 200) -> Record:
    rng = np.random.default_rng(int(patient))
    labels = np.zeros((64, 64), np.uint16)
    top, left = rng.integers(4, 24, 2)
    labels[top : top + 30, left : left + 30] = 1
    image = np.where(labels[..., None] > 0, value, 20).repeat(3, axis=2).astype(np.uint8)
    return Record(f"case {patient}", patient, "a set", "CT", image, ((labels, {1: "liver"}),))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return imis_net_compact(SIDE)


def settings(**changes) -> FineTuning:
    return FineTuning(**{"max_steps": 60, "validate_every": 20, "learning_rate": 2e-3, **changes})


def test_it_learns_without_touching_the_trunk(network):
    """Breaks if the trunk moves, an image is encoded more than once, or nothing is learnt."""
    trunk = {k: v.clone() for k, v in network.image_encoder.trunk.state_dict().items()}
    cache, seen = TrunkCache(OwnTrunk(network)), []
    training, validation = [record("1"), record("2")], [record("3"), record("4")]
    outcome = fine_tune(network, training, validation, settings(), cache, seen.append)
    assert all(v.equal(trunk[k]) for k, v in network.image_encoder.trunk.state_dict().items())
    assert cache.num_encoded == 4
    assert outcome.best_dice > outcome.start_dice + 0.1
    assert outcome.num_steps == len(seen) == 60
    assert seen[-1].fraction == 1
    assert seen[-1].best_dice == outcome.best_dice
    assert len(seen[0].round_dices) == 2


def test_adapters_teach_the_trunk_and_leave_the_plain_layout(network):
    """Breaks if adapters do not learn, anything else of the trunk moves, or the network ends with them still in it."""
    trunk = network.image_encoder.trunk
    before = {k: v.clone() for k, v in trunk.state_dict().items()}
    frozen, learning = set(), set()

    def look(progress):
        """After a step, when the gradients of it are still there."""
        for name, parameter in network.named_parameters():
            (frozen if parameter.grad is None else learning).add(name)

    outcome = fine_tune(network, [record("1")], [record("2")], settings(adapter_rank=4, max_steps=20), None, look)
    assert outcome.best_dice > outcome.start_dice
    of_trunk = {name for name in learning if name.startswith(TRUNK)}
    assert of_trunk
    assert all(".parametrizations.weight.0." in name for name in of_trunk)
    assert {name.split(".")[0] for name in learning - of_trunk} >= {"image_encoder", "prompt_encoder", "mask_decoder"}
    after = trunk.state_dict()
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    moved = {key for key in before if not after[key].equal(before[key])}
    assert moved
    assert all(key.endswith((".conv_pw.weight", ".conv_pwl.weight")) for key in moved)  # no batch statistics


def test_without_a_gain_adapters_leave_the_trunk_as_it_was(network):
    """Breaks if a run that gained nothing leaves another trunk, for which every image would be encoded again."""
    before = trunk_digest(network)
    fine_tune(network, [record("1")], [record("2")], settings(adapter_rank=4, learning_rate=0.0, max_steps=2))
    assert trunk_digest(network) == before


def test_adapters_need_the_networks_own_trunk(network):
    """Breaks if adapters are trained on features that do not follow them."""
    with pytest.raises(ValueError, match="no features from elsewhere"):
        fine_tune(network, [record("1")], [record("2")], settings(adapter_rank=4), TrunkCache(OwnTrunk(network)))


class Killed(BaseException):
    """What nothing here catches."""


def tuned(adapter_rank: int, unfinished: Unfinished | None = None, kill_at: int = 0):
    """The steps that a run took, and what it ended with, None if it was killed."""
    torch.manual_seed(0)
    network, steps = imis_net_compact(SIDE), []

    def look(progress):
        steps.append(progress.step)
        if progress.step == kill_at:
            raise Killed

    few = settings(max_steps=4, validate_every=2, adapter_rank=adapter_rank)
    try:
        outcome = fine_tune(network, [record("1")], [record("2")], few, on_progress=look, unfinished=unfinished)
    except Killed:
        return steps, None, None
    return steps, outcome.best_dice, network.state_dict()


@pytest.mark.parametrize("adapter_rank", [0, 4])
def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, adapter_rank):
    """Breaks if images, clicks, moments, averages, the best weights or adapters are others after a restart."""
    unfinished = Unfinished(tmp_path / "unfinished.safetensors", "the start", every_s=0)
    _, dice, whole = tuned(adapter_rank)
    assert tuned(adapter_rank, unfinished, kill_at=3) == ([1, 2, 3], None, None)
    steps, resumed_dice, resumed = tuned(adapter_rank, unfinished)
    assert steps == [3, 4]
    assert resumed_dice == dice
    assert whole.keys() == resumed.keys()
    assert all(value.equal(resumed[key]) for key, value in whole.items())


def test_only_the_same_run_is_gone_on_from(tmp_path):
    """Breaks if other start weights or options get a killed run's state, or a torn file ends every run after it."""
    unfinished = Unfinished(tmp_path / "unfinished.safetensors", "the start", every_s=0)
    tuned(0, unfinished, kill_at=3)
    left = unfinished.path.read_bytes()
    assert tuned(0, replace(unfinished, start="another"), kill_at=1)[0] == [1]
    assert tuned(4, unfinished, kill_at=1)[0] == [1]
    unfinished.path.write_bytes(left[:1000])
    assert tuned(0, unfinished, kill_at=1)[0] == [1]
    unfinished.path.write_bytes(left)
    assert tuned(0, unfinished, kill_at=3)[0] == [3]


def test_features_from_elsewhere_need_no_trunk(network, tmp_path):
    """Breaks if training asks for a trunk that another process runs, or the saved file lacks its weights."""
    save_weights(network, tmp_path / "start.safetensors", {}, half=True)
    load_weights(network, tmp_path / "start.safetensors")
    cache = TrunkCache(OwnTrunk(network))
    records = [record("1"), record("2")]
    kept = {r.image.tobytes(): cache(r.image) for r in records}
    headless = imis_net_compact(SIDE, with_trunk=False)
    assert not list(headless.image_encoder.trunk.parameters())
    load_weights(headless, tmp_path / "start.safetensors", leave_out=TRUNK)
    fine_tune(headless, records[:1], records[1:], settings(max_steps=3), lambda image: kept[image.tobytes()])
    headless.mask_decoder.mask_tokens.weight.data.fill_(0.5)
    save_fine_tuned(headless, tmp_path / "start.safetensors", tmp_path / "tuned.safetensors", {"who": "a test"})
    start, tuned = (load_file(tmp_path / f"{name}.safetensors") for name in ("start", "tuned"))
    assert tuned.keys() == start.keys()
    assert tuned["mask_decoder.mask_tokens.weight"].eq(0.5).all()
    assert tuned["image_encoder.trunk.conv_stem.weight"].equal(start["image_encoder.trunk.conv_stem.weight"])
    assert {v.dtype for v in tuned.values() if v.is_floating_point()} == {torch.float16}
    load_weights(imis_net_compact(SIDE), tmp_path / "tuned.safetensors")


def test_neither_time_nor_patience_is_overrun(network):
    """Breaks if a retraining at night runs into the day, or goes on when nothing is gained."""
    one, other = [record("1")], [record("2")]
    by_time = fine_tune(network, one, other, settings(max_steps=10**6, max_seconds=1.0))
    assert by_time.ended_by == "time"
    assert by_time.seconds < 10
    by_patience = fine_tune(
        network, one, other, settings(learning_rate=0.0, validate_every=1, patience=2, max_steps=50)
    )
    assert (by_patience.ended_by, by_patience.num_steps) == ("patience", 2)
    stopped = fine_tune(network, one, other, settings(), should_stop=lambda: True)
    assert (stopped.ended_by, stopped.num_steps) == ("stop", 1)


def test_what_did_not_help_is_not_kept(network):
    """Breaks if a run that made things worse leaves its weights in the network."""
    before = {k: v.clone() for k, v in network.state_dict().items()}
    outcome = fine_tune(network, [record("1")], [record("2")], settings(learning_rate=0.0, max_steps=20))
    assert outcome.best_dice == outcome.start_dice
    assert all(v.equal(before[k]) for k, v in network.state_dict().items())


def test_a_trunk_fed_segmenter_sees_what_the_whole_network_sees(network):
    """Breaks if fine-tuning normalises or resizes an image otherwise than serving does."""
    image = record("1").image
    fed = TrunkFedSegmenter(network, TrunkCache(OwnTrunk(network))).encode_image(image)
    whole = TorchSegmenter(network).encode_image(image)
    for ours, theirs in zip(fed.features, whole.features, strict=True):
        assert torch.allclose(ours, theirs, atol=0.02)  # kept in half precision


@pytest.mark.parametrize("spoil", ["training", "validation", "patients"])
def test_nothing_to_learn_from_is_refused_before_any_work(network, spoil):
    """Breaks if a retraining without usable labels ends in a traceback or pretends to have trained."""
    empty = Record("no label", "9", "a set", "CT", np.zeros((8, 8, 3), np.uint8), ())
    training = [empty] if spoil == "training" else [record("1")]
    validation = {"validation": [empty], "patients": [record("1")]}.get(spoil, [record("2")])
    with pytest.raises(DatasetError, match=r"learn from|validate on|patients in"):
        fine_tune(network, training, validation, settings(), lambda image: pytest.fail("encoded"))
