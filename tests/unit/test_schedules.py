"""Learning rates over a stage."""

import pytest

from imis_net.training.schedules import Cosine, WarmUpByEpoch, constant


def test_cosine_warms_up_and_falls():
    """Breaks if the first steps are at full rate or the last ones are."""
    rate = Cosine(100)
    assert rate(1, 0.0) == pytest.approx(0.01)
    assert rate(1000, 0.5) == pytest.approx(0.51)
    assert rate(2000, 1.0) == pytest.approx(0.02)
    assert constant(7, 0.3) == 1.0


def test_warm_up_rises_once_an_epoch():
    """Breaks if the rate moves within an epoch, or does not reach its peak after five."""
    rate = WarmUpByEpoch(num_epochs=20)
    by_epoch = [rate(0, (epoch + 0.5) / 20) for epoch in range(8)]
    assert by_epoch == pytest.approx([0.1, 0.28, 0.46, 0.64, 0.82, 1.0, 1.0, 1.0])
    assert rate(0, 1 / 20) == pytest.approx(0.1), "an epoch's last step belongs to it"
