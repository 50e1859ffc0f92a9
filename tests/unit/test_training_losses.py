"""Losses and metrics on numbers worked by hand.

.venv/bin/pytest tests/unit/test_training_losses.py
"""

from __future__ import annotations

import pytest
import torch

from attune_training.losses import (
    DynamicWeighting,
    ValenceSmoothing,
    arousal_dominance_loss,
    dynamic_weights,
    smooth_mse,
    smoothed_target,
)
from attune_training.metrics import agreement

WIDE = DynamicWeighting(minimum=0.0, maximum=1.0)


def column(*values):
    return torch.tensor(values).unsqueeze(1)


def test_targets_are_smoothed_towards_neutral():
    """Equation 15 with epsilon = .1: 5 -> 4.8, 3 stays, 1 -> 1.2."""
    smoothed = smoothed_target(column(5.0, 3.0, 1.0), ValenceSmoothing(epsilon=0.1))
    torch.testing.assert_close(smoothed, column(4.8, 3.0, 1.2))


def test_smooth_mse_is_the_squared_distance_to_the_smoothed_target():
    """Equation 14: (4.8 - 4.5)^2 and (1.2 - 1)^2, the second counted twice: (.09 + 2 * .04) / 2."""
    loss = smooth_mse(column(4.5, 1.0), column(5.0, 1.0), column(1.0, 2.0), ValenceSmoothing(epsilon=0.1))
    assert loss.item() == pytest.approx(0.085, abs=1e-6)


def test_weights_are_shares_of_the_loss():
    """Equations 17-18: losses .4 and .5 (no lag at beta 1.5) give 4/9 and 5/9."""
    weights = dynamic_weights(torch.tensor(0.4), torch.tensor(0.5), WIDE)
    assert [weight.item() for weight in weights] == pytest.approx([4 / 9, 5 / 9])


def test_lagging_dominance_is_lifted_then_normalised():
    """Losses .25 and .75 lag: .75 * 1.2 = .9 and .25 * .8 = .2, over 1.1."""
    weights = dynamic_weights(torch.tensor(0.25), torch.tensor(0.75), WIDE)
    assert [weight.item() for weight in weights] == pytest.approx([0.2 / 1.1, 0.9 / 1.1])


def test_weights_are_clipped():
    weights = dynamic_weights(torch.tensor(0.01), torch.tensor(0.99), DynamicWeighting())
    assert [weight.item() for weight in weights] == pytest.approx([0.3, 0.7])


def test_weights_of_a_perfect_prediction_are_finite():
    weights = dynamic_weights(torch.tensor(0.0), torch.tensor(0.0), DynamicWeighting())
    assert all(weight.isfinite() for weight in weights)


def test_combined_huber_loss():
    """Equations 16 and 19 with delta 1.

    Arousal errors .5 and 2: (.125 + 1.5) / 2 = .8125. Dominance errors 1 and 0: .25.
    Weights .8125 / 1.0625 and .25 / 1.0625: (.8125^2 + .25^2) / 1.0625.
    """
    predicted = torch.tensor([[3.5, 4.0], [1.0, 2.0]])
    target = torch.tensor([[3.0, 3.0], [3.0, 2.0]])
    loss = arousal_dominance_loss(predicted, target, column(1.0, 1.0), WIDE)
    assert loss.item() == pytest.approx((0.8125**2 + 0.25**2) / 1.0625)


def test_no_gradient_flows_through_the_weights():
    predicted = torch.tensor([[3.5, 3.5]], requires_grad=True)
    arousal_dominance_loss(predicted, torch.tensor([[3.0, 3.0]]), column(1.0), WIDE).backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[0.25, 0.25]]))


def test_agreement_on_worked_numbers():
    """x = 1, 2, 3 and y = 2, 4, 6: r = 1; CCC = 2 (4/3) / (2/3 + 8/3 + 4) = 4/11; RMSE = sqrt(14/3)."""
    result = agreement([1, 2, 3], [2, 4, 6])
    assert (result.pcc, result.ccc, result.rmse) == pytest.approx((1.0, 4 / 11, (14 / 3) ** 0.5))
    assert result.count == 3


def test_agreement_of_a_constant_is_zero():
    assert agreement([3, 3], [1, 5]).pcc == 0.0
    assert agreement([3, 3], [3, 3]).ccc == 0.0


@pytest.mark.parametrize(("predicted", "target"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_agreement_wants_two_equally_long_vectors(predicted, target):
    with pytest.raises(ValueError, match="two equally long vectors"):
        agreement(predicted, target)
