"""Drawing small domains more often or weighting them more: equal gradients, unequal noise.

Claim: temperature sampling (draw domain i with probability p_i proportional to n_i^(1/tau), loss
unweighted) and scalarization (draw all examples alike, weight domain i by w_i = p_i n / n_i) have
the same expected gradient; of mini-batches the weighted one is noisier, so that sampling reaches a
lower training loss in equal steps, the more so the higher tau; a high tau overfits the small
domain; and Cooldown, tau = 5 for half of the steps and 1 for the rest, keeps the gain of the small
domain and gives back most of what the large one lost (Li et al. 2024, arXiv:2410.04579). At
tau = 1, the null run, the two are one.

The noise of one example differs by exactly sum_i p_i (w_i - 1) M_i, M_i the mean squared gradient
norm of domain i. The published theorem, that weighting is never the less noisy and the difference
grows with tau, takes all M_i for equal, and without that it does not hold: once a network has
memorised the small domains, weighting is the quieter one at moderate temperatures. That is asserted
too, in closed form and on drawn mini-batches of networks at fixed parameters.

One teacher shared by three domains of unequal size, beside which each has its own; a network of one
hidden layer that is told the domain; plain SGD with constant step sizes. The published runs are
translation and language models, and the larger size here (``--paper``) is not. Whether both
methods have the same limit, and whether a falling temperature beats a rising one (measured), is not
asserted. What Cooldown keeps depends on the domains: where they have less of their own
(``--own-teacher=0.5 --sharpness=1.5``) tau = 1 serves the smallest one best, and no gain is there.

    python experiments/upsample_vs_upweight.py
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import _domains
import jax
import jax.numpy as jnp
import numpy as np
from _domains import Policy, probabilities, spread

import jaxbalance as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run depends on."""

    sizes: tuple[int, ...] = (8000, 400, 60)
    test_examples: int = 1000
    dimension: int = 10
    classes: int = 4
    own_teacher: float = 1.5
    sharpness: float = 2.0
    hidden: int = 48
    steps: int = 3000
    batch_size: int = 32
    temperatures: tuple[jb.experiments.Positive, ...] = (1.0, 2.0, 5.0, 100.0)
    cooldown_from: jb.experiments.Positive = 5.0
    step_sizes: tuple[jb.experiments.Positive, ...] = (0.03, 0.1, 0.3, 1.0)
    records: int = 30
    seeds: int = 5
    noise_step_size: jb.experiments.Positive = 0.3
    early_steps: int = 300
    memorise_steps: int = 16_000
    batches: int = 2000


# The published domains are languages with millions of sentences; this is only larger.
PAPER = Config(
    sizes=(160_000, 8000, 600), hidden=256, steps=60_000, batches=20_000, memorise_steps=300_000
)

METHODS = ("sampling", "weighting")
# Of Monte Carlo batches at once: their gradients are all in memory.
CHUNK = 100


def noise_difference(sizes: Any, temperature: float, moments: Any) -> np.ndarray:
    """Variance of one weighted draw less that of one sampled draw, by the closed form."""
    wanted, plain = probabilities(sizes, temperature), probabilities(sizes, 1.0)
    return np.asarray(moments) @ (wanted * (wanted / plain - 1))


