"""Chunked log-probabilities, against the plain ones."""

import itertools

import pytest
import torch

from training.log_probs import TokenLogProbs


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

    ours = TokenLogProbs.apply(hidden, weight, None, targets, temperature, entropy, chunk)
    mix = torch.randn(2, 5, generator=generator)
    grads = []
    for found in (ours, plain(hidden)):
        total = (mix[0] * found[0]).sum() + (mix[1] * found[1]).sum()
        grads.append(torch.autograd.grad(total, hidden)[0])
    for a, b in zip(ours, plain(hidden), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
