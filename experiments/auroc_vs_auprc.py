"""AUPRC is not AUROC for rare positives: it prefers to mend high scores, and so frequent groups.

Claim: with t the scores of positives, AUROC = 1 - E[FPR(t)] and average precision = 1 - P(y = 0)
E[FPR(t) / P(score >= t)], so that mending a mistake between neighbours gains the same AUROC
wherever it is, and the more average precision the higher its rank: k / (P r (r + 1)) for the k-th
of P positives moving up to rank r. Of two groups of unequal prevalence and calibrated scores,
mending what average precision values most helps the group with more positives (McDermott et al.
2024, arXiv:2401.06091). Rarity alone is therefore no reason to prefer average precision.

Null runs: mending mistakes at random, worth the same AUROC each, does not favour the frequent
group, and with equal prevalence neither choice favours a group. How far either group gets is
measured and not asserted, nor that average precision is always the unfair one: that depends on
who has the high scores.

    python experiments/auroc_vs_auprc.py
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    examples: int = 1000
    prevalences: tuple[jb.experiments.OpenShare, ...] = (0.01, 0.05, 0.2, 0.5)
    group: int = 200
    frequent: jb.experiments.OpenShare = 0.05
    rare: jb.experiments.OpenShare = 0.01
    starts: tuple[jb.experiments.OpenShare, ...] = (0.85, 0.65)
    steps: int = 50
    seeds: int = 400


# The published size has fewer seeds, too few to tell the null from a small effect.
PAPER = Config(seeds=20)

METRICS = (jb.metrics.auroc, jb.metrics.average_precision)
CHOICES = ("any", "largest gain", "highest")
"""Which mistake is mended next: all gain the same AUROC; two ways to gain average precision."""
LEVEL = 4.0
"""Standard errors that make a difference."""


def draw(rng: np.random.Generator, number: int, prevalence: float, target: float) -> Any:
    """Scores with a mean of the prevalence and an expected AUROC of the target, and labels.

    Positives are uniform, and a negative lies above each of them with probability 1 - target.
    """
    positives = max(1, round(number * prevalence))
    ends = np.concatenate([[0.0], np.sort(rng.uniform(size=positives)), [1.0]])
    above = rng.binomial(positives, 1 - target, size=number - positives)
    negatives = rng.uniform(ends[above], ends[above + 1])
    scores = np.concatenate([ends[1:-1], negatives])
    labels = np.repeat([1, 0], [positives, number - positives])
    return scores * prevalence / scores.mean(), labels


def by_rates(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision from rates at the scores of positives; ties count half or all."""
    at = scores[labels == 1][:, None]
    negatives = scores[labels == 0][None, :]
    reached = (negatives >= at).mean(axis=1)
    exceeded = (negatives > at).mean(axis=1)
    chosen = (scores[None, :] >= at).mean(axis=1)
    expected = np.mean(reached / chosen)
    return 1 - np.mean(reached + exceeded) / 2, 1 - (labels == 0).mean() * expected


def identities(config: Config) -> dict[str, np.ndarray]:
    """Differences between both forms at every prevalence, with and without ties, in float64."""
    rng = np.random.default_rng(0)
    errors, values = [], []
    for prevalence, digits in itertools.product(config.prevalences, (16, 2)):
        scores, labels = draw(rng, config.examples, prevalence, 0.85)
        scores = scores.round(digits)
        with jax.enable_x64(True):
            direct = both_metrics(scores, labels)
        values.append(direct)
        errors.append(np.abs(np.array(direct) - by_rates(scores, labels)))
    return {"errors": np.array(errors), "values": np.array(values)}