def policy(config: Config, method: str, first: float, second: float) -> Policy:
    """Sampling or weighting at a temperature for each half of the run; no step size yet."""
    wanted = np.stack([probabilities(config.sizes, tau) for tau in (first, second)])
    plain = np.broadcast_to(probabilities(config.sizes, 1.0), wanted.shape)
    draw, weight = (wanted, plain / plain) if method == "sampling" else (plain, wanted / plain)
    draw, weight = draw.astype(np.float32), weight.astype(np.float32)
    return Policy(draw, weight, np.int32(config.steps // 2), np.bool_(False), np.float32(0))


def run(config: Config, one: Policy, sizes: tuple[float, ...], steps: int) -> jb.dynamics.Sweep:
    """A policy with every step size and seed."""
    every = [one._replace(step_size=np.float32(size)) for size in sizes]
    return _domains.run(config, every, steps)


def curves(config: Config, method: str, first: float, second: float) -> dict[str, np.ndarray]:
    """The best step size's losses by seed, record and domain."""
    result = run(config, policy(config, method, first, second), config.step_sizes, config.steps)
    choice = jb.dynamics.choose_step_size(result)
    best = int(choice.position)
    return {
        "temperatures": np.array([first, second]),
        "steps": np.asarray(result.steps),
        "loss": np.asarray(result.loss)[best],
        "size": np.array(config.step_sizes[best]),
        "grid": np.asarray(choice.scores),
        "diverged": np.asarray(choice.diverged),
        **{name: np.asarray(values)[best] for name, values in result.record.items()},
    }


def enumerated(config: Config, temperature: float, every: np.ndarray) -> dict[str, Any]:
    """Expected gradients and variances of one draw, by summing over all examples."""
    sizes = np.array(config.sizes)
    domain, wanted = np.repeat(np.arange(len(sizes)), sizes), probabilities(sizes, temperature)
    alike = np.full(len(every), 1 / len(every))
    often = wanted[domain] / sizes[domain]
    heavy = (wanted / probabilities(sizes, 1.0))[domain]
    sampled, weighted, plain = often @ every, (alike * heavy) @ every, alike @ every
    squares = (every**2).sum(axis=1)
    return {
        "apart": np.linalg.norm(sampled - weighted) / np.linalg.norm(sampled),
        "moved": np.linalg.norm(sampled - plain) / np.linalg.norm(sampled),
        "sampling": often @ squares - sampled @ sampled,
        "weighting": (alike * heavy**2) @ squares - weighted @ weighted,
        "mean": sampled,
    }


@functools.partial(jax.jit, static_argnums=0)
def drawn(config: Config, params: Any, seed: Any, mean: Any, draw: Any, weight: Any) -> Any:
    """Variance of one draw as mini-batches show it, and its standard error."""

    def one(key: jax.Array) -> jax.Array:
        grads = _domains.batch_gradient(config, params, seed, key, draw, weight)
        return config.batch_size * jnp.sum((jax.flatten_util.ravel_pytree(grads)[0] - mean) ** 2)

    keys = jax.random.split(jax.random.fold_in(seed.key, config.steps), config.batches)
    values = jax.lax.map(one, keys, batch_size=CHUNK)
    return jnp.mean(values), jnp.std(values) / config.batches**0.5


def noise(config: Config, temperature: float, steps: int) -> dict[str, np.ndarray]:
    """Both methods' noise at the parameters that sampling at a temperature leads to."""
    seeds, found = _domains.all_seeds(config), []
    one = policy(config, "sampling", temperature, temperature)
    result = run(config, one, (config.noise_step_size,), steps)
    for number in range(config.seeds):
        seed = jax.tree.map(lambda leaf, number=number: leaf[number], seeds)
        params = jax.tree.map(lambda leaf, number=number: leaf[0, number], result.state.params)
        every = _domains.gradients(params, seed)
        for tau in config.temperatures:
            exact = enumerated(config, tau, every)
            mean = exact.pop("mean").astype(np.float32)
            for method in METHODS:
                both = policy(config, method, tau, tau)
                one = drawn(config, params, seed, mean, both.draw[0], both.weight[0])
                exact[f"{method}, drawn"] = np.array(one)
            exact["moments"] = _domains.host_means((every**2).sum(axis=1), config.sizes)
            found.append(exact)
    shape = (config.seeds, len(config.temperatures))
    arrays = {name: np.stack([exact[name] for exact in found]) for name in found[0]}
    arrays = {name: array.reshape(*shape, *array.shape[1:]) for name, array in arrays.items()}
    return arrays | {"sizes": np.array(config.sizes), "temperatures": np.array(config.temperatures)}


def parts(config: Config) -> dict[str, Callable[[], dict[str, np.ndarray]]]:
    """Noise early and after memorising, then the runs of every method."""
    highest = max(config.temperatures)
    found = {
        "early": functools.partial(noise, config, 1.0, config.early_steps),
        "memorised": functools.partial(noise, config, highest, config.memorise_steps),
    }
    hot = config.cooldown_from
    for method in METHODS:
        for tau in sorted({1.0, hot, *config.temperatures}):
            found[f"{method}/{tau:g}"] = functools.partial(curves, config, method, tau, tau)
    found["cooldown"] = functools.partial(curves, config, "sampling", hot, 1.0)
    found["warm-up"] = functools.partial(curves, config, "sampling", 1.0, hot)
    return found


def noise_numbers(record: dict[str, np.ndarray], when: str) -> dict[str, Any]:
    """Closed form against enumeration and mini-batches; ranges over seeds by temperature."""
    taken = {name: record[f"{when}/{name}"] for name in ("sampling", "weighting", "moments")}
    sizes, taus = record[f"{when}/sizes"], record[f"{when}/temperatures"]
    columns = zip(taus, taken["moments"].transpose(1, 0, 2), strict=True)
    closed = np.stack([noise_difference(sizes, tau, moment) for tau, moment in columns], axis=1)
    scores, means = [], {}
    for method in METHODS:
        mean, error = np.moveaxis(record[f"{when}/{method}, drawn"], -1, 0)
        scores.append(np.abs(mean - taken[method]) / error)
        means[method] = mean
    exact = taken["weighting"] - taken["sampling"]
    return {
        "expected gradients apart": float(record[f"{when}/apart"].max()),
        "expected gradient moved from tau = 1": spread(record[f"{when}/moved"][:, -1]),
        "mean squared gradient by domain": [spread(v) for v in taken["moments"][:, 0].T],
        "closed form off by": float((np.abs(closed - exact) / taken["sampling"]).max()),
        "mini-batches off by, standard errors": float(np.max(scores)),
        "sampling": [spread(v) for v in taken["sampling"].T],
        "weighting": [spread(v) for v in taken["weighting"].T],
        "difference": [spread(v) for v in closed.T],
        "difference, drawn": [spread(v) for v in (means["weighting"] - means["sampling"]).T],
    }


def method_numbers(record: dict[str, np.ndarray], name: str) -> dict[str, Any]:
    """One method's end, domains from the largest."""
    train, test = record[f"{name}/train"], record[f"{name}/test"]
    return {
        "step size": float(record[f"{name}/size"]),
        "scores": [round(float(score), 4) for score in record[f"{name}/grid"]],
        "diverged": record[f"{name}/diverged"].tolist(),
        "loss": spread(record[f"{name}/loss"][:, -1]),
        "train": [spread(values) for values in train[:, -1].T],
        "test": [spread(values) for values in test[:, -1].T],
        "smallest, test less train": spread((test - train)[:, -1, -1]),
        "smallest, risen since its best": spread(test[:, -1, -1] - test[..., -1].min(axis=1)),
    }


def measure(record: dict[str, np.ndarray]) -> dict[str, Any]:
    """Noise, then what each method reaches, and how far one is ahead of the other."""
    names = [name.removesuffix("/grid") for name in record if name.endswith("/grid")]
    ends = {name: record[f"{name}/loss"][:, -1] for name in names}
    taus = [name.removeprefix("sampling/") for name in names if name.startswith("sampling/")]
    leads = {tau: ends[f"weighting/{tau}"] - ends[f"sampling/{tau}"] for tau in taus}
    always = [f"sampling/{tau:g}" for tau in record["cooldown/temperatures"]]
    hot, cold, cool = (record[f"{name}/test"][:, -1] for name in (*always, "cooldown"))
    kept = (cold - cool)[:, -1].mean() / (cold - hot)[:, -1].mean()
    returned = (hot - cool)[:, 0].mean() / (hot - cold)[:, 0].mean()
    return {
        "noise": {when: noise_numbers(record, when) for when in ("early", "memorised")},
        "methods": {name: method_numbers(record, name) for name in names},
        "sampling ahead by": {tau: spread(lead) for tau, lead in leads.items()},
        "cooldown": {
            "smallest, below tau = 1": spread((cold - cool)[:, -1]),
            "smallest, gain kept": round(float(kept), 3),
            "largest, loss given back": round(float(returned), 3),
        },
    }


def check(numbers: dict[str, Any]) -> None:
    """Assert equal gradients, the exact noise with both its signs, the runs, and the null."""
    for when, row in numbers["noise"].items():
        assert row["expected gradients apart"] < 1e-9, "expected gradients differ"
        assert row["expected gradient moved from tau = 1"][1] > 0.1, "no temperature did anything"
        assert row["closed form off by"] < 1e-9, f"{when}: not the variance that is enumerated"
        assert row["mini-batches off by, standard errors"] < 5, f"{when}: mini-batches disagree"
        assert row["difference"][0] == row["difference, drawn"][0] == [0.0] * 3, "tau = 1 differs"
    early, late = (numbers["noise"][when] for when in ("early", "memorised"))
    lowest = np.array([row[1] for row in early["difference"]])
    highest = np.array([row[2] for row in early["difference"]])
    assert np.all(lowest[1:] > highest[:-1]), "early on the difference grows with tau"
    turned = (late[name][1][2] for name in ("difference", "difference, drawn"))
    assert max(turned) < 0, "with small domains memorised the sign has not turned"
    leads = np.array(list(numbers["sampling ahead by"].values()))
    assert np.all(leads[0] == 0), "at tau = 1 the two runs are the same"
    assert np.all(leads[1:, 0] > 0.02), "sampling is ahead"
    assert leads[-1, 1] > 0.05, "in every seed at the highest tau"
    assert np.all(np.diff(leads[:, 0]) > 0), "the more so the higher tau"
    methods = numbers["methods"]
    sampled = [row for name, row in methods.items() if name.startswith("sampling/")]
    gaps = [row["smallest, test less train"][0] for row in sampled]
    assert np.all(np.diff(gaps) > 0), "the smallest domain is overfitted more, the higher tau"
    assert sampled[-1]["smallest, risen since its best"][1] > 0.1, "its test loss has not risen"
    cooldown = numbers["cooldown"]
    assert cooldown["smallest, below tau = 1"][1] > 0, "Cooldown did not help the smallest domain"
    assert cooldown["smallest, gain kept"] > 0.5
    assert cooldown["largest, loss given back"] > 0.5


def summary(numbers: dict[str, Any]) -> str:
    """Noise of both methods, and where their runs end."""
    early, late = (numbers["noise"][when] for when in ("early", "memorised"))
    top, ahead = list(numbers["sampling ahead by"])[-1], list(numbers["sampling ahead by"].values())
    ratios = [row["weighting"][i][0] / row["sampling"][i][0] for row, i in ((early, -1), (late, 1))]
    cooldown = numbers["cooldown"]
    lines = [
        f"Weighting has {ratios[0]:.0f} times the gradient variance of sampling early on, and "
        f"{ratios[1]:.2f} times once small domains are memorised; at tau = {top} sampling ends "
        f"{ahead[-1][0]:.2f} lower in training loss, at tau = 1 {ahead[0][0]:g}; Cooldown keeps "
        f"{cooldown['smallest, gain kept']:.0%} of the smallest domain's gain and gives back "
        f"{cooldown['largest, loss given back']:.0%} of what the largest one lost.",
        "",
        "| method / tau | step size | training loss of its objective | test loss by domain, "
        "largest first | smallest: test less train | risen since its best |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in numbers["methods"].items():
        tests = ", ".join(f"{test[0]:.3f}" for test in row["test"])
        mean, low, high = row["loss"]
        rest = (row[f"smallest, {what}"][0] for what in ("test less train", "risen since its best"))
        cells = (f"{row['step size']:g}", f"{mean:.3f} ({low:.3f} to {high:.3f})", tests)
        lines.append(f"| {' | '.join((name, *cells, *(f'{x:.2f}' for x in rest)))} |")
    lines += ["", "| variance of a draw at rising tau | sampling | weighting | difference, drawn |"]
    lines += ["| --- | --- | --- | --- |"]
    for when, row in numbers["noise"].items():
        columns = (row[name] for name in ("sampling", "weighting", "difference, drawn"))
        cells = (", ".join(f"{values[0]:.1f}" for values in column) for column in columns)
        lines.append(f"| {when} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot_noise(axis: Any, record: dict[str, np.ndarray], when: str) -> None:
    """The closed form over the temperature, and what mini-batches show."""
    sizes, taus = record[f"{when}/sizes"], record[f"{when}/temperatures"]
    fine = np.geomspace(1, taus.max(), 100)
    moment = record[f"{when}/moments"][:, 0]
    exact = np.stack([noise_difference(sizes, tau, moment) for tau in fine], axis=1)
    means, errors = np.moveaxis(
        np.stack([record[f"{when}/{method}, drawn"] for method in METHODS]), -1, 0
    )
    spread = 2 * np.sqrt((errors**2).sum(axis=0))
    for seed, curve in enumerate(exact):
        axis.plot(fine, curve, color="#777777", label="closed form" if seed == 0 else None)
        bars = {"fmt": "o", "color": "#222222", "markersize": 4, "capsize": 3}
        label = "mini-batches ± 2 s.e." if seed == 0 else None
        axis.errorbar(taus, (means[1] - means[0])[seed], spread[seed], label=label, **bars)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="temperature τ", ylabel="variance: weighting − sampling")
    axis.legend()


def temperatures(record: dict[str, np.ndarray]) -> dict[str, str]:
    """Those of the runs, with colours."""
    marks = ("sampling/", "/grid")
    names = [name for name in record if name.startswith(marks[0]) and name.endswith(marks[1])]
    taus = [name.removeprefix(marks[0]).removesuffix(marks[1]) for name in names]
    colours = ("#777777", "#E69F00", "#009E73", "#0072B2", "#CC79A7", "#56B4E9", "#222222")
    return dict(zip(taus, colours, strict=False))


def plot_runs(axes: Any, record: dict[str, np.ndarray]) -> None:
    """Training losses of both methods, how far they end apart, the smallest domain's losses."""
    leads, colours = [], temperatures(record)
    for tau, colour in colours.items():
        both = [record[f"{method}/{tau}/loss"] for method in METHODS]
        steps = record[f"sampling/{tau}/steps"]
        for curve, style in zip(both, ("-", "--"), strict=True):
            axes[0].plot(steps, curve.mean(axis=0), style, color=colour)
            axes[0].fill_between(steps, curve.min(0), curve.max(0), color=colour, alpha=0.08)
        for part, style in (("test", "-"), ("train", ":")):
            curve = record[f"sampling/{tau}/{part}"][..., -1].mean(axis=0)
            axes[2].plot(steps, curve, style, color=colour)
        leads.append(both[1][:, -1] - both[0][:, -1])
        axes[1].plot([len(leads) - 1] * len(leads[-1]), leads[-1], "o", color=colour, alpha=0.6)
    axes[1].plot([lead.mean() for lead in leads], "_", color="black", markersize=22)
    axes[1].axhline(0, color="black", linewidth=0.8)
    axes[1].set_xticks(range(len(leads)), list(colours))
    axes[1].set(xlabel="temperature τ", ylabel="final loss: weighting − sampling")
    axes[0].set(xlabel="steps", ylabel="training loss of the objective", ylim=(0, 1.5))
    axes[2].set(xlabel="steps", ylabel="loss of the smallest domain")


def plot_ends(axis: Any, record: dict[str, np.ndarray]) -> None:
    """Final test losses of the smallest domain over those of the largest, seeds averaged."""
    colours = temperatures(record)
    for method, shape in zip(METHODS, ("o", "s"), strict=True):
        for tau, colour in colours.items():
            end = record[f"{method}/{tau}/test"][:, -1].mean(axis=0)
            axis.plot(end[0], end[-1], shape, color=colour, markersize=7, markeredgecolor="black")
        axis.plot([], [], shape, color="white", markeredgecolor="black", label=method)
    for name, shape in (("cooldown", "*"), ("warm-up", "X")):
        end = record[f"{name}/test"][:, -1].mean(axis=0)
        axis.plot(end[0], end[-1], shape, color="#D55E00", markersize=11, label=f"{name}, sampling")
    axis.set(xlabel="test loss of the largest domain", ylabel="test loss of the smallest domain")
    axis.legend()


def plot(record: dict[str, np.ndarray]) -> Any:
    """Noise early and late; curves, leads and the smallest domain by temperature; where all end."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(12, 7.5), layout="constrained")
    axes = figure.subplots(2, 3)
    for axis, when in zip(axes[0], ("early", "memorised"), strict=False):
        plot_noise(axis, record, when)
    plot_runs((axes[0, 2], axes[1, 0], axes[1, 1]), record)
    plot_ends(axes[1, 2], record)
    axes[0, 0].set(title="gradient noise early")
    axes[0, 1].set(title="gradient noise, small domains memorised")
    axes[0, 2].set(title="sampling (solid), weighting (dashed)")
    axes[1, 0].set(title="how far sampling is ahead")
    axes[1, 1].set(title="sampling: test (solid), training (dotted)")
    axes[1, 2].set(title="where all end, mean of seeds")
    colours = temperatures(record)
    lines = [Line2D([], [], color=colour, linewidth=3) for colour in colours.values()]
    labels = [f"τ = {tau}" for tau in colours]
    figure.legend(lines, labels, frameon=False, ncols=len(labels), loc="outside lower center")
    return figure


if __name__ == "__main__":
    jb.experiments.main(__file__)
