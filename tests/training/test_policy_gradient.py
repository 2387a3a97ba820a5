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


# -- against finite differences, in float64 ----------------------------------------------------------------------------


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LOSSES = {
    "clip": lambda x: policy_gradient.ppo_policy(x.exp(), numbers(40, seed=1), 0.2),
    "dual clip": lambda x: policy_gradient.ppo_policy(x.exp(), numbers(40, seed=1), 0.2, dual_clip=1.5),
    "importance": lambda x: policy_gradient.importance(x.exp(), numbers(40, seed=1)),
    "reinforce": lambda x: policy_gradient.reinforce(x, numbers(40, seed=1)),
    "value": lambda x: policy_gradient.ppo_value(x, numbers(40, seed=1), numbers(40, seed=2), 0.0),
    "clipped value": lambda x: policy_gradient.ppo_value(x, numbers(40, seed=1), numbers(40, seed=2), 0.3),
    "k3 in the loss": lambda x: policy_gradient.kl_loss(x, (x - numbers(40, seed=1)).exp(), "k3"),
    "k1": lambda x: policy_gradient.kl_estimate(x, "k1"),
    "k2": lambda x: policy_gradient.kl_estimate(x, "k2"),
    "k3": lambda x: policy_gradient.kl_estimate(x, "k3"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_differences(name):
    loss, x, h = LOSSES[name], numbers(40).requires_grad_(), 1e-6
    (gradient,) = torch.autograd.grad(loss(x).sum(), x)
    with torch.no_grad():
        differences = (loss(x + h) - loss(x - h)) / (2 * h)
    torch.testing.assert_close(gradient, differences, rtol=1e-6, atol=1e-8)


def test_gae_has_the_gradient_of_finite_differences():
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    weight, rewards, values = numbers(2, 4, seed=1), numbers(2, 4, seed=2), numbers(2, 4)

    def total(v: torch.Tensor) -> torch.Tensor:
        return (policy_gradient.gae(rewards, v, mask, 0.9, 0.7)[0] * weight).sum()

    torch.autograd.gradcheck(total, (values.requires_grad_(),), rtol=1e-6, atol=1e-8)


# -- the KL ------------------------------------------------------------------------------------------------------------


def test_the_estimators_by_hand():
    # l = log 2: k1 = log 2, k2 = log² 2 / 2, k3 = 1/2 - 1 + log 2
    l = torch.tensor(2.0, dtype=torch.float64).log()  # noqa: E741
    assert float(policy_gradient.kl_estimate(l, "k1")) == pytest.approx(0.693147, abs=1e-6)
    assert float(policy_gradient.kl_estimate(l, "k2")) == pytest.approx(0.240227, abs=1e-6)
    assert float(policy_gradient.kl_estimate(l, "k3")) == pytest.approx(0.193147, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
@pytest.mark.parametrize("off_policy", [False, True])
def test_the_kl_loss_has_the_gradient_of_the_kl(estimator, off_policy):
    """Expected over a vocabulary of six under π_old, in float64; with π_old = π and with another π_old."""
    logits, reference = numbers(6).requires_grad_(), numbers(6, seed=1).log_softmax(0)
    log_p = logits.log_softmax(0)
    old = (numbers(6, seed=2).log_softmax(0) if off_policy else log_p).detach()
    loss = (old.exp() * policy_gradient.kl_loss(log_p - reference, (log_p - old).exp(), estimator)).sum()
    kl = (log_p.exp() * (log_p - reference)).sum()
    found, expected = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, kl))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_k1_as_a_loss_would_have_no_gradient_and_is_refused():
    logits, reference = numbers(6).requires_grad_(), numbers(6, seed=1).log_softmax(0)
    log_p = logits.log_softmax(0)
    (gradient,) = torch.autograd.grad((log_p.detach().exp() * (log_p - reference)).sum(), logits)
    torch.testing.assert_close(gradient, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="k1"):
        policy_gradient.kl_loss(log_p - reference, torch.ones(6), "k1")


def test_beta_rises_above_the_target_and_falls_below_it():
    adapt = policy_gradient.adapt_beta
    assert adapt(0.1, kl=6.3, target=6.0, episodes=16, horizon=160) == pytest.approx(0.1 * (1 + 0.05 * 0.1))
    assert adapt(0.1, kl=60.0, target=6.0, episodes=16, horizon=160) == pytest.approx(0.1 * 1.02), "clipped at 0.2"
    assert adapt(0.1, kl=-1.0, target=6.0, episodes=16, horizon=160) == pytest.approx(0.1 * 0.98)


def test_a_reward_along_the_way_stays_where_it_came():
    rewards = torch.tensor([[1.0, 2.0, 3.0]])
    found = policy_gradient.kl_shaped_rewards(rewards, torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([3]), beta=10)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.0]]))


# -- advantages --------------------------------------------------------------------------------------------------------


def test_rewards_to_go_are_discounted_sums():
    rewards, lengths, gamma = numbers(3, 6), [6, 4, 1], 0.9
    mask = torch.tensor([[float(t < n) for t in range(6)] for n in lengths], dtype=torch.float64)
    found = policy_gradient.rewards_to_go(rewards, mask, gamma)
    for row, n in enumerate(lengths):
        for t in range(6):
            expected = sum(gamma ** (s - t) * float(rewards[row, s]) for s in range(t, n))
            assert float(found[row, t]) == pytest.approx(expected, rel=1e-9)


def test_group_baselines_by_hand():
    returns = torch.tensor([[1.0, 2.0, 6.0], [4.0, 4.0, 4.0]])
    # the others' means are 4, 3.5 and 1.5; the group's mean is 3 and its deviation √((4 + 1 + 9) / 2) = √7
    torch.testing.assert_close(
        policy_gradient.leave_one_out(returns), torch.tensor([[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]])
    )
    expected = torch.tensor([[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]) / (7**0.5 + 1e-4)
    torch.testing.assert_close(policy_gradient.group_normalised(returns), expected)


def test_dual_clip_bounds_the_loss_of_a_bad_token():
    ratio, advantage = torch.tensor([10.0, 10.0, 1.1]), torch.tensor([-2.0, 2.0, -2.0])
    # plain: 20, -2.4, 2.2; with c = 3 the first is 3 · 2
    torch.testing.assert_close(policy_gradient.ppo_policy(ratio, advantage, 0.2), torch.tensor([20.0, -2.4, 2.2]))
    torch.testing.assert_close(
        policy_gradient.ppo_policy(ratio, advantage, 0.2, dual_clip=3.0), torch.tensor([6.0, -2.4, 2.2])
    )


def test_where_the_value_is_clipped_it_has_no_gradient():
    values, old, returns = (numbers(200, seed=s) for s in range(3))
    values.requires_grad_()
    (gradient,) = torch.autograd.grad(policy_gradient.ppo_value(values, old, returns, 0.3).sum(), values)
    stuck = policy_gradient.value_clipped(values, old, returns, 0.3)
    assert 0 < int(stuck.sum()) < 200
    assert (gradient[stuck] == 0).all()
    assert (gradient[~stuck] != 0).all()


def test_a_value_within_the_range_is_never_counted_as_clipped():
    """old + (V - old) is not V to the last bit."""
    old, values = (0.1 * numbers(1000, seed=seed).clamp(-1, 1) for seed in (0, 1))
    assert (old + (values - old) != values).any()
    assert not policy_gradient.value_clipped(values, old, torch.zeros(1000), 0.2).any()
