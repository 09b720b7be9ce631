"""Embeddings on disk: the same after a restart, bounded, and nothing unsigned is ever parsed."""

from pathlib import Path

import pytest
import torch

from imis_net.embedding_cache import EmbeddingCache
from imis_net.embedding_disk import EmbeddingDisk
from imis_net.prompts import ImageEmbedding


def embedding(seed: int = 0) -> ImageEmbedding:
    generator = torch.Generator().manual_seed(seed)
    features = (torch.randn(1, 4, 3, 3, generator=generator), torch.randn(1, 2, 6, 6, generator=generator).half())
    return ImageEmbedding(features, (40, 30), "encoder")


def is_same(one: ImageEmbedding, other: ImageEmbedding) -> bool:
    alike = zip(one.features, other.features, strict=True)
    facts = (one.original_size, one.encoder_digest) == (other.original_size, other.encoder_digest)
    return facts and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in alike)


def test_a_restarted_server_reads_the_same_bits(tmp_path: Path) -> None:
    """Breaks if an embedding loses precision, size or digest on its way, or if each start makes another key."""
    EmbeddingDisk(tmp_path, 1 << 20).write("a", embedding())
    stored = EmbeddingDisk(tmp_path, 1 << 20).read("a")
    assert stored is not None
    assert is_same(stored, embedding())
    assert EmbeddingDisk(tmp_path, 1 << 20).read("b") is None


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "pickle", "other key", "other server"])
def test_what_does_not_verify_is_removed_and_not_used(tmp_path: Path, harm: str) -> None:
    """Breaks if a torn, foreign or swapped file is served as somebody's image."""
    disk = EmbeddingDisk(tmp_path / "mine", 1 << 20)
    disk.write("a", embedding())
    (path,) = (tmp_path / "mine").glob("*.embedding")
    content = path.read_bytes()
    if harm == "flip":
        path.write_bytes(content[:700] + bytes([content[700] ^ 1]) + content[701:])
    elif harm == "truncate":
        path.write_bytes(content[:-1])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "pickle":
        path.write_bytes(b"\x80\x04cos\nsystem\n")
    elif harm == "other key":
        disk.write("b", embedding(1))
        (other,) = (p for p in (tmp_path / "mine").glob("*.embedding") if p != path)
        path.write_bytes(other.read_bytes())
    else:
        theirs = EmbeddingDisk(tmp_path / "theirs", 1 << 20)
        theirs.write("a", embedding(2))
        path.write_bytes(next((tmp_path / "theirs").glob("*.embedding")).read_bytes())
    assert disk.read("a") is None
    assert disk.num_rejected == 1
    assert not path.exists()


def test_bytes_are_bounded_and_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    """Breaks if the disk fills up, or if a restart throws out what was used last."""
    first = EmbeddingDisk(tmp_path, 1 << 20)
    for key in "ab":
        first.write(key, embedding())
    size = first.num_bytes // 2
    first.read("a")  # b is now the oldest
    second = EmbeddingDisk(tmp_path, 2 * size)
    second.write("c", embedding())
    assert sum(p.stat().st_size for p in tmp_path.glob("*.embedding")) == second.num_bytes == 2 * size
    assert second.read("b") is None
    assert second.read("a") is not None


def test_a_disk_that_cannot_be_written_costs_nothing_but_the_file(tmp_path: Path) -> None:
    """Breaks if a full or vanished disk turns a click into an error."""
    disk = EmbeddingDisk(tmp_path / "gone", 1 << 20)
    (tmp_path / "gone" / "secret").unlink()
    (tmp_path / "gone").rmdir()
    disk.write("a", embedding())
    assert disk.read("a") is None


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    """Breaks if other users of the machine may look at what patients' images became."""
    EmbeddingDisk(tmp_path / "cache", 1 << 20).write("a", embedding())
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert (tmp_path / "cache" / "secret").stat().st_mode & 0o077 == 0


def test_what_memory_pushed_out_is_read_and_not_encoded(tmp_path: Path) -> None:
    """Breaks if a second look at an evicted slice, or a restart, runs the encoder again."""
    small = embedding().num_bytes
    cache = EmbeddingCache(small, EmbeddingDisk(tmp_path, 1 << 20))
    for n, key in enumerate("ab"):
        assert not cache.get_or_encode(key, lambda n=n: embedding(n))[1]
    stored, was_spared = cache.get_or_encode("a", lambda: pytest.fail("encoded again"))
    assert was_spared
    assert is_same(stored, embedding(0))
    restarted = EmbeddingCache(small, EmbeddingDisk(tmp_path, 1 << 20))
    assert restarted.get_or_encode("b", lambda: pytest.fail("encoded again"))[1]
    assert restarted.num_disk_hits == 1
