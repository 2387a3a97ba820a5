"""Every loss against brute force in float64, and its gradient against finite differences."""

import itertools
import math

import pytest
import torch

from training import losses

D = torch.tensor([-3.0, -0.2, 0.0, 0.7, 5.0], dtype=torch.float64, requires_grad=True)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def davidson_total(d, nu):
    return nu + math.exp(d / 2) + math.exp(-d / 2)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.bradley_terry, lambda d: -math.log(sigmoid(d))),
        (lambda d: losses.bradley_terry(d, 0.4), lambda d: -math.log(sigmoid(d - 0.4))),
        (losses.half_win, lambda d: -0.5 * math.log(sigmoid(d)) - 0.5 * math.log(sigmoid(-d))),
        (lambda d: losses.rao_kupper_win(d, 0.3), lambda d: -math.log(math.exp(d) / (math.exp(d) + math.exp(0.3)))),
        (
            lambda d: losses.rao_kupper_tie(d, 0.3),
            lambda d: -math.log((math.exp(0.6) - 1) * sigmoid(d - 0.3) * sigmoid(-d - 0.3)),
        ),
        (lambda d: losses.davidson_win(d, 0.7), lambda d: -math.log(math.exp(d / 2) / davidson_total(d, 0.7))),
        (lambda d: losses.davidson_tie(d, 0.7), lambda d: -math.log(0.7 / davidson_total(d, 0.7))),
        (
            lambda d: losses.smoothed(losses.bradley_terry, d, 0.1),
            lambda d: -0.9 * math.log(sigmoid(d)) - 0.1 * math.log(sigmoid(-d)),
        ),
        (lambda d: losses.dpo(d, 0.1), lambda d: -math.log(sigmoid(0.1 * d))),
        (
            lambda d: losses.dpo(d, 0.5, 0.1),
            lambda d: -0.9 * math.log(sigmoid(0.5 * d)) - 0.1 * math.log(sigmoid(-0.5 * d)),
        ),
    ],
)
def test_pair_losses(loss, expected):
    found = loss(D)
    torch.testing.assert_close(found, torch.tensor([expected(float(d)) for d in D.detach()], dtype=torch.float64))
    assert torch.autograd.gradcheck(loss, (D,), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("tau", [0.01, 0.5, 2.0])
def test_rao_kupper_outcomes_sum_to_one(tau):
    win, lose, tie = losses.rao_kupper_win(D, tau), losses.rao_kupper_win(-D, tau), losses.rao_kupper_tie(D, tau)
    torch.testing.assert_close((-win).exp() + (-lose).exp() + (-tie).exp(), torch.ones_like(D))


def test_rao_kupper_without_threshold_is_bradley_terry():
    torch.testing.assert_close(losses.rao_kupper_win(D, 0.0), losses.bradley_terry(D))


@pytest.mark.parametrize("nu", [0.01, 1.0, 30.0])
def test_davidson_outcomes_sum_to_one_and_decided_ones_are_bradley_terry(nu):
    win, lose, tie = losses.davidson_win(D, nu), losses.davidson_win(-D, nu), losses.davidson_tie(D, nu)
    torch.testing.assert_close((-win).exp() + (-lose).exp() + (-tie).exp(), torch.ones_like(D))
    torch.testing.assert_close((-win).exp() / ((-win).exp() + (-lose).exp()), torch.sigmoid(D))


def test_davidson_without_ties_is_bradley_terry():
    torch.testing.assert_close(losses.davidson_win(D, 1e-12), losses.bradley_terry(D))


SCORE = torch.tensor([0.3, -1.2, 2.0, 0.5], dtype=torch.float64, requires_grad=True)


def ranked(ranks):
    """Alternatives (K, K) of a ranking: everything that is not ranked above."""
    ranks = torch.tensor(ranks)
    return ranks[None, :] >= ranks[:, None]


def test_plackett_luce_is_the_product_of_choices():
    # ranks 2, 4, 1, 3: the third is chosen first, then the first, then the last, then the second
    strength = SCORE.detach().exp()
    remaining, expected = [0, 1, 2, 3], 0.0
    for i in (2, 0, 3, 1):
        expected -= math.log(strength[i] / strength[remaining].sum())
        remaining.remove(i)
    assert float(losses.plackett_luce(SCORE.detach(), ranked([2, 4, 1, 3])).sum()) == pytest.approx(expected, rel=1e-12)
    loss = lambda score: losses.plackett_luce(score, ranked([2, 4, 1, 3]))  # noqa: E731
    assert torch.autograd.gradcheck(loss, (SCORE,), rtol=1e-6, atol=1e-8)


def test_plackett_luce_over_all_orders_sums_to_one():
    orders = itertools.permutations([1, 2, 3, 4])
    total = sum(float((-losses.plackett_luce(SCORE.detach(), ranked(order)).sum()).exp()) for order in orders)
    assert total == pytest.approx(1, rel=1e-12)


def test_plackett_luce_of_two_is_bradley_terry():
    found = losses.plackett_luce(SCORE[:2], ranked([1, 2])).sum()
    torch.testing.assert_close(found, losses.bradley_terry(SCORE[0] - SCORE[1]))


def test_calibration_error_of_a_known_case():
    # four comparisons at P = σ(ln 9) = 0.9, three of them right: |0.9 - 0.75|
    difference = torch.tensor([1.0, 1.0, 1.0, -1.0]) * math.log(9)
    assert losses.calibration_error(difference) == pytest.approx(0.15, abs=1e-6)
