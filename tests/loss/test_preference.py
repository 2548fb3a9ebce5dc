"""The definition of the losses: hand-computed values, laws, and TRL's own code."""

import ast
import math
import re
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mipo.loss import implicit_rewards, preference_loss, sequence_logps, token_logps, token_statistics
from mipo.loss.preference import BATCH_LOSSES, LENGTH_LOSSES, LOSS_TYPES, check_losses

# Sums of a few fp64 terms, each exact to 1.1e-16.
FP64_RTOL = 1e-12
# Agreement with TRL in fp32, where one rounding is 6e-8.
TRL_RTOL = 1e-6
# TRL's entropy is the difference of two numbers as large as the logits, here up to 20, each rounded a few times.
TRL_ENTROPY_ATOL = 5e-6

finite = st.floats(-1e3, 1e3, allow_nan=False)
# No deadline: the first call of a torch function loads code, and the cores may be busy.
law = settings(deadline=None, max_examples=50)


def fp64(values: list[float] | list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def groups(draw: st.DrawFn, negatives: tuple[int, int] = (1, 5)) -> tuple[Tensor, Tensor, float]:
    """Log-probs and reference log-probs [G, K+1] in fp64, and a beta."""
    rows, columns = draw(st.integers(1, 4)), 1 + draw(st.integers(*negatives))
    values = st.lists(finite, min_size=rows * columns, max_size=rows * columns)
    logps, ref_logps = (torch.tensor(draw(values), dtype=torch.float64).view(rows, columns) for _ in range(2))
    return logps, ref_logps, draw(st.floats(0.01, 1.0))


def close(ours: Tensor, truth: Tensor, rtol: float = FP64_RTOL) -> None:
    torch.testing.assert_close(ours, truth, rtol=rtol, atol=rtol)


def random_groups(rows: int, columns: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    logps = 20 * torch.randn(rows, columns, dtype=dtype, generator=random) - 100
    return logps, logps + 10 * torch.randn(rows, columns, dtype=dtype, generator=random)


def test_a_pair_by_hand() -> None:
    # s = 0.5 (-10 + 12) = 1 and 0.5 (-20 + 16) = -2: loss = log(1 + e^-3).
    close(preference_loss(fp64([[-10, -20]]), fp64([[-12, -16]]), beta=0.5), fp64([0.04858735157374206]))


def test_three_negatives_by_hand() -> None:
    # s = (0, log 2, log 3, log 4): softmax(s)_0 = 1 / 10.
    logps = fp64([[1, 2, 3, 4]]).log()
    close(preference_loss(logps, torch.zeros_like(logps), beta=1.0), fp64([math.log(10)]))


@pytest.mark.parametrize("negatives", [1, 2, 7, 64])
def test_an_untrained_policy_pays_log_of_the_number_of_candidates(negatives: int) -> None:
    logps = torch.full((3, negatives + 1), -50.0, dtype=torch.float64)
    close(preference_loss(logps, logps), fp64([math.log(negatives + 1)] * 3))


def trl_sigmoid(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """TRL 1.16, dpo_trainer.py, loss_type="sigmoid", reverse_kl."""
    chosen_logratios, rejected_logratios = chosen - ref_chosen, rejected - ref_rejected
    return -functional.logsigmoid(beta * (chosen_logratios - rejected_logratios))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_negative_is_dpo_to_the_bit(dtype: torch.dtype) -> None:
    logps, ref_logps = random_groups(1000, 2, dtype)
    logps.requires_grad_()
    ours = preference_loss(logps, ref_logps)
    theirs = trl_sigmoid(*logps.unbind(1), *ref_logps.unbind(1), 0.1)
    assert torch.equal(ours, theirs)
    assert torch.equal(*(torch.autograd.grad(loss.mean(), logps)[0] for loss in (ours, theirs)))


@law
@given(groups(negatives=(1, 1)))
def test_one_negative_agrees_with_trl_in_fp32(group: tuple[Tensor, Tensor, float]) -> None:
    logps, ref_logps, beta = group
    logps, ref_logps = logps.float().requires_grad_(), ref_logps.float()
    ours = preference_loss(logps, ref_logps, beta=beta)
    theirs = trl_sigmoid(*logps.unbind(1), *ref_logps.unbind(1), beta)
    close(ours, theirs, TRL_RTOL)
    close(*(torch.autograd.grad(loss.mean(), logps)[0] for loss in (ours, theirs)), TRL_RTOL)


@law
@given(groups())
def test_it_is_the_cross_entropy_of_the_chosen_response(group: tuple[Tensor, Tensor, float]) -> None:
    logps, ref_logps, beta = group
    rewards = implicit_rewards(logps, ref_logps, beta=beta)
    truth = functional.cross_entropy(rewards, torch.zeros(len(logps), dtype=torch.int64), reduction="none")
    close(preference_loss(logps, ref_logps, beta=beta), truth)


@law
@given(groups())
def test_the_gradient_is_beta_times_softmax_minus_one_hot(group: tuple[Tensor, Tensor, float]) -> None:
    logps, ref_logps, beta = group
    logps.requires_grad_()
    (gradient,) = torch.autograd.grad(preference_loss(logps, ref_logps, beta=beta).mean(), logps)
    softmax = implicit_rewards(logps.detach(), ref_logps, beta=beta).softmax(1)
    close(gradient, beta * (softmax - torch.eye(1, logps.shape[1])) / len(logps))


@law
@given(groups(negatives=(1, 1)))
def test_swapping_chosen_and_rejected_negates_the_margin(group: tuple[Tensor, Tensor, float]) -> None:
    # -logsigmoid(-m) = m - logsigmoid(m), so the two losses differ by exactly the margin.
    logps, ref_logps, beta = group
    rewards = implicit_rewards(logps, ref_logps, beta=beta)
    margin = rewards[:, 0] - rewards[:, 1]
    swapped = preference_loss(logps.flip(1), ref_logps.flip(1), beta=beta)
    close(swapped - preference_loss(logps, ref_logps, beta=beta), margin)


@law
@given(groups(), st.randoms(use_true_random=False))
def test_the_order_of_the_negatives_does_not_matter(group: tuple[Tensor, Tensor, float], random) -> None:
    logps, ref_logps, beta = group
    order = list(range(1, logps.shape[1]))
    random.shuffle(order)
    permuted = preference_loss(logps[:, [0, *order]], ref_logps[:, [0, *order]], beta=beta)
    close(permuted, preference_loss(logps, ref_logps, beta=beta))


@law
@given(groups(), finite)
def test_a_constant_per_prompt_cancels(group: tuple[Tensor, Tensor, float], constant: float) -> None:
    logps, ref_logps, beta = group
    close(preference_loss(logps + constant, ref_logps, beta=beta), preference_loss(logps, ref_logps, beta=beta))


@law
@given(groups(negatives=(2, 5)), st.data())
def test_a_masked_group_is_the_smaller_problem(group: tuple[Tensor, Tensor, float], data: st.DataObject) -> None:
    logps, ref_logps, beta = group
    keep = data.draw(st.lists(st.booleans(), min_size=logps.shape[1] - 1, max_size=logps.shape[1] - 1).filter(any))
    mask = torch.tensor([True, *keep])
    # What stands where there is no response is ignored, NaN too, and gets no gradient.
    filled = torch.where(mask, logps, torch.nan).requires_grad_()
    small = logps[:, mask].requires_grad_()
    loss = preference_loss(filled, ref_logps, beta=beta, mask=mask.expand_as(logps))
    truth = preference_loss(small, ref_logps[:, mask], beta=beta)
    close(loss, truth)
    (gradient,), (true_gradient,) = torch.autograd.grad(loss.sum(), filled), torch.autograd.grad(truth.sum(), small)
    close(gradient[:, mask], true_gradient)
    assert not gradient[:, ~mask].any()


def test_groups_of_different_sizes_share_a_tensor() -> None:
    logps, ref_logps = random_groups(3, 4)
    mask = torch.tensor([[True, True, False, False], [True, False, True, True], [True, True, True, True]])
    loss = preference_loss(logps, ref_logps, mask=mask)
    for row, keep in enumerate(mask):
        close(loss[row : row + 1], preference_loss(logps[row : row + 1, keep], ref_logps[row : row + 1, keep]))


@pytest.mark.parametrize("negatives", [1, 4])
def test_gradcheck(negatives: int) -> None:
    logps, ref_logps = random_groups(3, negatives + 1)
    mask = torch.ones_like(logps, dtype=torch.bool)
    mask[0, 2:] = False
    assert torch.autograd.gradcheck(lambda x: preference_loss(x, ref_logps, mask=mask), logps.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
@pytest.mark.parametrize("sign", [-1, 1])
def test_rewards_of_ten_thousand_nats_stay_finite(dtype: torch.dtype, size: float, sign: int) -> None:
    logps = torch.tensor([[sign * size, -sign * size, 0.0], [0.0, sign * size, sign * size]], dtype=dtype)
    logps.requires_grad_()
    loss = preference_loss(logps, torch.zeros_like(logps), beta=1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
    close(gradient, logps.detach().softmax(1) - torch.eye(1, 3, dtype=dtype), TRL_RTOL)
    close(loss.detach(), -logps.detach().log_softmax(1)[:, 0], TRL_RTOL)


def test_large_rewards_keep_the_digits_of_the_gradient() -> None:
    # torch.logsumexp would lose four of them: its backward subtracts a rounded 1e4.
    rewards = torch.tensor([[0.0, 1e4, 1e4 + 1, 1e4 - 1]], requires_grad=True)
    (gradient,) = torch.autograd.grad(preference_loss(rewards, torch.zeros(1, 4), beta=1.0).sum(), rewards)
    close(gradient, rewards.detach().softmax(1) - torch.eye(1, 4), TRL_RTOL)


def test_a_small_loss_keeps_its_digits() -> None:
    # log(1 + e^-40) = 4.2e-18, which 1 - softmax(s)_0 cannot hold even in fp64.
    loss = preference_loss(torch.tensor([[40.0, 0.0]]), torch.zeros(1, 2), beta=1.0)
    torch.testing.assert_close(loss, torch.tensor([math.exp(-40)]), rtol=TRL_RTOL, atol=0)


def test_an_invalid_mask_off_the_cpu_would_be_nan() -> None:
    # torch.compile may not look at values either, so it takes the same way.
    logps, ref_logps = random_groups(3, 3)
    mask = torch.tensor([[False, True, True], [True, False, False], [True, True, False]])
    compiled = torch.compile(preference_loss, backend="eager", fullgraph=True)
    assert compiled(logps, ref_logps, mask=mask).isnan().tolist() == [True, True, False]


SMOOTHED = {"robust": 0.1, "exo_pair": 1e-3, "aot": 0.2, "aot_unpaired": 0.2}
pytest_types = pytest.mark.parametrize("name", LOSS_TYPES)


def options(name: str) -> dict[str, object]:
    """Arguments of `preference_loss` for two groups or more of the type, as its paper would have them."""
    return {"loss_type": name, "label_smoothing": SMOOTHED.get(name, 0.0)}


def trl_loss(tokens: Tensor, lengths: Tensor, ref_logps: Tensor, **options: object) -> Tensor:
    """TRL's `DPOTrainer._compute_loss` itself, of a model that gives these log-probs.

    tokens: [2, G, L], log-probs of the chosen and the rejected responses' tokens, 0 in the padding; lengths and
    ref_logps: [G, 2]. The first position of a row is its prompt.
    """
    trainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    rows = tokens.flatten(0, 1)
    nothing = torch.zeros_like(rows)
    outputs = SimpleNamespace(log_probs=rows, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    mask = (torch.arange(rows.shape[1]) < lengths.T.reshape(-1, 1)).long()
    mask = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
    gather = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    names = options.get("loss_type", "sigmoid")
    names = [names] if isinstance(names, str) else names
    settings = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=gather,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        beta=options.get("beta", 0.1),
        loss_types=names,
        loss_weights=options.get("loss_weights") or [1.0] * len(names),
        label_smoothing=options.get("label_smoothing", 0.0),
        args=SimpleNamespace(discopop_tau=options.get("discopop_tau", 0.05)),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    references = dict(zip(("ref_chosen_logps", "ref_rejected_logps"), ref_logps.unbind(1), strict=True))
    before = torch.get_default_dtype()
    # TRL makes a tensor of its label smoothing in the default dtype.
    torch.set_default_dtype(tokens.dtype)
    try:
        return trainer._compute_loss(settings, lambda **_: outputs, inputs | references, return_outputs=False)
    finally:
        torch.set_default_dtype(before)


def random_responses(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Arguments of `trl_loss`: ten pairs of one to twelve tokens, their margins from -4 to 4 at beta 0.1 or so."""
    random = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 13, (10, 2), generator=random)
    tokens = -torch.randn(2, 10, 12, dtype=dtype, generator=random).exp()
    tokens = tokens.masked_fill(torch.arange(12) >= lengths.T[..., None], 0)
    noise = 20 * torch.randn(10, 2, dtype=dtype, generator=random)
    return tokens, lengths, tokens.sum(-1).T + noise


def compare_with_trl(dtype: torch.dtype, **options: object) -> None:
    tokens, lengths, ref_logps = random_responses(dtype)
    tokens.requires_grad_()
    theirs = trl_loss(tokens, lengths, ref_logps, **options)
    ours = preference_loss(tokens.sum(-1).T, ref_logps, lengths=lengths, **options)
    assert ours.shape == (10,)
    rtol = TRL_RTOL if dtype == torch.float32 else FP64_RTOL
    close(ours.mean(), theirs, rtol)
    # Padding has no part in the sum of a response, but TRL's loss knows it as a leaf of zeros.
    inside = torch.arange(12) < lengths.T[..., None]
    close(*(torch.autograd.grad(loss, tokens)[0][inside] for loss in (ours.mean(), theirs)), rtol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [0.05, 1.0])
@pytest_types
def test_every_type_is_trls(name: str, beta: float, dtype: torch.dtype) -> None:
    compare_with_trl(dtype, beta=beta, **options(name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "case",
    [
        {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        {"loss_type": ["aot", "robust", "exo_pair"], "label_smoothing": 0.3, "loss_weights": [2.0, -0.5, 0.0]},
        {"loss_type": ["hinge", "ipo"]},
        {"loss_type": "apo_down", "loss_weights": [3.0]},
        {"loss_type": "discopop", "discopop_tau": 0.7},
        {"loss_type": "aot"},
        {"loss_type": "robust"},
    ],
)
def test_weighted_sums_and_options_are_trls(case: dict[str, object], dtype: torch.dtype) -> None:
    compare_with_trl(dtype, **case)


def test_the_names_are_trls() -> None:
    with pytest.raises(ValueError, match="Unknown loss type") as caught:
        trl_loss(*random_responses(torch.float64), loss_type="nonsense")
    assert sorted(ast.literal_eval(re.search(r"\[.*\]", str(caught.value))[0])) == sorted(LOSS_TYPES)


@pytest_types
def test_gradcheck_of_every_type(name: str) -> None:
    logps, ref_logps = random_groups(4, 2)
    lengths = torch.tensor([[3, 5], [4, 2], [7, 7], [1, 9]])
    # A tau at which discopop's mixture is not saturated and its slope shows.
    case = options(name) | {"lengths": lengths, "discopop_tau": 0.8}
    assert torch.autograd.gradcheck(lambda x: preference_loss(x, ref_logps, **case), logps.requires_grad_())


@pytest_types
def test_one_type_of_weight_one_is_that_type(name: str) -> None:
    logps, ref_logps = random_groups(5, 2)
    case = options(name) | {"lengths": torch.arange(1, 11).view(5, 2)}
    alone = preference_loss(logps, ref_logps, **case)
    assert torch.equal(preference_loss(logps, ref_logps, **case | {"loss_type": [name]}), alone)
    twice = preference_loss(logps, ref_logps, **case | {"loss_type": [name, name], "loss_weights": [0.5, 1.5]})
    close(twice, 2 * alone)


@law
@given(groups(negatives=(1, 1)), st.sampled_from(sorted(set(LOSS_TYPES) - BATCH_LOSSES - {"sft"})))
def test_a_group_pays_for_itself_alone(group: tuple[Tensor, Tensor, float], name: str) -> None:
    logps, ref_logps, beta = group
    lengths = torch.arange(1, 1 + logps.numel()).view_as(logps)
    case = options(name) | {"beta": beta}
    for row, loss in enumerate(preference_loss(logps, ref_logps, lengths=lengths, **case)):
        one = slice(row, row + 1)
        close(loss[None], preference_loss(logps[one], ref_logps[one], lengths=lengths[one], **case))


@law
@given(groups(negatives=(1, 1)), st.sampled_from(sorted(BATCH_LOSSES)), st.randoms(use_true_random=False))
def test_sorted_losses_do_not_know_the_order(group: tuple[Tensor, Tensor, float], name: str, random) -> None:
    logps, ref_logps, beta = group
    order = list(range(len(logps)))
    random.shuffle(order)
    case = options(name) | {"beta": beta}
    permuted = preference_loss(logps[order], ref_logps[order], **case)
    assert torch.equal(permuted, preference_loss(logps, ref_logps, **case))


@law
@given(groups(negatives=(1, 1)), st.sampled_from(["sigmoid", "robust", "aot", "aot_unpaired"]), st.floats(0.01, 0.25))
def test_swapping_a_batch_moves_it_by_its_margins(
    group: tuple[Tensor, Tensor, float], name: str, smoothing: float
) -> None:
    # (1 - e) l(m) + e l(-m) against the same at -m: (1 - 2e) m; robust undoes the factor twice. A sort keeps the sum.
    logps, ref_logps, beta = group
    case = {"loss_type": name, "beta": beta, "label_smoothing": 0.0 if name == "sigmoid" else smoothing}
    factor = {"sigmoid": 1.0, "robust": 1 / (1 - 2 * smoothing)}.get(name, 1 - 2 * smoothing)
    rewards = implicit_rewards(logps, ref_logps, beta=beta)
    difference = preference_loss(logps.flip(1), ref_logps.flip(1), **case) - preference_loss(logps, ref_logps, **case)
    close(difference.sum(), factor * (rewards[:, 0] - rewards[:, 1]).sum())


@law
@given(groups(negatives=(1, 1)), st.integers(1, 9))
def test_lengths_divide_the_rewards(group: tuple[Tensor, Tensor, float], length: int) -> None:
    logps, ref_logps, beta = group
    norm = {"loss_type": "sigmoid_norm", "lengths": torch.full(logps.shape, length)}
    ones = {"loss_type": "sigmoid_norm", "lengths": torch.ones(logps.shape, dtype=torch.int32)}
    plain = preference_loss(logps, ref_logps, beta=beta)
    assert torch.equal(preference_loss(logps, ref_logps, beta=beta, **ones), plain)
    close(preference_loss(logps * length, ref_logps * length, beta=beta, **norm), plain)


@law
@given(groups(negatives=(1, 1)))
def test_robust_without_smoothing_is_sigmoid_to_the_bit(group: tuple[Tensor, Tensor, float]) -> None:
    logps, ref_logps, beta = group
    robust = preference_loss(logps, ref_logps, beta=beta, loss_type="robust")
    assert torch.equal(robust, preference_loss(logps, ref_logps, beta=beta))


@law
@given(groups(negatives=(1, 1)), st.sampled_from(sorted(BATCH_LOSSES)))
def test_sorting_one_group_is_sigmoid(group: tuple[Tensor, Tensor, float], name: str) -> None:
    logps, ref_logps, beta = (x[:1] if isinstance(x, Tensor) else x for x in group)
    close(preference_loss(logps, ref_logps, beta=beta, loss_type=name), preference_loss(logps, ref_logps, beta=beta))


@law
@given(groups(negatives=(1, 1)), st.sampled_from(sorted(set(LOSS_TYPES) - {"sft"})), finite)
def test_only_the_ratios_matter(group: tuple[Tensor, Tensor, float], name: str, shift: float) -> None:
    # aot sorts the margins of the policy and of the reference apart: there the shift is one for all.
    logps, ref_logps, beta = group
    case = options(name) | {"beta": beta, "lengths": torch.ones(logps.shape, dtype=torch.int64)}
    close(preference_loss(logps + shift, ref_logps + shift, **case), preference_loss(logps, ref_logps, **case), 1e-9)


def test_where_the_regressions_have_their_minimum() -> None:
    # ipo at a margin per token of 1 / (2 beta), sppo_hard at rewards of +-1/2, exo_pair at the smoothed probability.
    zero, beta, e = fp64([[0, 0]]), 0.1, 1e-3
    minima = {
        "ipo": fp64([[3 * 2.0, 5 * -3.0]]),
        "sppo_hard": fp64([[5.0, -5.0]]),
        "exo_pair": fp64([[math.log((1 - e) / e) / beta, 0]]),
    }
    for name, logps in minima.items():
        logps.requires_grad_()
        loss = preference_loss(logps, zero, beta=beta, lengths=torch.tensor([[3, 5]]), **options(name))
        close(loss, fp64([0]))
        close(torch.autograd.grad(loss.sum(), logps)[0], zero)


def test_bounded_losses_by_hand() -> None:
    # Rewards log 3 and -log 4, sigmoids 3/4 and 1/5; of the margin log 12, 12/13.
    logps, case = fp64([[3, 0.25]]).log(), {"ref_logps": fp64([[0, 0]]), "beta": 1.0}
    close(preference_loss(logps, loss_type="apo_zero", **case), fp64([1 / 4 + 1 / 5]))
    close(preference_loss(logps, loss_type="apo_down", **case), fp64([3 / 4 + 1 / 13]))
    close(preference_loss(logps, loss_type="bco_pair", **case), -fp64([3 / 4 * 4 / 5]).log())
    close(preference_loss(logps, loss_type="discopop", discopop_tau=1.0, **case), fp64([(math.log(13 / 12) + 1) / 13]))


def test_sft_averages_over_the_tokens_of_the_batch() -> None:
    logps, lengths = fp64([[-6, 0], [-2, 0]]), torch.tensor([[3, 9], [1, 9]])
    loss = preference_loss(logps, logps, loss_type="sft", lengths=lengths)
    assert loss.tolist() == [3.0, 1.0]  # their mean is 8 nats over 4 tokens


def test_a_response_without_tokens_is_divided_by_one() -> None:
    logps, ref_logps = fp64([[4, -2]]), fp64([[0, 0]])
    for name in LENGTH_LOSSES:
        none, one = (
            preference_loss(logps, ref_logps, loss_type=name, lengths=torch.full((1, 2), length)) for length in (0, 1)
        )
        assert torch.equal(none, one)


@pytest.mark.parametrize("size", [1e2, 1e3, 1e4])
@pytest_types
def test_every_type_is_right_at_ten_thousand_nats(name: str, size: float) -> None:
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [0.0, 1.0], [-1.0, 0.0]])
    case = options(name) | {"beta": 1.0, "lengths": torch.ones(6, 2, dtype=torch.int64)}
    results = []
    for dtype in (torch.float32, torch.float64):
        logps = (size * signs).to(dtype).requires_grad_()
        loss = preference_loss(logps, torch.zeros_like(logps), **case)
        results.append((loss.detach().double(), torch.autograd.grad(loss.sum(), logps)[0].double()))
    (loss, gradient), (true_loss, true_gradient) = results
    assert true_loss.isfinite().all()
    close(loss, true_loss, TRL_RTOL)
    close(gradient, true_gradient, TRL_RTOL)


# The gradients of the first two grow without bound, and the third is a product of 0 and infinity.
WITHOUT_LIMIT = {"ipo", "sppo_hard", "discopop"}


@pytest.mark.parametrize("side", [0, 1], ids=["chosen", "rejected"])
@pytest.mark.parametrize("name", [name for name in LOSS_TYPES if name not in WITHOUT_LIMIT])
def test_an_impossible_response_has_the_limit(name: str, side: int) -> None:
    """At a log-prob of -inf: the gradient of -1e6 nats, and its loss, or infinity where that grows with the nats."""
    case = options(name) | {"beta": 1.0, "lengths": torch.ones(2, 2, dtype=torch.int64)}
    results = []
    for nats in (-math.inf, -1e6):
        logps = fp64([[-3, -4], [-2, -1]])
        logps[0, side] = nats
        logps.requires_grad_()
        loss = preference_loss(logps, torch.zeros_like(logps), **case)
        results.append((loss.detach(), torch.autograd.grad(loss.sum(), logps)[0]))
    (limit, gradient), (near, near_gradient) = results
    assert torch.equal(limit, torch.where(near.abs() > 1e4, near.sign() * math.inf, near))
    close(gradient, near_gradient)


@pytest.mark.parametrize("negatives", [1, 3])
def test_beside_an_impossible_chosen_response_the_rejected_have_their_shares(negatives: int) -> None:
    logps, ref_logps = random_groups(1, 1 + negatives)
    logps[0, 0] = -math.inf
    logps.requires_grad_()
    loss = preference_loss(logps, ref_logps, beta=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert loss.item() == math.inf
    shares = (0.1 * (logps - ref_logps).detach()[0, 1:]).softmax(0)
    close(gradient[0], 0.1 * torch.cat([fp64([-1]), shares]))


@pytest.mark.parametrize("name", ["apo_zero", "apo_down", "exo_pair", "discopop"])
def test_a_saturated_gradient_keeps_its_digits(name: str) -> None:
    # Beside sigmoids of 25 and 20: 1 - sigmoid(25) is 1e-11, nothing that y (1 - y) of a rounded y could know.
    gradients = []
    for dtype in (torch.float32, torch.float64):
        logps = torch.tensor([[25.0, -20.0], [-25.0, 20.0], [20.0, 3.0]], dtype=dtype, requires_grad=True)
        loss = preference_loss(logps, torch.zeros_like(logps), beta=1.0, **options(name))
        gradients.append(torch.autograd.grad(loss.sum(), logps)[0].double())
    # An exponent of 45 rounded to fp32 is off by 2e-6, and so is its exponential, relatively.
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-30)


@pytest_types
def test_every_type_compiles_to_one_graph(name: str) -> None:
    logps, ref_logps = random_groups(4, 2)
    case = options(name) | {"lengths": torch.arange(1, 9).view(4, 2)}
    mask = torch.tensor([[True, True]] * 3 + [[True, False]])
    torch.compiler.reset()  # a graph per type is more than one function may have
    compiled = torch.compile(preference_loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(logps, ref_logps, **case), preference_loss(logps, ref_logps, **case))
    assert compiled(logps, ref_logps, mask=mask, **case).isnan().tolist() == [False, False, False, True]


def test_what_is_checked_is_returned() -> None:
    assert check_losses("sigmoid", negatives=7) == (("sigmoid",), (1.0,))
    assert check_losses(["hinge", "sft"], [1, 2]) == (("hinge", "sft"), (1.0, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss_type": "dpo"}, "among sigmoid, hinge, .*, sigmoid_norm, got 'dpo'"),
        ({"loss_type": ["hinge", "dpo", None]}, "got 'dpo', None"),
        ({"loss_type": []}, "got none"),
        ({"loss_type": ["hinge", "sft"], "loss_weights": [1.0]}, r"one finite weight.*hinge, sft, got \[1\.0\]"),
        ({"loss_weights": [math.nan]}, "one finite weight.*got .nan"),
        ({"loss_type": ["sigmoid", "ipo"], "negatives": 2}, "one rejected response per group for ipo, got 2"),
        ({"beta": 0.0}, "positive, finite beta, got 0.0"),
        ({"label_smoothing": 0.1}, "label_smoothing 0 for sigmoid, got 0.1; only aot, aot_unpaired, exo_pair, robust"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, r"\[0, 0\.5\) for robust, got 0\.5"),
        ({"loss_type": "robust", "label_smoothing": -0.1}, r"\[0, 0\.5\) for robust, got -0\.1"),
        ({"loss_type": "exo_pair"}, r"\(0, 1\) for exo_pair, got 0"),
        ({"loss_type": ["exo_pair", "robust"]}, r"\(0, 0\.5\) for exo_pair, robust, got 0"),
        ({"loss_type": "exo_pair", "label_smoothing": 1.0}, r"\(0, 1\) for exo_pair, got 1"),
        ({"loss_type": "aot", "label_smoothing": math.nan}, r"\[0, 1\) for aot, got nan"),
        ({"discopop_tau": 0.0}, "positive, finite discopop_tau, got 0.0"),
        ({"discopop_tau": math.nan}, "positive, finite discopop_tau"),
    ],
)
def test_options_that_do_not_go_together_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_losses(**{"loss_type": "sigmoid"} | change)
    columns = 1 + change.pop("negatives", 1)
    with pytest.raises(ValueError, match=message):
        preference_loss(torch.zeros(2, columns), torch.zeros(2, columns), **change)


@pytest.mark.parametrize("name", sorted(LENGTH_LOSSES))
def test_types_that_need_lengths_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=f"expected lengths for {name}, got none"):
        preference_loss(torch.zeros(2, 2), torch.zeros(2, 2), loss_type=["hinge", name])


PAIR = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logps": PAIR[:, :1], "ref_logps": PAIR[:, :1]}, ValueError, r"at least one negative, got \[2, 1\]"),
        ({"logps": PAIR[0], "ref_logps": PAIR[0]}, ValueError, r"\[groups, 1 \+ negatives\].*got \[3\]"),
        ({"ref_logps": PAIR[:, :2]}, ValueError, r"one shape, got \[2, 3\] and \[2, 2\]"),
        ({"logps": PAIR.bfloat16()}, TypeError, r"logps in float32 or float64, got torch.bfloat16; call \.float\(\)"),
        ({"ref_logps": PAIR.half()}, TypeError, "ref_logps in float32 or float64, got torch.float16"),
        ({"ref_logps": PAIR.double()}, TypeError, r"one dtype.*ref_logps\.to\(logps\)"),
        ({"ref_logps": PAIR.to("meta")}, TypeError, "one device"),
        ({"beta": 0.0}, ValueError, "positive, finite beta, got 0.0"),
        ({"beta": -0.1}, ValueError, "positive, finite beta"),
        ({"beta": math.inf}, ValueError, "positive, finite beta"),
        ({"loss_type": "hinge"}, ValueError, "one rejected response per group for hinge, got 2"),
        ({"lengths": torch.ones(2, 2).long()}, ValueError, r"one length per entry of logps, \[2, 3\], got \[2, 2\]"),
        ({"lengths": torch.ones(2, 3)}, TypeError, "int64 or int32 lengths, got torch.float32"),
        ({"lengths": torch.ones(2, 3).bool()}, TypeError, "int64 or int32 lengths, got torch.bool"),
        ({"lengths": torch.full((2, 3), -1)}, ValueError, "0 or more tokens, got -1"),
        ({"mask": torch.ones(2, 3)}, TypeError, "bool mask, got torch.float32"),
        ({"mask": torch.ones(2, 2, dtype=torch.bool)}, ValueError, r"shape of logps, \[2, 3\], got \[2, 2\]"),
        ({"mask": torch.tensor([[True] * 3, [False, True, True]])}, ValueError, r"column 0.*missing in groups \[1\]"),
        ({"mask": torch.tensor([[True, False, False]] * 2)}, ValueError, r"rejected one.*groups \[0, 1\]"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        preference_loss(**{"logps": PAIR, "ref_logps": PAIR} | change)


def test_rewards_by_hand() -> None:
    rewards = implicit_rewards(torch.tensor([-10.0, -20.0]), torch.tensor([-12.0, -16.0]), beta=0.5)
    assert rewards.tolist() == [1.0, -2.0]


@law
@given(groups())
def test_rewards_vanish_at_the_reference_and_change_sign_with_it(group: tuple[Tensor, Tensor, float]) -> None:
    logps, ref_logps, beta = group
    assert not implicit_rewards(logps, logps, beta=beta).any()
    assert torch.equal(implicit_rewards(logps, ref_logps, beta=beta), -implicit_rewards(ref_logps, logps, beta=beta))


def test_token_logps_by_hand() -> None:
    # Logits log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8.
    weight = fp64([[1], [2], [5]]).log()
    logps = token_logps(fp64([[1]] * 3), weight, torch.tensor([0, 1, 2]))
    close(logps.exp(), fp64([0.125, 0.25, 0.625]))


def test_the_order_is_scale_softcap_temperature() -> None:
    hidden, weight, bias = fp64([[2]]), fp64([[1], [-3]]), fp64([1, 1])
    logps = token_logps(hidden, weight, torch.tensor([0]), bias=bias, scale=0.5, softcap=4.0, temperature=2.0)
    # hidden weight^T + bias = 3 and -5, scaled 1.5 and -2.5.
    a, b = (4 * math.tanh(x / 4) / 2 for x in (1.5, -2.5))
    close(logps, fp64([-math.log1p(math.exp(b - a))]))


def test_token_logps_agree_with_trl() -> None:
    chunked_logprob = pytest.importorskip("trl.kernels.chunked_logprob")
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(13, 8, generator=random), torch.randn(50, 8, generator=random)
    bias, targets = torch.randn(50, generator=random), torch.randint(50, (13,), generator=random)
    theirs, *_ = chunked_logprob.ChunkedLogProbFunction.apply(hidden, weight, bias, targets, 1.3, 50, 5.0, 0.7, ())
    ours = token_logps(hidden, weight, targets, bias=bias, softcap=5.0, scale=0.7, temperature=1.3)
    close(ours, theirs, TRL_RTOL)


def random_head(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"hidden": (13, 8), "weight": (50, 8), "bias": (50,)}
    head = {name: torch.randn(shape, dtype=dtype, generator=random) for name, shape in shapes.items()}
    return head | {"targets": torch.randint(50, (13,), generator=random)}


@pytest.mark.parametrize(
    "case",
    [{}, {"softcap": 5.0}, {"scale": 0.7}, {"temperature": 1.3}, {"softcap": 5.0, "scale": -2.0, "temperature": 0.4}],
)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("tokens", [50, 7])
def test_token_statistics_agree_with_trl(case: dict[str, float], biased: bool, tokens: int) -> None:
    chunked_logprob = pytest.importorskip("trl.kernels.chunked_logprob")
    head = random_head()
    targets = head.pop("targets")
    if not biased:
        del head["bias"]
    for tensor in head.values():
        tensor.requires_grad_()
    theirs = chunked_logprob.ChunkedLogProbFunction.apply(
        head["hidden"], head["weight"], head.get("bias"), targets, case.get("temperature", 1.0), tokens,
        case.get("softcap"), case.get("scale", 1.0),
    )  # fmt: skip
    ours = token_statistics(**head, targets=targets, **case)
    logps, entropy, log_sum_sq_probs, mean_logits, is_top1 = theirs
    close(ours.logps, logps, TRL_RTOL)
    torch.testing.assert_close(ours.entropy, entropy, rtol=0, atol=TRL_ENTROPY_ATOL)
    exact = token_statistics(**{name: x.detach().double() for name, x in head.items()}, targets=targets, **case)
    close(ours.entropy, exact.entropy.float(), TRL_RTOL)
    close(ours.log_sum_sq_probs, log_sum_sq_probs, TRL_RTOL)
    close(ours.mean_logits, mean_logits, TRL_RTOL)
    assert torch.equal(ours.is_top1, is_top1)
    assert [value.requires_grad for value in ours] == [True, True, False, False, False]
    # Both at once, each with its own upstream gradient; a sum of 13 tokens rounds a dozen times.
    upstream = torch.linspace(-1, 2, 13)
    gradients = [
        torch.autograd.grad((upstream * p + upstream.flip(0) * h).sum(), list(head.values()))
        for p, h in ((ours.logps, ours.entropy), (logps, entropy))
    ]
    for our, their in zip(*gradients, strict=True):
        close(our, their, 10 * TRL_RTOL)


def test_of_tied_logits_the_first_is_the_top() -> None:
    chunked_logprob = pytest.importorskip("trl.kernels.chunked_logprob")
    # Logits 2, 3, 3, 1, 3; a soft cap of 1e-3 makes ties of them all.
    hidden, weight = torch.ones(5, 1), torch.tensor([[2.0], [3.0], [3.0], [1.0], [3.0]])
    for softcap, truth in ((None, [False, True, False, False, False]), (1e-3, [True] + [False] * 4)):
        targets = torch.arange(5)
        *_, theirs = chunked_logprob.ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 2, softcap, 1.0)
        ours = token_statistics(hidden, weight, targets, softcap=softcap).is_top1
        assert ours.tolist() == theirs.tolist() == truth


def test_token_statistics_by_hand() -> None:
    # Probabilities 1/8, 2/8, 5/8 and logits log 1, log 2, log 5.
    weight = fp64([[1], [2], [5]]).log()
    statistics = token_statistics(fp64([[1]] * 3), weight, torch.tensor([0, 1, 2]))
    close(statistics.logps, fp64([1 / 8, 2 / 8, 5 / 8]).log())
    close(statistics.entropy, fp64([math.log(8) - (2 * math.log(2) + 5 * math.log(5)) / 8] * 3))
    close(statistics.mean_logits, fp64([math.log(10) / 3] * 3))
    close(statistics.log_sum_sq_probs, fp64([math.log(30 / 64)] * 3))
    assert statistics.is_top1.tolist() == [False, False, True]


@law
@given(st.integers(0, 10_000), st.sampled_from([None, 3.0]))
def test_statistics_keep_their_bounds(seed: int, softcap: float | None) -> None:
    random = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(n, 8, dtype=torch.float64, generator=random) for n in (4, 50))
    targets = torch.randint(50, (4,), generator=random)
    logps, entropy, _, log_sum_sq_probs, is_top1 = token_statistics(3 * hidden, weight, targets, softcap=softcap)
    assert torch.equal(logps, token_logps(3 * hidden, weight, targets, softcap=softcap))
    # Renyi: 0 <= -log max p <= -log sum p^2 <= entropy <= log V, and sum p^2 is at least the target's own share.
    assert ((entropy >= -log_sum_sq_probs - FP64_RTOL) & (entropy <= math.log(50))).all()
    assert (log_sum_sq_probs >= 2 * logps).all()
    assert (logps[is_top1] >= log_sum_sq_probs[is_top1]).all()


def test_gradcheck_of_the_statistics() -> None:
    head = random_head(torch.float64)
    targets = head.pop("targets")[:3]
    head["hidden"] = head["hidden"][:3]
    tensors = [tensor.requires_grad_() for tensor in head.values()]

    def statistics(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return token_statistics(hidden, weight, targets, bias=bias, softcap=4.0, scale=0.7, temperature=1.3)[:2]

    assert torch.autograd.gradcheck(statistics, tensors)


@pytest.mark.parametrize("case", [{}, {"softcap": 5.0, "scale": 0.7, "temperature": 1.3}])
def test_an_adapter_is_the_merged_weight(case: dict[str, float]) -> None:
    head = random_head(torch.float64)
    random = torch.Generator().manual_seed(1)
    a, up = torch.randn(3, 8, dtype=torch.float64, generator=random), torch.randn(50, 3, generator=random).double()
    leaves = [head["hidden"], head["bias"], a, up]
    for leaf in leaves:
        leaf.requires_grad_()
    apart = token_statistics(**head, lora=(2.0 * head["hidden"] @ a.T, up), **case)
    merged = token_statistics(**head | {"weight": head["weight"] + 2.0 * up @ a}, **case)
    for ours, truth in zip(apart, merged, strict=True):
        close(ours, truth)
    gradients = [torch.autograd.grad((s.logps + s.entropy).sum(), leaves) for s in (apart, merged)]
    for ours, truth in zip(*gradients, strict=True):
        close(ours, truth)
    assert torch.equal(token_logps(**head, lora=(2.0 * head["hidden"] @ a.T, up), **case), apart.logps)


def test_a_narrow_adapter_is_added_in_fp32() -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight, down, up = (
        torch.randn(shape, generator=random).bfloat16() for shape in ((2, 5, 8), (50, 8), (2, 5, 3), (50, 3))
    )
    targets = torch.randint(50, (2, 5), generator=random)
    logps = token_logps(hidden, weight, targets, lora=(down, up))
    assert logps.dtype == torch.float32
    assert torch.equal(logps, token_logps(hidden.float(), weight.float(), targets, lora=(down.float(), up.float())))


@pytest.mark.parametrize("function", [token_logps, token_statistics])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": torch.zeros(7, 50)}, ValueError, r"one D, got \[13, 8\] and \[7, 50\]"),
        ({"targets": torch.zeros(12).long()}, ValueError, r"one target per hidden state, shape \[13\], got \[12\]"),
        ({"bias": torch.zeros(8)}, ValueError, r"bias of shape \[50\], got \[8\]"),
        ({"bias": torch.zeros(50).double()}, TypeError, "hidden, weight and bias in one floating dtype, got .*float64"),
        ({"targets": torch.zeros(13).int()}, TypeError, "int64 targets, got torch.int32"),
        ({"targets": torch.full((13,), -100)}, ValueError, r"targets in \[0, 50\), got values from -100 to -100"),
        ({"targets": torch.full((13,), 50)}, ValueError, r"targets in \[0, 50\), got values from 50 to 50"),
        ({"softcap": 0.0}, ValueError, "positive softcap or None, got 0.0"),
        ({"scale": 0.0}, ValueError, "finite scale other than 0, got 0.0"),
        ({"temperature": 0.0}, ValueError, "positive temperature, got 0.0"),
        ({"lora": (torch.zeros(13, 3), torch.zeros(49, 3))}, ValueError, r"up \[50, r\]\) .*\[13, 3\] and \[49, 3\]"),
        ({"lora": (torch.zeros(13, 2), torch.zeros(50, 3))}, ValueError, r"one r, got \[13, 2\] and \[50, 3\]"),
        ({"lora": (torch.zeros(12, 3), torch.zeros(50, 3))}, ValueError, r"down \[13, 'r'\]"),
        ({"lora": (torch.zeros(13), torch.zeros(50))}, ValueError, r"got \[13\] and \[50\]"),
        ({"lora": (torch.zeros(13, 3).half(), torch.zeros(50, 3))}, TypeError, "one floating dtype with lora, got"),
    ],
)
def test_what_is_wrong_with_a_head_is_said(function, change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        function(**random_head() | change)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_token_logps_of_narrow_inputs_are_computed_in_fp32(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(2, 5, 8, generator=random).to(dtype), torch.randn(50, 8, generator=random).to(dtype)
    targets = torch.randint(50, (2, 5), generator=random)
    logps = token_logps(hidden, weight, targets)
    assert logps.dtype == torch.float32
    assert torch.equal(logps, token_logps(hidden.float(), weight.float(), targets))


def test_probabilities_of_all_tokens_sum_to_one() -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 8, generator=random).double(), torch.randn(50, 8, generator=random).double()
    every = torch.arange(50).expand(4, 50)
    logps = token_logps(hidden[:, None].expand(4, 50, 8), weight, every, softcap=5.0, scale=3.0, temperature=0.5)
    close(logps.exp().sum(1), fp64([1] * 4))


def test_sequences_by_hand() -> None:
    logps = torch.tensor([-1.0, -2.0, -4.0, -8.0], requires_grad=True)
    sums = sequence_logps(logps, torch.tensor([2, 0, 2, 0]), 4)
    assert sums.tolist() == [-10.0, 0.0, -5.0, 0.0]
    sums.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert logps.grad.tolist() == [3.0, 1.0, 3.0, 1.0]


@law
@given(st.lists(st.integers(0, 5), max_size=40))
def test_sequences_split_the_total(ids: list[int]) -> None:
    # Whole numbers, so that every order of additions gives the same sum.
    logps = -torch.arange(len(ids)).double()
    sums = sequence_logps(logps, torch.tensor(ids, dtype=torch.int64), 6)
    assert sums.shape == (6,)
    assert sums.sum() == logps.sum()
    assert sums.tolist() == [sum(-i for i, s in enumerate(ids) if s == sequence) for sequence in range(6)]


@pytest.mark.parametrize(
    ("logps", "ids", "error", "message"),
    [
        (torch.zeros(3).bfloat16(), torch.zeros(3).long(), TypeError, "before summing"),
        (torch.zeros(3), torch.zeros(2).long(), ValueError, r"one shape \[tokens\], got \[3\] and \[2\]"),
        (torch.zeros(1, 3), torch.zeros(1, 3).long(), ValueError, "select the response tokens first"),
        (torch.zeros(3), torch.zeros(3).int(), TypeError, "int64 sequence_ids, got torch.int32"),
    ],
)
def test_what_is_wrong_with_sequences_is_said(logps: Tensor, ids: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sequence_logps(logps, ids, 2)
