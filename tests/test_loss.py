"""The definition of the loss: hand-computed values, laws, and the formula of TRL."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mipo.loss import implicit_rewards, preference_loss, sequence_logps, token_logps

# Sums of a few fp64 terms, each exact to 1.1e-16.
FP64_RTOL = 1e-12
# What the issue asks of agreement with TRL in fp32, where one rounding is 6e-8.
TRL_RTOL = 1e-6

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
    moved = preference_loss(logps[:, [0, *order]], ref_logps[:, [0, *order]], beta=beta)
    close(moved, preference_loss(logps, ref_logps, beta=beta))


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


def test_an_impossible_mask_off_the_cpu_would_be_nan() -> None:
    # torch.compile may not look at values either, so it takes the same way.
    logps, ref_logps = random_groups(3, 3)
    mask = torch.tensor([[False, True, True], [True, False, False], [True, True, False]])
    compiled = torch.compile(preference_loss, backend="eager", fullgraph=True)
    assert compiled(logps, ref_logps, mask=mask).isnan().tolist() == [True, True, False]


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
