import numpy as np

from training.guards import SpikeDetector


def test_a_spike_is_found_and_told_with_its_figures() -> None:
    detector = SpikeDetector()
    losses = [5.0 + 0.01 * (i % 3) for i in range(20)]
    assert [detector.check(x) for x in losses] == [None] * 20
    assert detector.check(7.0) == "a loss of 7.0000 after a median of 5.0100 (+-0.0100)"
    assert detector.check(5.0) is None


def test_training_as_it_is_has_no_spikes() -> None:
    """A steep beginning, then noise of a hundredth: 100 runs, 200 records each, none told."""
    for seed in range(100):
        noise = np.random.default_rng(seed).normal(0, 0.05, 200)
        losses = 5 + 5 * np.exp(-np.arange(200) / 10) + noise
        detector = SpikeDetector()
        assert [i for i, x in enumerate(losses) if detector.check(float(x))] == []


def test_a_loss_that_stays_high_is_not_told_for_ever() -> None:
    detector = SpikeDetector()
    for _ in range(20):
        detector.check(5.0)
    assert sum(detector.check(8.0) is not None for _ in range(50)) == 10  # half the window


def test_what_is_not_finite_is_told_elsewhere_and_forgotten() -> None:
    detector = SpikeDetector()
    for _ in range(10):
        detector.check(5.0)
    assert [detector.check(x) for x in (None, float("nan"), float("inf"), 5.0)] == [None] * 4
