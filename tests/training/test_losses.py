"""Every loss against brute force in float64, and its gradient against finite differences."""

import itertools
import math

import pytest
import torch

from training import losses

D = torch.tensor([-3.0, -0.2, 0.0, 0.7, 5.0], dtype=torch.float64, requires_grad=True)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (losses.bradley_terry, lambda d: -math.log(sigmoid(d))),
        (lambda d: losses.bradley_terry(d, 0.4), lambda d: -math.log(sigmoid(d - 0.4))),
        (losses.half_win, lambda d: -0.5 * math.log(sigmoid(d)) - 0.5 * math.log(sigmoid(-d))),
        (lambda d: losses.rao_kupper_win(d, 0.3), lambda d: -math.log(math.exp(d) / (math.exp(d) + math.exp(0.3)))),
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


def test_gae_is_the_double_sum():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths, gamma, lam = [6, 4, 1], 0.9, 0.8
    mask = torch.tensor([[float(t < n) for t in range(6)] for n in lengths], dtype=torch.float64)
    advantages, returns = losses.gae(rewards, values, mask, gamma, lam)
    for row, n in enumerate(lengths):
        for t in range(n):
            expected = 0.0
            for step in range(n - t):
                following = float(values[row, t + step + 1]) if t + step + 1 < n else 0.0
                delta = float(rewards[row, t + step]) + gamma * following - float(values[row, t + step])
                expected += (gamma * lam) ** step * delta
            assert advantages[row, t] == pytest.approx(expected, rel=1e-9)
            assert returns[row, t] == pytest.approx(expected + float(values[row, t]), rel=1e-9)
    assert (advantages * (1 - mask)).abs().sum() == 0


def test_gae_with_lambda_one_is_rewards_to_go_minus_the_baseline():
    rewards, values = torch.rand(2, 5), torch.rand(2, 5)
    advantages, returns = losses.gae(rewards, values, torch.ones(2, 5), 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


def test_whitening_looks_at_the_mask_only():
    x = torch.tensor([[1.0, 2.0, 999.0], [3.0, 6.0, -999.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = losses.whiten(x, mask)
    inside = found[mask.bool()]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-6)
    assert float(inside.std()) == pytest.approx(1, abs=1e-5)
    assert (found[~mask.bool()] == 0).all()


def test_score_lands_on_the_last_token_and_kl_on_each():
    kl = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.4, 0.5]])
    found = losses.kl_shaped_rewards(torch.tensor([2.0, -1.0]), kl, torch.tensor([2, 3]), beta=0.5)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 1.9, 0.0], [-0.15, -0.2, -1.25]]))


def test_ppo_policy_loss_by_cases():
    # ratio, advantage -> loss: min(ρÂ, clip(ρ)Â), negated, with ε = 0.2
    cases = [(1.0, 2.0, -2.0), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6)]
    ratio, advantage, expected = (torch.tensor(column) for column in zip(*cases, strict=True))
    torch.testing.assert_close(losses.ppo_policy(ratio, advantage, 0.2), expected)


def test_ppo_value_loss_by_cases():
    # value, old value, return -> ½ max of the plain and the clipped square, with a clip range of 0.2
    cases = [(1.0, 1.0, 3.0, 2.0), (2.0, 1.0, 3.0, 0.5 * 1.8**2), (0.0, 1.0, 3.0, 4.5)]
    value, old, returns, expected = (torch.tensor(column) for column in zip(*cases, strict=True))
    torch.testing.assert_close(losses.ppo_value(value, old, returns, 0.2), expected)
    torch.testing.assert_close(losses.ppo_value(value, old, returns, 0.0), 0.5 * (value - returns) ** 2)


def test_k3_is_the_kl_on_average_and_never_negative():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    estimate = losses.k3((p / q).log())
    assert (estimate >= 0).all()
    assert float((p * estimate).sum()) == pytest.approx(float((p * (p / q).log()).sum()))


def test_calibration_error_of_a_known_case():
    # four comparisons at P = σ(ln 9) = 0.9, three of them right: |0.9 - 0.75|
    difference = torch.tensor([1.0, 1.0, 1.0, -1.0]) * math.log(9)
    assert losses.calibration_error(difference) == pytest.approx(0.15, abs=1e-6)


@pytest.mark.parametrize(("entropy", "temperature", "chunk"), itertools.product([False, True], [1.0, 0.7], [2, 256]))
def test_token_log_probs_and_their_gradient(entropy, temperature, chunk):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 4, generator=generator, requires_grad=True)
    weight = torch.randn(11, 4, generator=generator)
    targets = torch.tensor([0, 10, 3, 3, 7])

    def plain(h):
        log_probs = torch.log_softmax(h @ weight.t() / temperature, -1)
        entropies = -(log_probs.exp() * log_probs).sum(-1) if entropy else torch.zeros(5)
        return log_probs.gather(1, targets[:, None]).squeeze(1), entropies

    ours = losses.TokenLogProbs.apply(hidden, weight, None, targets, temperature, entropy, chunk)
    mix = torch.randn(2, 5, generator=generator)
    grads = []
    for found in (ours, plain(hidden)):
        total = (mix[0] * found[0]).sum() + (mix[1] * found[1]).sum()
        grads.append(torch.autograd.grad(total, hidden)[0])
    for a, b in zip(ours, plain(hidden), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