def both_metrics(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision, by the library."""
    auroc, precision = (float(jax.jit(metric)(scores, labels)) for metric in METRICS)
    return auroc, precision


def gains(config: Config) -> dict[str, np.ndarray]:
    """What it is worth to mend each mistake of one ranking: by doing it, and by formula."""
    scores, labels = draw(np.random.default_rng(1), config.examples, 0.1, 0.85)
    ranked = labels[np.argsort(-scores)]
    places = np.flatnonzero(mistakes(ranked))
    mended = np.repeat(ranked[None], len(places), axis=0)
    mended[np.arange(len(places)), places] = 1
    mended[np.arange(len(places)), places + 1] = 0
    falling = -np.arange(float(len(ranked)))
    with jax.enable_x64(True):
        found = [jax.jit(jax.vmap(metric, (None, 0)))(falling, mended) for metric in METRICS]
        found = np.stack(found, axis=1) - np.array(both_metrics(falling, ranked))
    positives = ranked.sum()
    constant = np.full(len(places), 1 / (positives * (len(ranked) - positives)))
    formula = np.stack([constant, precision_gains(ranked)[places] / positives], axis=1)
    return {"rank": places + 1, "gains": found, "formula": formula}


def mistakes(ranked: np.ndarray) -> np.ndarray:
    """Where, from the top, a negative stands directly above a positive, ``[..., N - 1]``."""
    return (ranked[..., :-1] == 0) & (ranked[..., 1:] == 1)


def precision_gains(ranked: np.ndarray) -> np.ndarray:
    """Gain in average precision, times the positives, of swapping each with the next."""
    rank = np.arange(1, ranked.shape[-1])
    return ranked.cumsum(axis=-1)[..., 1:] / (rank * (rank + 1))


def mend(config: Config, choice: str, shares: tuple[float, float], start: float) -> Any:
    """Swap neighbours step by step; AUROC of each group on the way, ``[seeds, steps + 1, 2]``."""
    rng = np.random.default_rng(2)
    drawn = [[draw(rng, config.group, x, start) for x in shares] for _ in range(config.seeds)]
    scores, labels = np.array(drawn).transpose(2, 0, 1, 3).reshape(2, config.seeds, -1)
    groups = np.tile(np.repeat([0, 1], config.group), (config.seeds, 1))
    order = np.argsort(-scores, axis=1)
    labels, groups = (np.take_along_axis(x, order, axis=1) for x in (labels, groups))
    rows, path = np.arange(config.seeds), [group_auroc(labels, groups)]
    for _ in range(config.steps):
        wrong = mistakes(labels)
        worth = {"any": rng.uniform(size=wrong.shape), "highest": np.arange(wrong.shape[1], 0, -1)}
        gain = precision_gains(labels) if choice == "largest gain" else worth[choice]
        place = np.where(wrong, gain, 0).argmax(axis=1)
        # Without a mistake left there is nothing to swap.
        to = np.where(wrong.any(axis=1), place + 1, place)
        for kind in (labels, groups):
            kind[rows, place], kind[rows, to] = kind[rows, to], kind[rows, place]
        path.append(group_auroc(labels, groups))
    return np.stack(path, axis=1)


def group_auroc(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """AUROC inside each of two groups, of labels in falling order of scores, ``[seeds, 2]``."""
    values = []
    for group in (0, 1):
        positive, negative = ((labels == y) & (groups == group) for y in (1, 0))
        above = np.where(positive, negative.cumsum(axis=1), 0).sum(axis=1)
        values.append(1 - above / (positive.sum(axis=1) * negative.sum(axis=1)))
    return np.stack(values, axis=1)


def groups_mended(config: Config, start: float) -> dict[str, np.ndarray]:
    """Every choice, with unequal and with equal prevalence."""
    shares = {"unequal": (config.frequent, config.rare), "equal": (config.frequent,) * 2}
    every = itertools.product(CHOICES, shares)
    return {f"{c}, {kind}": mend(config, c, shares[kind], start) for c, kind in every}


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Both identities, single mistakes, and groups from every start."""
    starts = {f"start {x:g}": functools.partial(groups_mended, config, x) for x in config.starts}
    first = {"identities": identities, "gains": gains}
    return {name: functools.partial(part, config) for name, part in first.items()} | starts


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Largest errors; by how much each group's AUROC rises, and by how much more the first's."""
    gain = record["gains/gains"]
    numbers: dict[str, Any] = {
        "identities, largest error": float(record["identities/errors"].max()),
        "gain formulas, largest error": float(np.abs(gain - record["gains/formula"]).max()),
        "gain of AUROC, highest over lowest": float(gain[:, 0].max() / gain[:, 0].min()),
        "gain of average precision, highest over lowest": float(
            gain[:, 1].max() / gain[:, 1].min()
        ),
        "groups": {},
    }
    for name in (key for key in record if key.startswith("start")):
        rise = record[name][:, -1] - record[name][:, 0]
        ahead = rise[:, 0] - rise[:, 1]
        error = ahead.std(ddof=1) / len(ahead) ** 0.5
        numbers["groups"][name.replace("/", ", ")] = {
            "start": record[name][:, 0].mean(axis=0).round(4).tolist(),
            "end": record[name][:, -1].mean(axis=0).round(4).tolist(),
            "favours first by": [round(float(x), 5) for x in (ahead.mean(), error)],
            "range": [round(float(x), 4) for x in (ahead.min(), ahead.max())],
        }
    return numbers


def check(numbers: dict[str, Any]) -> None:
    """Assert identities, gains, who is favoured, and that nobody is in the null runs."""
    assert numbers["identities, largest error"] < 1e-12
    assert numbers["gain formulas, largest error"] < 1e-12
    assert abs(numbers["gain of AUROC, highest over lowest"] - 1) < 1e-6
    assert numbers["gain of average precision, highest over lowest"] > 10
    for name, row in numbers["groups"].items():
        ahead, error = row["favours first by"]
        if name.endswith("unequal") and ", any" not in name:
            assert ahead > max(LEVEL * error, 0.005), f"{name}: the frequent group is not favoured"
        elif name.endswith("unequal"):
            assert ahead < LEVEL * error, f"{name}: the frequent group is favoured by chance"
        else:
            assert abs(ahead) < LEVEL * error, f"{name}: of equal groups one is favoured"


def summary(numbers: dict[str, Any]) -> str:
    """AUROC of both groups before and after, and the difference of the rises."""
    groups = numbers["groups"]
    name = next(iter(key for key in groups if key.endswith("highest, unequal")))
    ahead = [groups[name.replace("highest", c)]["favours first by"][0] for c in ("highest", "any")]
    ratio = numbers["gain of average precision, highest over lowest"]
    lines = [
        f"Mending a mistake gains up to {ratio:.0f} times as much average precision as another, "
        f"and always the same AUROC; mending the highest favours the frequent group by "
        f"{ahead[0]:+.3f} of AUROC, any mistake by {ahead[1]:+.3f}.",
        "",
        "| start, mistake mended, prevalence | frequent group | rare group | favoured by (s.e.) |",
        "| --- | --- | --- | --- |",
    ]
    for name, row in groups.items():
        pairs = zip(row["start"], row["end"], strict=True)
        cells = " | ".join(f"{a:.3f} to {b:.3f}" for a, b in pairs)
        ahead, error = row["favours first by"]
        lines.append(f"| {name} | {cells} | {ahead:+.4f} ({error:.4f}) |")
    error = numbers["identities, largest error"]
    return "\n".join([*lines, "", f"Identities hold to {error:.0e}. Mean AUROC over seeds."])


def plot(record: dict[str, np.ndarray]) -> Any:
    """Gains over the rank, and both groups' AUROC under the three choices."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1.3, 1, 1, 1))
    for i, name in enumerate(("AUROC", "average precision")):
        rank = record["gains/rank"]
        axes[0].plot(rank, record["gains/formula"][:, i], color=f"C{i + 2}", label=name)
        axes[0].plot(rank, record["gains/gains"][:, i], ".", color=f"C{i + 2}")
    axes[0].set(xscale="log", yscale="log", xlabel="rank of the mistake", ylabel="gain")
    axes[0].set(title="mending one mistake")
    axes[0].legend(loc="upper right")
    start = next(key.partition("/")[0] for key in record if key.startswith("start"))
    for axis, choice in zip(axes[1:], CHOICES, strict=True):
        for kind, style in (("equal", ":"), ("unequal", "-")):
            path = record[f"{start}/{choice}, {kind}"]
            rise = path - path[:, :1]
            for group, name in enumerate(("frequent", "rare") if kind == "unequal" else ("", "")):
                label = f"{name} positives" if name else ("equal groups" if group == 0 else None)
                mean, error = rise[..., group].mean(axis=0), rise[..., group].std(axis=0)
                error = error / len(rise) ** 0.5
                steps, colour = np.arange(len(mean)), f"C{group}"
                axis.plot(steps, mean, style, color=colour, label=label)
                axis.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.15)
        axis.set(title=f"mend: {choice}", xlabel="mistakes mended")
    top = max(axis.get_ylim()[1] for axis in axes[1:])
    for axis in axes[1:]:
        axis.set_ylim(-0.02 * top, top)
    axes[1].set(ylabel=f"rise of AUROC inside the group, {start}")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
