"""The balanced draw's effect on the leave-one-out estimate: its variance over draws, against independent draws.

    python benchmarks/marginal.py

The scores are artificial: log π(y_i|x_j) = ε_ij + c_j, plus `signal` where i = j, with normal ε of
spread `noise` and normal c of spread `columns`: some prompts make every answer likelier. The estimate is the
leave-one-out of `mipo.evaluation.information` with the K other prompts that the draw gives; everything but the draw's
seed is fixed.
"""

from typing import Any

import numpy as np

Row = dict[str, Any]


def measure(*, prompts: int = 1_024, seeds: int = 400, signal: float = 4.0, noise: float = 1.0) -> list[Row]:
    """Variance over `seeds` draws of either kind, for K and for how much the prompts differ."""
    rows = []
    for columns in (0.0, 0.5, 1.0, 2.0):
        rng = np.random.default_rng(int(10 * columns))
        scores = rng.normal(0, noise, (prompts, prompts)) + rng.normal(0, columns, prompts)
        scores[np.diag_indices(prompts)] += signal
        for k in (1, 4, 16):
            variances = {balanced: estimates(scores, k, seeds, balanced).var(ddof=1) for balanced in (True, False)}
            rows.append({"columns": columns, "k": k, "prompts": prompts, "seeds": seeds})
            rows[-1] |= {"balanced": float(variances[True]), "independent": float(variances[False])}
    return rows


def estimates(scores: Any, k: int, seeds: int, balanced: bool) -> Any:
    """The leave-one-out estimate of each seed, as in `mipo.evaluation.information`, without its interval."""
    import mipo
    from mipo.evaluation.bounds import row_bounds

    n, estimates = len(scores), []
    own = np.arange(n)[:, None]
    for seed in range(seeds):
        others = mipo.counterparts(n, negatives=k, seed=seed, balanced=balanced).astype(np.int64)
        estimates.append(row_bounds(scores[own, np.concatenate([own, others], axis=1)])[1].mean())
    return np.array(estimates)


def say(rows: list[Row]) -> list[str]:
    """A line for each row."""
    return [
        f"leave-one-out over {row['seeds']} draws of {row['prompts']} prompts, K = {row['k']}, spread of the prompts "
        f"{row['columns']:g} (artificial scores): variance of independent draws {row['independent']:.3g}, balanced "
        f"{row['balanced']:.3g}, {row['independent'] / row['balanced']:.2f} times less"
        for row in rows
    ]


if __name__ == "__main__":
    print("\n".join(say(measure())))
