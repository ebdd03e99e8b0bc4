"""Wrong annotations of rare positives reorder classifiers under most metrics, but not under all.

Claim: if annotators miss positives and raise false alarms regardless of a classifier's errors, the
confusion matrix against their labels follows in closed form from the prior, both flip rates, and
the classifier's true and false positive rates. Then Matthews' coefficient is scaled by one constant
for all classifiers, and balanced accuracy and AUROC shrink towards one half by another (Menon, van
Rooyen, Ong and Williamson 2015, ICML), so that these three keep the order of classifiers, while F1,
G-mean, kappa and average precision need not. Accuracy keeps it where both flip rates are equal.

Null runs: without wrong annotations every metric keeps every order, and with half positives and
equal flip rates kappa does too. A study that simulated a fraud detector found F1, then G-mean, to
be the best metric under imbalance and wrong annotation (Kulatilleke and Samarakoon 2022,
arXiv:2208.11904). What it looked for is more than the order; by agreement of order alone, which is
what is asserted here, that pair does not come out best. How much order is lost depends on the
classifiers, here drawn at random.

    python experiments/metric_under_label_noise.py
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import kendalltau, norm

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on; flip rates of positives and of negatives go in pairs."""

    priors: tuple[jb.experiments.OpenShare, ...] = (0.002, 0.05, 0.5)
    missed: tuple[jb.experiments.Share, ...] = (0.0, 0.3, 0.0, 0.3, 0.1)
    false_alarms: tuple[jb.experiments.Share, ...] = (0.0, 0.0, 0.002, 0.01, 0.1)
    classifiers: int = 300
    thresholds: int = 2000
    examples: int = 200_000
    simulated: int = 8
    seeds: int = 3


# The published study has one prior, that of a set of 284,807 card payments of which 492 are frauds.
PAPER = Config(priors=(492 / 284_807,), examples=284_807)

OF_CONFUSION: dict[str, Callable[[Any], Any]] = {
    "Matthews": jb.metrics.matthews_correlation,
    "balanced accuracy": jb.metrics.balanced_accuracy,
    "accuracy": jb.metrics.accuracy,
    "F1": lambda confusion: jb.metrics.f_beta(confusion)[..., 1],
    "G-mean": jb.metrics.geometric_mean,
    "kappa": jb.metrics.cohen_kappa,
}
ALL = (*OF_CONFUSION, "F1, then G-mean", "AUROC", "average precision")
KEPT = ("Matthews", "balanced accuracy", "AUROC")


class Classifiers(NamedTuple):
    """Scores of negatives are standard normal, those of positives normal too; ``[C]`` each."""

    separations: np.ndarray
    spreads: np.ndarray
    thresholds: np.ndarray

    def rates(self, thresholds: np.ndarray) -> np.ndarray:
        """False and true positive rates at thresholds ``[..., C]``, ``[..., C, 2]``."""
        hits = norm.sf((thresholds - self.separations) / self.spreads)
        return np.stack([norm.sf(thresholds), hits], axis=-1)


def draw(config: Config) -> Classifiers:
    """Random ones, with false positive rates from one in ten thousand to three in ten."""
    rng = np.random.default_rng(0)
    alarms = np.exp(rng.uniform(np.log(1e-4), np.log(0.3), size=config.classifiers))
    separations, spreads = rng.uniform([[1.0], [0.5]], [[4.0], [2.0]], (2, config.classifiers))
    return Classifiers(separations, spreads, -norm.ppf(alarms))


def confusion(prior: float, missed: float, alarms: float, rates: np.ndarray) -> np.ndarray:
    """Expected shares: rows annotated, columns predicted; ``rates [..., 2]`` are FPR and TPR."""
    flips = np.array([[1 - alarms, alarms], [missed, 1 - missed]])
    true = np.array([1 - prior, prior])
    predicted = np.stack([1 - rates, rates], axis=-1)
    return np.einsum("y,ya,...yp->...ap", true, flips, predicted)


