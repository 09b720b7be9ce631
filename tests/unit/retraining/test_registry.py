"""Versions of weights: whole, atomic, reversible."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from imis_net.errors import CheckpointError
from imis_net.retraining.registry import ModelRegistry


@pytest.fixture
def registry(tmp_path):
    return ModelRegistry(tmp_path / "models")


def weights(folder, content: bytes):
    path = folder / "w.safetensors"
    path.write_bytes(content)
    return path


def test_publish_and_rollback_walk_the_same_way_back(registry, tmp_path):
    """Breaks if a rollback serves anything but what was served before."""
    digests = [registry.add(weights(tmp_path, bytes([i]) * 99), {"n": i}) for i in range(3)]
    for digest in digests:
        registry.publish(digest, "better")
    assert registry.current().digest == digests[2]
    assert registry.rollback().digest == digests[1]
    assert registry.rollback().digest == digests[0]
    with pytest.raises(CheckpointError, match="nothing to roll back"):
        registry.rollback()
    assert registry.current().digest == digests[0]
    assert len(registry.history()) == 5


def test_a_version_keeps_its_facts_and_report(registry, tmp_path):
    """Breaks if a candidate that was refused leaves no trace of why."""
    digest = registry.add(weights(tmp_path, b"x"), {"reason": "worse on liver"}, "<p>why</p>")
    assert registry.current() is None
    assert registry.facts(digest)["reason"] == "worse on liver"
    assert (registry.weights(digest).parent / "report.html").read_text() == "<p>why</p>"
    assert registry.add(weights(tmp_path, b"x"), {"reason": "again"}) == digest
    assert registry.versions() == [digest]


def test_damaged_weights_are_not_published(registry, tmp_path):
    """Breaks if a file that changed on the disk is served under its old digest."""
    digest = registry.add(weights(tmp_path, b"abc"), {})
    registry.weights(digest).write_bytes(b"abd")
    with pytest.raises(CheckpointError, match="have changed"):
        registry.publish(digest, "x")
    assert registry.current() is None


@pytest.mark.parametrize("digest", ["", "../../etc", "zz", "0" * 64])
def test_unknown_versions_are_refused(registry, digest):
    """Breaks if a digest from a request walks out of the registry."""
    with pytest.raises(CheckpointError):
        registry.publish(digest, "x")


def test_a_damaged_pointer_is_an_error_not_a_default(registry):
    """Breaks if a torn file silently serves the base model again."""
    (registry.root / "current.json").write_text('{"digest": ')
    with pytest.raises(CheckpointError, match="expected a publication"):
        registry.current()


def _publish_for_ever(root, folder):
    registry = ModelRegistry(root)
    for i in range(10**6):
        registry.publish(registry.add(weights(folder, b"%d" % i * 1000), {}), str(i))


def test_killed_while_publishing_something_whole_is_served(registry, tmp_path):
    """Breaks if a kill at any moment leaves a half-written pointer or version."""
    for round_ in range(8):
        process = multiprocessing.get_context("fork").Process(target=_publish_for_ever, args=(registry.root, tmp_path))
        process.start()
        time.sleep(0.05 + 0.013 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        served = ModelRegistry(registry.root).current()
        if served is not None:
            registry.publish(served.digest, "still whole")  # the digest is checked against the file
        assert all((registry.weights(v).parent / "facts.json").is_file() for v in registry.versions())
        json.dumps(registry.facts(registry.versions()[0])) if registry.versions() else None
