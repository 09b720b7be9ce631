"""The embedding cache: bounded, least recently used first, one encoder run per key."""

import random
import threading
import time

import pytest
import torch

from imis_net.embedding_cache import EmbeddingCache
from imis_net.prompts import ImageEmbedding


def embedding(num_floats: int = 10) -> ImageEmbedding:
    return ImageEmbedding((torch.zeros(num_floats),), (1, 1), "digest")


def test_second_request_is_a_hit():
    """Breaks if the second click encodes again."""
    cache = EmbeddingCache(1000)
    first, was_cached = cache.get_or_encode("a", embedding)
    second, is_cached = cache.get_or_encode("a", lambda: pytest.fail("encoded again"))
    assert (was_cached, is_cached) == (False, True)
    assert first is second


def test_bytes_are_bounded_and_the_oldest_goes_first():
    """Breaks if the cache grows without end, or throws out what is in use."""
    cache = EmbeddingCache(80)
    for key in ("a", "b"):
        cache.get_or_encode(key, embedding)
    cache.get_or_encode("a", embedding)  # now b is the oldest
    cache.get_or_encode("c", embedding)
    assert cache.num_bytes <= 80
    assert cache.get_or_encode("a", embedding)[1]
    assert not cache.get_or_encode("b", embedding)[1]


def test_larger_than_the_cache_is_returned_not_kept():
    """Breaks if one huge image empties the cache of everybody."""
    cache = EmbeddingCache(80)
    cache.get_or_encode("small", embedding)
    cache.get_or_encode("large", lambda: embedding(1000))
    assert cache.get_or_encode("small", embedding)[1]
    assert cache.num_bytes == 40


def test_simultaneous_requests_encode_once():
    """Breaks if two users who open one slice at the same moment run the encoder twice."""
    cache, runs = EmbeddingCache(1000), []

    def slow() -> ImageEmbedding:
        runs.append(1)
        time.sleep(0.05)
        return embedding()

    threads = [threading.Thread(target=cache.get_or_encode, args=("a", slow)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(runs) == 1


def test_failure_is_raised_and_the_next_call_tries_again():
    """Breaks if an encoder error is remembered, or leaves the key waiting for ever."""
    cache = EmbeddingCache(1000)

    def fail() -> ImageEmbedding:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        cache.get_or_encode("a", fail)
    assert not cache.get_or_encode("a", embedding)[1]


def test_failure_reaches_everyone_who_waits():
    """Breaks if those who wait for a failed run hang, or each run the encoder themselves."""
    cache, started, errors = EmbeddingCache(1000), threading.Event(), []

    def fail() -> ImageEmbedding:
        started.set()
        time.sleep(0.05)
        raise RuntimeError("no memory")

    def ask(encode) -> None:
        try:
            cache.get_or_encode("a", encode)
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask, args=(fail,))]
    threads[0].start()
    started.wait(5)
    threads += [threading.Thread(target=ask, args=(lambda: pytest.fail("ran again"),)) for _ in range(4)]
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert errors == ["no memory"] * 5


def test_keys_do_not_wait_for_each_other():
    """Breaks if one slow image holds up everybody's."""
    cache, release, started = EmbeddingCache(1000), threading.Event(), threading.Event()

    def slow() -> ImageEmbedding:
        started.set()
        release.wait(5)
        return embedding()

    thread = threading.Thread(target=cache.get_or_encode, args=("slow", slow))
    thread.start()
    started.wait(5)
    assert not cache.get_or_encode("fast", embedding)[1]
    assert thread.is_alive()
    release.set()
    thread.join(5)
    assert len(cache) == 2


def test_bytes_kept_are_counted_through_any_traffic():
    """Breaks if evictions and additions drift apart until the bound means nothing."""
    cache, rng = EmbeddingCache(400), random.Random(0)
    for _ in range(300):
        size = rng.choice([1, 10, 50, 100, 101])
        cache.get_or_encode(f"{rng.randrange(12)}-{size}", lambda n=size: embedding(n))
        assert cache.num_bytes == sum(e.num_bytes for e in cache._entries.values()) <= 400