def ranked(config: Config, prior: float, missed: float, alarms: float) -> dict[str, np.ndarray]:
    """AUROC and average precision against annotations, from the curve over all thresholds."""
    grid = np.linspace(-9, 22, config.thresholds)[::-1, None]
    grid = np.tile(grid, config.classifiers)
    shares = confusion(prior, missed, alarms, draw(config).rates(grid))
    chosen = shares[..., 1]
    positive = chosen[..., 1] / (chosen[..., 1] + shares[..., 1, 0])
    negative = chosen[..., 0] / (chosen[..., 0] + shares[..., 0, 0])
    precision = chosen[..., 1] / chosen.sum(axis=-1)
    return {
        "AUROC": np.trapezoid(positive, negative, axis=0),
        "average precision": np.trapezoid(precision, positive, axis=0),
    }


def expected(config: Config, prior: float, missed: float, alarms: float) -> dict[str, np.ndarray]:
    """Every metric of every classifier against annotations, in float64."""
    classifiers = draw(config)
    shares = confusion(prior, missed, alarms, classifiers.rates(classifiers.thresholds))
    with jax.enable_x64(True):
        table = jnp.asarray(shares)
        values = {name: np.asarray(jax.jit(f)(table)) for name, f in OF_CONFUSION.items()}
    # The first decides unless it is equal to two digits.
    values["F1, then G-mean"] = values["F1"].round(2) + 1e-3 * values["G-mean"]
    return values | ranked(config, prior, missed, alarms)


def simulated(config: Config, prior: float) -> dict[str, np.ndarray]:
    """Largest deviation of drawn confusion matrices from the expected, in standard deviations."""
    rng = np.random.default_rng(1)
    some = Classifiers(*(x[: config.simulated] for x in draw(config)))
    count = jax.jit(
        jax.vmap(functools.partial(jb.metrics.confusion_matrix, num_classes=2), in_axes=(None, 0))
    )
    found = []
    for missed, alarms in flips(config):
        table = confusion(prior, missed, alarms, some.rates(some.thresholds))
        mean = config.examples * table
        deviation = np.sqrt(mean * (1 - table))
        for _ in range(config.seeds):
            labels = (rng.uniform(size=config.examples) < prior).astype(np.int32)
            noise = rng.normal(size=config.examples)
            centre, spread, cut = (x[:, None] for x in some)
            scores = np.where(labels, centre + spread * noise, noise)
            flip = rng.uniform(size=config.examples) < np.where(labels, missed, alarms)
            drawn = count(np.where(flip, 1 - labels, labels), (scores > cut).astype(np.int32))
            found.append((np.asarray(drawn) - mean) / deviation)
    return {"deviations": np.array(found)}


def flips(config: Config) -> list[tuple[float, float]]:
    """Rates at which positives and negatives are annotated as the other."""
    return list(zip(config.missed, config.false_alarms, strict=True))


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """For every prior the truth, all wrong annotations, and the check of the closed form."""
    every: dict[str, Callable[[], dict[str, np.ndarray]]] = {}
    for prior in config.priors:
        every[f"prior {prior:.3g}, true"] = functools.partial(expected, config, prior, 0.0, 0.0)
        for missed, alarms in flips(config):
            name = f"prior {prior:.3g}, missed {missed:g}, false {alarms:g}"
            every[name] = functools.partial(expected, config, prior, missed, alarms)
        every[f"prior {prior:.3g}, drawn"] = functools.partial(simulated, config, prior)
    return every


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Of every metric: agreement of orders, and what is lost by taking the seemingly best."""
    agreement: dict[str, Any] = {}
    for name in dict.fromkeys(key.partition("/")[0] for key in record if ", missed" in key):
        truth = name.partition(",")[0] + ", true"
        pairs = {m: (record[f"{truth}/{m}"], record[f"{name}/{m}"]) for m in ALL}
        agreement[name] = {m: _compared(*pair) for m, pair in pairs.items()}
    drawn = [np.abs(record[key]).max() for key in record if key.endswith("/deviations")]
    return {
        "largest deviation": round(float(max(drawn)), 2),
        "number of deviations": sum(record[k].size for k in record if k.endswith("/deviations")),
        "agreement": agreement,
    }


def _compared(true: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    """Kendall's tau; what the best of the seen lacks in truth; mean of seen less true."""
    lost = true.max() - true[seen.argmax()]
    found = {"tau": kendalltau(true, seen).statistic, "lost": lost, "shift": np.mean(seen - true)}
    return {key: round(float(value), 5) for key, value in found.items()}


