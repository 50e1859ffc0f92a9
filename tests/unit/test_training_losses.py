"""Losses on numbers worked by hand, and agreement.

.venv/bin/pytest tests/unit/test_training_losses.py
"""

from __future__ import annotations

import pytest
import torch

from attune_training.metrics import agreement
from attune_training.models.losses import (
    AgreementLoss,
    DynamicWeighting,
    ValenceSmoothing,
    agreement_loss,
    arousal_dominance_loss,
    combined_loss,
    dynamic_weights,
    huber_loss,
    lifted_weights,
    loss_shares,
    smooth_mse,
    smoothed_target,
)

WIDE = DynamicWeighting(minimum=0.0, maximum=1.0)
NARROW = DynamicWeighting(minimum=0.3, maximum=0.7)


def column(*values):
    return torch.tensor(values).unsqueeze(1)


def numbers(tensors):
    return [tensor.item() for tensor in tensors]


def two(arousal, dominance):
    return torch.tensor(arousal), torch.tensor(dominance)


def test_targets_are_smoothed_towards_neutral():
    """Equation 15, epsilon .1: 5 * .9 + .3 = 4.8; 3 * .9 + .3 = 3; 1 * .9 + .3 = 1.2."""
    smoothed = smoothed_target(column(5.0, 3.0, 1.0), ValenceSmoothing(epsilon=0.1))
    torch.testing.assert_close(smoothed, column(4.8, 3.0, 1.2))


def test_another_neutral_point():
    """Equation 15, epsilon .5 and neutral 0: 4 * .5 + 0 = 2."""
    assert smoothed_target(torch.tensor(4.0), ValenceSmoothing(epsilon=0.5, neutral=0.0)).item() == 2.0


def test_smooth_mse_is_the_squared_distance_to_the_smoothed_target():
    """Equation 14: (4.8 - 4.5)^2 = .09 and (1.2 - 1)^2 = .04, the second counted twice: (.09 + .08) / 2 = .085."""
    loss = smooth_mse(column(4.5, 1.0), column(5.0, 1.0), column(1.0, 2.0), ValenceSmoothing(epsilon=0.1))
    assert loss.item() == pytest.approx(0.085, abs=1e-6)


def test_smoothing_with_epsilon_zero_is_plain_mse():
    """Errors .5, -1 and 2: (.25 + 1 + 4) / 3 = 1.75."""
    predicted, target = column(4.5, 1.0, 4.0), column(4.0, 2.0, 2.0)
    loss = smooth_mse(predicted, target, torch.ones(3, 1), ValenceSmoothing(epsilon=0.0))
    assert loss.item() == pytest.approx(1.75)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(predicted, target))


@pytest.mark.parametrize(
    ("error", "delta", "expected"),
    [
        (0.5, 1.0, 0.125),  # .5 * .25, inside
        (-1.0, 1.0, 0.5),  # .5 * 1, on the edge, where both branches agree: 1 * 1 - .5
        (2.0, 1.0, 1.5),  # 1 * 2 - .5 * 1, outside
        (-3.0, 0.5, 1.375),  # .5 * 3 - .5 * .25, outside
        (0.4, 0.5, 0.08),  # .5 * .16, inside
    ],
)
def test_both_branches_of_the_huber_loss(error, delta, expected):
    """Equation 16."""
    assert huber_loss(torch.tensor([3.0 + error]), torch.tensor([3.0]), delta).item() == pytest.approx(expected)


def test_weights_are_alpha_times_the_shares_of_the_loss():
    """Equations 17 and 18, alpha 2: 2 * .4 / .9 = .8889 and 2 * .5 / .9 = 1.1111."""
    assert numbers(loss_shares(*two(0.4, 0.5), alpha=2.0)) == pytest.approx([0.888889, 1.111111], abs=1e-6)


def test_the_rule_lifts_dominance_where_it_lags():
    """.75 > 1.5 * .25 = .375: .25 * .8 = .2 and .75 * 1.2 = .9."""
    losses = two(0.25, 0.75)
    assert numbers(lifted_weights(losses, losses, WIDE)) == pytest.approx([0.2, 0.9])


@pytest.mark.parametrize("dominance", [0.375, 0.3, 0.1])
def test_the_rule_leaves_weights_alone_up_to_beta_times_arousal(dominance):
    """Beta 1.5 and arousal .25: up to 1.5 * .25 = .375, the bound itself included, nothing changes."""
    assert numbers(lifted_weights(two(0.6, 0.4), two(0.25, dominance), WIDE)) == pytest.approx([0.6, 0.4])


def test_weights_are_normalised_after_the_rule():
    """Losses .25 and .75 share .25 and .75; lifted .2 and .9; over 1.1: .181818 and .818182."""
    assert numbers(dynamic_weights(*two(0.25, 0.75), WIDE)) == pytest.approx([0.181818, 0.818182], abs=1e-6)


