"""Advantages and PPO's losses, against brute force."""

import pytest
import torch

from training import policy_gradient


def test_gae_is_the_double_sum():
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(3, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths, gamma, lam = [6, 4, 1], 0.9, 0.8
    mask = torch.tensor([[float(t < n) for t in range(6)] for n in lengths], dtype=torch.float64)
    advantages, returns = policy_gradient.gae(rewards, values, mask, gamma, lam)
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
    advantages, returns = policy_gradient.gae(rewards, values, torch.ones(2, 5), 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)
    torch.testing.assert_close(advantages, to_go - values)


def test_whitening_looks_at_the_mask_only():
    x = torch.tensor([[1.0, 2.0, 999.0], [3.0, 6.0, -999.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = policy_gradient.whiten(x, mask)
    inside = found[mask.bool()]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-6)
    assert float(inside.std()) == pytest.approx(1, abs=1e-5)
    assert (found[~mask.bool()] == 0).all()


def test_score_lands_on_the_last_token_and_kl_on_each():
    kl = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.4, 0.5]])
    found = policy_gradient.kl_shaped_rewards(torch.tensor([2.0, -1.0]), kl, torch.tensor([2, 3]), beta=0.5)
    torch.testing.assert_close(found, torch.tensor([[-0.05, 1.9, 0.0], [-0.15, -0.2, -1.25]]))


def test_ppo_policy_loss_by_cases():
    # ratio, advantage -> loss: min(ρÂ, clip(ρ)Â), negated, with ε = 0.2
    cases = [(1.0, 2.0, -2.0), (1.5, 2.0, -2.4), (0.5, 2.0, -1.0), (1.5, -2.0, 3.0), (0.5, -2.0, 1.6)]
    ratio, advantage, expected = (torch.tensor(column) for column in zip(*cases, strict=True))
    torch.testing.assert_close(policy_gradient.ppo_policy(ratio, advantage, 0.2), expected)


def test_ppo_value_loss_by_cases():
    # value, old value, return -> ½ max of the plain and the clipped square, with a clip range of 0.2
    cases = [(1.0, 1.0, 3.0, 2.0), (2.0, 1.0, 3.0, 0.5 * 1.8**2), (0.0, 1.0, 3.0, 4.5)]
    value, old, returns, expected = (torch.tensor(column) for column in zip(*cases, strict=True))
    torch.testing.assert_close(policy_gradient.ppo_value(value, old, returns, 0.2), expected)
    torch.testing.assert_close(policy_gradient.ppo_value(value, old, returns, 0.0), 0.5 * (value - returns) ** 2)


def test_k3_is_the_kl_on_average_and_never_negative():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    estimate = policy_gradient.k3((p / q).log())
    assert (estimate >= 0).all()
    assert float((p * estimate).sum()) == pytest.approx(float((p * (p / q).log()).sum()))