def noise_of(name: str) -> tuple[float, float]:
    """Both flip rates of a setting."""
    _, missed, alarms = (float(part.split()[1]) for part in name.split(", "))
    return missed, alarms


def check(numbers: dict[str, Any]) -> None:
    """Assert the closed form, which orders are kept, which are not, and the null."""
    assert numbers["largest deviation"] < 5, "drawn matrices are not the expected ones"
    for name, row in numbers["agreement"].items():
        tau = {metric: row[metric]["tau"] for metric in ALL}
        missed, alarms = noise_of(name)
        for metric in KEPT:
            assert tau[metric] > 0.9999, f"{name}: {metric} does not keep the order"
        if missed == alarms:
            assert tau["accuracy"] > 0.9999, f"{name}: accuracy does not keep the order"
        if missed == alarms == 0:
            assert min(tau.values()) > 0.9999, f"{name}: an order is lost to nothing"
        elif missed == alarms and name.startswith("prior 0.5,"):
            assert tau["kappa"] > 0.9999, f"{name}: kappa does not keep the order"
    lowest = worst(numbers)
    for metric in ("F1", "G-mean", "F1, then G-mean", "kappa", "average precision"):
        assert lowest[metric] < 0.98, f"{metric} keeps every order"


def worst(numbers: dict[str, Any]) -> dict[str, float]:
    """The lowest agreement of every metric in any setting."""
    rows = numbers["agreement"].values()
    return {metric: min(row[metric]["tau"] for row in rows) for metric in ALL}


def summary(numbers: dict[str, Any]) -> str:
    """Agreement of the order by annotations with the true order, by metric."""
    lowest = worst(numbers)
    kept = [metric for metric in ALL if lowest[metric] > 0.9999]
    lines = [
        f"Under wrong annotations {', '.join(kept)} keep the order of classifiers (Kendall's tau "
        f"1); F1 falls to {lowest['F1']:.2f}, G-mean to {lowest['G-mean']:.2f}, F1 then G-mean to "
        f"{lowest['F1, then G-mean']:.2f}, accuracy to {lowest['accuracy']:.2f}.",
        "",
        f"| setting | {' | '.join(ALL)} |",
        f"| --- |{' --- |' * len(ALL)}",
    ]
    for name, row in numbers["agreement"].items():
        cells = (f"{row[m]['tau']:.3f}" for m in ALL)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    number, largest = numbers["number of deviations"], numbers["largest deviation"]
    end = f"Of {number} drawn entries the farthest from the closed form is off by {largest}"
    lines += ["", f"Kendall's tau. {end} standard deviations."]
    return "\n".join(lines)


def plot(record: dict[str, np.ndarray]) -> Any:
    """Values seen over true ones at the first prior, for the setting with both kinds of flips."""
    from matplotlib.figure import Figure

    names = dict.fromkeys(key.partition("/")[0] for key in record if ", missed" in key)
    first = next(iter(names)).partition(",")[0]
    here = [name for name in names if name.startswith(first) and max(noise_of(name)) > 0]
    shown = ("Matthews", "balanced accuracy", "F1", "G-mean", "average precision")
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    axes = figure.subplots(1, len(shown))
    for axis, metric in zip(axes, shown, strict=True):
        true = record[f"{first}, true/{metric}"]
        for i, name in enumerate(here):
            label = name.partition(", ")[2]
            axis.plot(true, record[f"{name}/{metric}"], ".", color=f"C{i}", ms=3, label=label)
        axis.axline((0, 0), slope=1, color="#222222", lw=0.8, ls="--", label="no change")
        low, high = (0.5, 1) if metric == "balanced accuracy" else (0, 1)
        axis.set(title=metric, xlabel="true value", xlim=(low, high), ylim=(low, high))
    axes[0].set(ylabel=f"against annotations, {first}")
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(here) + 1, markerscale=4)
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