def test_weights_without_the_rule_are_the_shares_whatever_alpha_is():
    """Losses .4 and .5, no lag: 4/9 and 5/9; normalising divides alpha out."""
    settings = DynamicWeighting(alpha=7.0, minimum=0.0, maximum=1.0)
    assert numbers(dynamic_weights(*two(0.4, 0.5), settings)) == pytest.approx([0.444444, 0.555556], abs=1e-6)


def test_weights_are_clipped_at_both_ends():
    """Losses .01 and .99: .008 and 1.188 after the rule, .0067 and .9933 normalised, so .3 and .7; and mirrored."""
    assert numbers(dynamic_weights(*two(0.01, 0.99), NARROW)) == pytest.approx([0.3, 0.7])
    assert numbers(dynamic_weights(*two(0.99, 0.01), NARROW)) == pytest.approx([0.7, 0.3])


def test_clipping_comes_last_so_clipped_weights_need_not_sum_to_one():
    """Losses .2 and .8 at bounds .4 and 1: .16 and .96 over 1.12 are .142857 and .857143; the first is cut to .4."""
    settings = DynamicWeighting(minimum=0.4, maximum=1.0)
    assert numbers(dynamic_weights(*two(0.2, 0.8), settings)) == pytest.approx([0.4, 0.857143], abs=1e-6)


def test_weights_of_a_perfect_prediction_are_the_lower_bound():
    assert numbers(dynamic_weights(*two(0.0, 0.0), NARROW)) == pytest.approx([0.3, 0.3])


def test_the_combined_loss():
    """Equation 19: .25 * 2 + .75 * 4 = 3.5."""
    assert combined_loss(two(0.25, 0.75), two(2.0, 4.0)).item() == 3.5


def test_arousal_dominance_loss_from_predictions():
    """Equations 16 to 19, Huber delta 1, worked through.

    Arousal errors .5 and 2: (.125 + 1.5) / 2 = .8125. Dominance errors 1 and 0: (.5 + 0) / 2 = .25; no lag.
    Weights .8125 / 1.0625 = .764706 and .25 / 1.0625 = .235294: .764706 * .8125 + .235294 * .25 = .680147.
    """
    predicted = torch.tensor([[3.5, 4.0], [1.0, 2.0]])
    target = torch.tensor([[3.0, 3.0], [3.0, 2.0]])
    loss = arousal_dominance_loss(predicted, target, column(1.0, 1.0), WIDE)
    assert loss.item() == pytest.approx(0.680147, abs=1e-6)


def test_arousal_dominance_loss_where_dominance_lags_with_sample_weights():
    """Huber delta 1; the second sample counts three times.

    Arousal errors 1 and 0: (.5 + 3 * 0) / 2 = .25. Dominance errors 0 and 1: (0 + 3 * .5) / 2 = .75, over 1.5 * .25.
    Weights .2 / 1.1 and .9 / 1.1, clipped to .3 and .7: .3 * .25 + .7 * .75 = .6.
    """
    predicted = torch.tensor([[4.0, 3.0], [3.0, 2.0]])
    loss = arousal_dominance_loss(predicted, torch.full((2, 2), 3.0), column(1.0, 3.0), NARROW)
    assert loss.item() == pytest.approx(0.6)


def test_no_gradient_flows_through_the_weights():
    """Errors .5 and 1.5, delta 1: losses .125 and 1, lifted and clipped to .3 and .7; slopes .5 and 1 (Huber's)."""
    predicted = torch.tensor([[3.5, 4.5]], requires_grad=True)
    arousal_dominance_loss(predicted, torch.tensor([[3.0, 3.0]]), column(1.0), NARROW).backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[0.15, 0.7]]))
    for weight in dynamic_weights(predicted.sum(), predicted.sum(), WIDE):
        assert not weight.requires_grad


# Targets without a label

NAN = float("nan")


def test_a_missing_valence_adds_nothing_and_has_no_gradient():
    """Errors .5 and unknown, epsilon 0: (.25 + 0) / 2 = .125; slopes 2 * .5 / 2 = .5 and exactly 0."""
    predicted = column(4.5, 1.0).requires_grad_()
    loss = smooth_mse(predicted, column(4.0, NAN), torch.ones(2, 1), ValenceSmoothing(epsilon=0.0))
    assert loss.item() == pytest.approx(0.125)
    loss.backward()
    assert predicted.grad.tolist() == [[0.5], [0.0]]


def test_a_missing_dominance_adds_nothing_and_has_no_gradient():
    """Errors of arousal 1 and 1, of dominance unknown and 1; Huber delta 1.

    Arousal (.5 + .5) / 2 = .5, dominance (0 + .5) / 2 = .25. For each label both are .5, so both weights are .5, and
    dominance does not seem half as wrong for lacking a label: .5 * .5 + .5 * .25 = .375. Slopes .5 * 1 / 2 = .25.
    """
    predicted = torch.full((2, 2), 4.0, requires_grad=True)
    loss = arousal_dominance_loss(predicted, torch.tensor([[3.0, NAN], [3.0, 3.0]]), torch.ones(2, 1), WIDE)
    assert loss.item() == pytest.approx(0.375)
    loss.backward()
    torch.testing.assert_close(predicted.grad, torch.tensor([[0.25, 0.0], [0.25, 0.25]]))


def test_a_batch_without_any_dominance_trains_arousal_alone():
    """Arousal's error 1: .5, and it has all of the loss: its weight is cut to .7."""
    predicted = torch.full((3, 2), 4.0, requires_grad=True)
    loss = arousal_dominance_loss(predicted, torch.tensor([[3.0, NAN]] * 3), torch.ones(3, 1), NARROW)
    assert loss.item() == pytest.approx(0.35)
    loss.backward()
    assert predicted.grad[:, 1].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_batch_without_labels_has_a_loss_of_zero_and_no_gradient(outputs):
    predicted = torch.full((3, outputs), 4.0, requires_grad=True)
    target = torch.full((3, outputs), NAN)
    if outputs == 1:
        loss = smooth_mse(predicted, target, torch.ones(3, 1), ValenceSmoothing())
    else:
        loss = arousal_dominance_loss(predicted, target, torch.ones(3, 1), NARROW)
    assert loss.item() == 0.0
    loss.backward()
    assert not predicted.grad.any()


def test_agreement_leaves_out_what_has_no_label():
    assert agreement([1, 9, 2, 3], [2, NAN, 4, 6]) == agreement([1, 2, 3], [2, 4, 6])
    with pytest.raises(ValueError, match="with labels, got 1"):
        agreement([1, 2], [1, NAN])


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


ABSOLUTE, RELATIVE = torch.tensor([False]), torch.tensor([True])
ALL_AGREE = AgreementLoss(agreement=1.0, error=0.0, smallest=2)


def one_corpus(count):
    return torch.zeros(count, dtype=torch.long)


def test_agreement_loss_on_worked_numbers():
    """x = 1, 2, 3 and y = 2, 4, 6 (as above): CCC 4/11, so 7/11; as relative ratings r = 1, so nothing."""
    x, y, ones = column(1.0, 2.0, 3.0), column(2.0, 4.0, 6.0), torch.ones(3, 1)
    assert agreement_loss(x, y, ones, one_corpus(3), ABSOLUTE, ALL_AGREE).item() == pytest.approx(7 / 11, abs=1e-3)
    assert agreement_loss(x, y, ones, one_corpus(3), RELATIVE, ALL_AGREE).item() == pytest.approx(0.0, abs=1e-3)


def test_errors_count_beside_agreement_and_not_for_relative_ratings():
    """Errors 1, 2, 3 with Huber's delta 1: .5, 1.5, 2.5, mean 1.5; half of it .75."""
    x, y, ones = column(1.0, 2.0, 3.0), column(2.0, 4.0, 6.0), torch.ones(3, 1)
    errors = AgreementLoss(agreement=0.0, error=0.5)
    assert agreement_loss(x, y, ones, one_corpus(3), ABSOLUTE, errors).item() == pytest.approx(0.75)
    assert agreement_loss(x, y, ones, one_corpus(3), RELATIVE, errors).item() == 0.0


def test_agreement_is_asked_within_each_corpus():
    """Each corpus agrees perfectly with itself in order, the two together do not: their levels differ."""
    x, y = column(1.0, 2.0, 3.0, 1.0, 2.0, 3.0), column(1.0, 2.0, 3.0, 3.0, 4.0, 5.0)
    two_corpora = torch.tensor([0, 0, 0, 1, 1, 1])
    relative = torch.tensor([True, True])
    assert agreement_loss(x, y, torch.ones(6, 1), two_corpora, relative, ALL_AGREE).item() == pytest.approx(0, abs=1e-3)
    assert agreement_loss(x, y, torch.ones(6, 1), one_corpus(6), RELATIVE, ALL_AGREE).item() > 0.3


def test_agreement_leaves_missing_labels_and_small_corpora_out():
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]], requires_grad=True)
    y = column(2.0, 4.0, 6.0, NAN)
    loss = agreement_loss(x, y, torch.ones(4, 1), one_corpus(4), ABSOLUTE, ALL_AGREE)
    assert loss.item() == pytest.approx(3 / 4 * 7 / 11, abs=1e-3)
    loss.backward()
    assert x.grad[3].item() == 0.0
    assert x.grad[:3].abs().min() > 0
    few = AgreementLoss(error=0.0, smallest=4)
    assert agreement_loss(x, y, torch.ones(4, 1), one_corpus(4), ABSOLUTE, few).item() == 0.0


@pytest.mark.parametrize("relative", [ABSOLUTE, RELATIVE])
def test_agreement_of_constants_has_finite_gradients(relative):
    x = torch.full((4, 1), 3.0, requires_grad=True)
    agreement_loss(x, torch.full((4, 1), 2.0), torch.ones(4, 1), one_corpus(4), relative, ALL_AGREE).backward()
    assert torch.isfinite(x.grad).all()
