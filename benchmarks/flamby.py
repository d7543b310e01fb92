"""Compare medfed on FLamby's Fed-Heart-Disease and Fed-TCGA-BRCA with FLamby's published figures.

    MEDFED_REAL_DATA=... python benchmarks/flamby.py heart [--seeds 42 43 44 45 46] [--only "fedavg;fedadam"]
    MEDFED_REAL_DATA=... python benchmarks/flamby.py brca
    MEDFED_REAL_DATA=... python benchmarks/flamby.py heart --seeds 42 --only fedavg  # short: minutes

du Terrail et al., FLamby: Datasets and Benchmarks for Cross-Silo Federated Learning in Realistic Healthcare
Settings, NeurIPS 2022, arXiv:2210.04620. Preprocessing, split, budget, rates and seeds are FLamby's; the
training is medfed's: the study's task, network and optimiser, `train_site` for a hospital, `run_federation`
over the memory exchange. A round is `train.steps: 100` batches; when a hospital's cases run out, the
loader starts over, as FLamby's does.

Where FLamby's code differs from its description and its figure depends on the difference, this script follows
the code and RESULTS.md says so: FLamby's "cyclic" never passes a model on to the next hospital.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

import msgspec
import numpy as np
from numpy.typing import NDArray
from real_data import real_data

from medfed.models.tasks import Training
from medfed.study.study import Study

SEEDS = (42, 43, 44, 45, 46)
POOLED = "pooled test"


# -------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Centre:
    """One hospital's features (N, F) before normalisation, answers (N,) or (N, 2), and training mask."""

    features: NDArray[np.float32]
    answers: NDArray
    training: NDArray[np.bool_]


Normalise = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def heart(real: Path) -> dict[str, Centre]:
    """Return the four hospitals, prepared and split as in FLamby's dataset.py."""
    import pandas as pd

    split = json.loads((real / "uci_heart" / "flamby_split.json").read_text())
    frames, sizes = [], {}
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        raw = pd.read_csv(real / "uci_heart" / f"processed.{name}.data", header=None, na_values="?")
        kept = raw.drop(columns=[10, 11, 12]).dropna()
        frames.append(kept.assign(training=kept.index.isin(split[name]["train_rows_in_file"])))
        sizes[name] = len(kept)
        assert set(split[name]["test_rows_in_file"]) == set(kept.index[~frames[-1]["training"]]), name
    table = pd.concat(frames, ignore_index=True)
    # One-hot encode over the categories of all hospitals: chest pain 1 to 4 and ECG 0 to 2, without the
    # first of each.
    features = pd.get_dummies(table.drop(columns=[13, "training"]), columns=[2, 6], drop_first=True)
    x = features.to_numpy(np.float32)
    y = (table[13] > 0).to_numpy(np.int64)
    training = table["training"].to_numpy(bool)
    ends = np.cumsum(list(sizes.values()))
    return {
        name: Centre(
            x[end - sizes[name] : end], y[end - sizes[name] : end], training[end - sizes[name] : end]
        )
        for name, end in zip(sizes, ends, strict=True)
    }


def brca(real: Path) -> dict[str, Centre]:
    """Return the six regions with raw features, as in FLamby; answers are time and event."""
    import pandas as pd

    table = pd.read_csv(real / "tcga_brca" / "brca.csv")
    fold = pd.read_csv(real / "tcga_brca" / "train_test_split.csv").set_index("pid")["fold2"]
    where = table["pid"].map(fold)
    found = {}
    for number in range(6):
        mine = where.isin([f"train_{number}", f"test_{number}"]).to_numpy()
        found[f"region{number}"] = Centre(
            table.iloc[mine, 1:40].to_numpy(np.float32),
            table.loc[mine, ["T", "E"]].to_numpy(np.float32),
            (where[mine] == f"train_{number}").to_numpy(),
        )
    return found


def pooled(centres: Mapping[str, Centre]) -> Centre:
    """Return the cases of all hospitals as one centre."""
    parts = list(centres.values())
    return Centre(
        np.concatenate([c.features for c in parts]),
        np.concatenate([c.answers for c in parts]),
        np.concatenate([c.training for c in parts]),
    )


def z_score(centre: Centre) -> Normalise:
    """Return FLamby's normalisation: training mean and standard deviation (n - 1) of each feature."""
    training = centre.features[centre.training]
    middle, spread = training.mean(0), training.std(0, ddof=1) + np.float32(1e-9)
    return lambda features: ((features - middle) / spread).astype(np.float32)


def as_it_is(centre: Centre) -> Normalise:
    return lambda features: features


def sums(centre: Centre) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Return a hospital's number of training cases, and each feature's sum and sum of squares."""
    training = centre.features[centre.training].astype(np.float64)
    return len(training), training.sum(0), (training**2).sum(0)


def of_all(centres: Mapping[str, Centre]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and deviation over all hospitals' training cases, from their sums."""
    told = [sums(centre) for centre in centres.values()]
    count = sum(n for n, _, _ in told)
    middle = sum(total for _, total, _ in told) / count
    squares = sum(total for _, _, total in told)
    return middle, np.sqrt((squares - count * middle**2) / (count - 1))


# --------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """One row of the table: the rule, its settings, and the training mode.

    shared: features are normalised by the mean and deviation over all hospitals' training cases, computed
    from a count and two sums per hospital, and not by each hospital's own.
    """

    rule: Mapping[str, object] = field(default_factory=lambda: {"kind": "fedavg"})
    optimiser: Mapping[str, object] = field(default_factory=lambda: {"kind": "sgd", "lr": 1e-3})
    train: Mapping[str, object] = field(default_factory=dict)
    how: str = "federated"  # or pooled, alone, flamby_cyclic
    site: str = ""
    shared: bool = False


def server(kind: str, rate: float, **more: float) -> dict[str, object]:
    # FLamby starts v at 0 and sets tau to 1e-8, so the first step has the size of the learning rate for any
    # delta.
    return {"kind": kind, "learning_rate": rate, "tau": 1e-8, "start": 0.0, **more}


def sgd(rate: float) -> dict[str, object]:
    return {"kind": "sgd", "lr": rate}


HEART_METHODS = {
    "pooled training": Method(how="pooled", optimiser={"kind": "adam", "lr": 1e-3}),
    **{
        f"{site} alone": Method(how="alone", site=site, optimiser={"kind": "adam", "lr": 1e-3})
        for site in ("cleveland", "hungarian", "switzerland", "va")
    },
    "fedavg": Method(),
    "fedprox": Method(train={"local": {"kind": "fedprox", "mu": 0.01}}),
    "scaffold": Method({"kind": "scaffold"}, train={"local": {"kind": "scaffold"}}),
    "cyclic, not handed on (FLamby)": Method(how="flamby_cyclic", site="cleveland", optimiser=sgd(0.01)),
    "cyclic": Method({"kind": "cyclic"}, sgd(0.01)),
    "fedadam": Method(server("fedadam", 0.01, beta2=0.999), sgd(0.01)),
    "fedyogi": Method(server("fedyogi", 0.01, beta2=0.999), sgd(0.003162)),
    "fedadagrad": Method(server("fedadagrad", 0.316228), sgd(0.003162)),
    # Chosen by benchmarks/flamby_choose.py on the training cases only.
    "ours": Method(
        optimiser={**sgd(0.01), "weight_decay": 0.01}, train={"schedule": {"kind": "cosine"}}, shared=True
    ),
}

BRCA_METHODS = {
    "pooled training": Method(how="pooled", optimiser={"kind": "adam", "lr": 0.1}),
    **{
        f"region{n} alone": Method(how="alone", site=f"region{n}", optimiser={"kind": "adam", "lr": 0.1})
        for n in range(6)
    },
    "fedavg": Method(optimiser=sgd(0.1)),
    "fedprox": Method(optimiser=sgd(0.1), train={"local": {"kind": "fedprox", "mu": 0.1}}),
    "scaffold": Method({"kind": "scaffold"}, sgd(0.01), train={"local": {"kind": "scaffold"}}),
    "cyclic, not handed on (FLamby)": Method(how="flamby_cyclic", site="region0", optimiser=sgd(0.01)),
    "cyclic": Method({"kind": "cyclic"}, sgd(0.01)),
    "fedadam": Method(server("fedadam", 0.1, beta2=0.999), sgd(0.01)),
    "fedyogi": Method(server("fedyogi", 0.1, beta2=0.999), sgd(0.01)),
    "fedadagrad": Method(server("fedadagrad", 1.0), sgd(0.01)),
}

# Figures from FLamby's repository: mean and standard deviation (n - 1) over seeds 42 to 46 on the pooled test
# cases (flamby/results and flamby/new_results, the newest file of each seed).
PUBLISHED = {
    "heart": {
        "pooled training": (0.7953, 0.0028),
        "cleveland alone": (0.7843, 0.0070),
        "hungarian alone": (0.7268, 0.0129),
        "switzerland alone": (0.4827, 0.0449),
        "va alone": (0.6110, 0.0393),
        "fedavg": (0.7480, 0.0268),
        "fedprox": (0.7480, 0.0268),
        "scaffold": (0.7480, 0.0268),
        "cyclic, not handed on (FLamby)": (0.7850, 0.0123),
        "fedadam": (0.7787, 0.0146),
        "fedyogi": (0.7787, 0.0153),
        "fedadagrad": (0.7787, 0.0153),
    },
    "brca": {
        "pooled training": (0.7041, 0.1144),
        "region0 alone": (0.6948, 0.0426),
        "region1 alone": (0.7275, 0.0483),
        "region2 alone": (0.6043, 0.0314),
        "region3 alone": (0.5650, 0.0703),
        "region4 alone": (0.7251, 0.0345),
        "region5 alone": (0.7103, 0.0045),
        "fedavg": (0.7353, 0.1750),
        "fedprox": (0.7167, 0.1621),
        "scaffold": (0.6995, 0.0347),
        "cyclic, not handed on (FLamby)": (0.6607, 0.0749),
        "fedadam": (0.8421, 0.0168),
        "fedyogi": (0.8421, 0.0166),
        "fedadagrad": (0.8338, 0.0075),
    },
}


@dataclass(frozen=True)
class Benchmark:
    """A FLamby data set with its reader, training budget and score."""

    centres: Callable[[Path], dict[str, Centre]]
    normalise: Callable[[Centre], Normalise]
    score: Callable[[NDArray, NDArray], float]
    methods: Mapping[str, Method]
    study: Mapping[str, object]
    rounds: int
    batch: int
    epochs_alone: int
    steps: int = 100


def accuracy(logits: NDArray, answers: NDArray) -> float:
    return float(((logits > 0) == answers).mean())


def concordance(risk: NDArray, answers: NDArray) -> float:
    from lifelines.utils import concordance_index

    return float(concordance_index(answers[:, 0], -risk, answers[:, 1]))


TABULAR = {"kind": "tabular", "classes": ["healthy", "disease"], "loss": {"kind": "binary_cross_entropy"}}
SURVIVAL = {"kind": "survival", "loss": {"kind": "cox", "per": "examples", "ties": "breslow"}}

BENCHMARKS = {
    "heart": Benchmark(heart, z_score, accuracy, HEART_METHODS, TABULAR, rounds=15, batch=4, epochs_alone=50),
    "brca": Benchmark(
        brca, as_it_is, concordance, BRCA_METHODS, SURVIVAL, rounds=5, batch=8, epochs_alone=30
    ),
}


# -------------------------------------------------------------------------------------------------- training


def study_of(
    benchmark: Benchmark,
    method: Method,
    sites: Mapping[str, str],
    features: int,
    seed: int,
    fixed: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Study:
    """Return the study of one run; `fixed` is the mean and deviation shared by all sites."""
    survival = benchmark.study["kind"] == "survival"
    federated = method.how in ("federated", "flamby_cyclic")
    columns = [f"x{n}" for n in range(features)]
    answer = {"time": "time", "event": "event"} if survival else {"target": "target"}
    standardise: dict[str, object] = {"standardise": "none"}
    if fixed is not None:
        middle, spread = (dict(zip(columns, map(float, values), strict=True)) for values in fixed)
        standardise = {"standardise": "fixed", "centre": middle, "scale": spread}
    plain = {
        "name": "flamby",
        "seed": seed,
        "task": benchmark.study,
        "network": {"kind": "fully_connected", "hidden": []},
        "data": {"kind": "table", "features": columns, "fractions": [1, 0, 0], **standardise, **answer},
        "train": {
            "rounds": benchmark.rounds if federated else benchmark.epochs_alone,
            "steps": benchmark.steps if federated else None,
            "batch": benchmark.batch,
            "optimiser": method.optimiser,
            **method.train,
        },
        "rule": method.rule,
        "sites": sites,
    }
    return msgspec.convert(plain, Study)


def run_once(
    benchmark: Benchmark, method: Method, centres: Mapping[str, Centre], seed: int
) -> dict[str, NDArray]:
    """Train one method with one seed and return the linear model."""
    together = pooled(centres)
    if method.how == "pooled":
        chosen = {"pooled": together}
    elif method.how in ("alone", "flamby_cyclic"):
        chosen = {method.site: centres[method.site]}
    else:
        chosen = dict(centres)
    with tempfile.TemporaryDirectory() as scratch:
        places = {}
        for name, centre in chosen.items():
            normalise = as_it_is(centre) if method.shared else benchmark.normalise(centre)
            places[name] = str(write_table(Path(scratch) / f"{name}.csv", centre, normalise))
        fixed = of_all(centres) if method.shared else None
        study = study_of(benchmark, method, places, together.features.shape[1], seed, fixed)
        if method.how == "flamby_cyclic":
            turns = cyclic_turns(len(centres), list(centres).index(method.site), benchmark.rounds, seed)
            study = msgspec.structs.replace(study, train=msgspec.structs.replace(study.train, rounds=turns))
        federated = method.how in ("federated", "flamby_cyclic")
        weights = (federate if federated else train_alone)(study, Path(scratch))
    return {name.rsplit(".", 1)[-1]: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}


def cyclic_turns(sites: int, mine: int, rounds: int, seed: int) -> int:
    """Return how many rounds FLamby's cyclic trains this site; it draws a new order each cycle."""
    drawn = np.random.default_rng(seed)
    order = [int(site) for _ in range(-(-rounds // sites)) for site in drawn.permutation(sites)]
    return order[:rounds].count(mine)


def write_table(path: Path, centre: Centre, normalise: Normalise) -> Path:
    """Write a hospital's training cases, without the test cases, as the CSV file that a study reads."""
    survival = centre.answers.ndim == 2
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        names = [f"x{n}" for n in range(centre.features.shape[1])]
        out.writerow([*names, *(["time", "event"] if survival else ["target"]), "split"])
        held = normalise(centre.features[centre.training])
        for row, answer in zip(held, centre.answers[centre.training], strict=True):
            answers = [f"{value:g}" for value in np.atleast_1d(answer)]
            out.writerow([*(repr(float(value)) for value in row), *answers, "train"])
    return path


def parts(study: Study):
    import torch

    from medfed.data.datamodule import SiteDataModule

    def module():
        with torch.random.fork_rng():
            torch.manual_seed(study.seed)  # directly before nn.Linear is created, as in FLamby's Baseline
            network = study.network.build(study.data.inputs, study.task.outputs)
        return study.task.module(network, Training(study.train.optimiser, study.train.schedule, study.epochs))

    data = {
        name: SiteDataModule.open(
            place, study.data, study.task.needs, site_secret=name.encode(), batch=study.train.batch,
            steps=study.train.steps, seed=study.seed,
        )
        for name, place in study.sites.items()
    }  # fmt: skip
    return module, data


def training_of(study: Study):
    from medfed.federation.config import SiteConfig

    return SiteConfig(
        epochs=study.epochs,
        local_epochs=study.train.epochs,
        local=study.train.local,
        optimiser_state=study.train.optimiser_state,
        seed=study.seed,
        accelerator="cpu",
    )


def federate(study: Study, folder: Path):
    import medfed
    from medfed.federation.site import SiteRun, train_site

    module, data = parts(study)

    def site(name: str):
        return lambda exchange: train_site(
            name, module(), data[name], exchange, training_of(study),
            SiteRun(folder / name, examples=data[name].examples),
        )  # fmt: skip

    return medfed.run_federation(
        {name: site(name) for name in study.sites},
        medfed.weights_of(module()),
        rule=study.rule,
        rounds=study.train.rounds,
        minimum=1 if study.rule.max_sites == 1 else len(study.sites),
        seed=study.seed,
    ).weights


def train_alone(study: Study, folder: Path):
    import medfed
    from medfed.federation import site

    module, data = parts(study)
    (name,) = study.sites
    trained = module()
    site.train_alone(name, trained, data[name], training_of(study), folder=folder)
    return medfed.weights_of(trained)


# -------------------------------------------------------------------------------------------------- table


def scores(
    benchmark: Benchmark, model: Mapping[str, NDArray], centres: Mapping[str, Centre], shared: bool
) -> dict[str, float]:
    """Return the score per hospital and on the pooled test cases, which FLamby normalises as one table."""
    together = pooled(centres)
    found = {}
    for name, centre in [*centres.items(), (POOLED, together)]:
        normalise = benchmark.normalise(together if shared else centre)
        features = normalise(centre.features[~centre.training])
        found[name] = benchmark.score(
            features @ model["weight"][0] + model["bias"][0], centre.answers[~centre.training]
        )
    return found


def found_or_run(
    benchmark: Benchmark, title: str, centres: Mapping[str, Centre], seed: int, kept: Path
) -> dict[str, float]:
    """Return a run's scores, read from the file of finished runs if present, since all runs take hours."""
    method = benchmark.methods[title]
    key = {"title": title, "seed": seed, "method": asdict(method)}
    lines = kept.read_text().splitlines() if kept.exists() else []
    for line in map(json.loads, lines):
        if line["key"] == json.loads(json.dumps(key)):
            return line["scores"]
    model = run_once(benchmark, method, centres, seed)
    found = scores(benchmark, model, centres, method.shared)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with kept.open("a") as file:
        file.write(json.dumps({"key": key, "scores": found}) + "\n")
    return found


def table(name: str, seeds: Sequence[int], only: Sequence[str], real: Path, kept: Path) -> None:
    """Train every method with every seed and print means and deviations beside the published ones."""
    benchmark = BENCHMARKS[name]
    centres = benchmark.centres(real)
    columns = [*centres, POOLED]
    print("| method | " + " | ".join(columns) + " | published | within 2 sd |")
    print("|---" * (len(columns) + 3) + "|")
    for title in benchmark.methods:
        if only and title not in only:
            continue
        runs = [found_or_run(benchmark, title, centres, seed, kept) for seed in seeds]
        cells = [f"{mean(run[c] for run in runs):.4f}" for c in columns]
        if len(runs) > 1:
            cells[-1] += f" ± {stdev(run[POOLED] for run in runs):.4f}"
        known = PUBLISHED[name].get(title)
        told, verdict = "", ""
        if known:
            told = f"{known[0]:.4f} ± {known[1]:.4f}"
            verdict = "yes" if abs(mean(run[POOLED] for run in runs) - known[0]) <= 2 * known[1] else "NO"
        print(f"| {title} | " + " | ".join(cells) + f" | {told} | {verdict} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=[*BENCHMARKS])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--only", default="", help="methods, with a ; between them")
    parser.add_argument("--out", type=Path, default=Path("runs/flamby"), help="where finished runs are kept")
    given = parser.parse_args()
    real = real_data("uci_heart", "tcga_brca")
    warnings.filterwarnings("ignore")
    import pytorch_lightning as pl  # imported first, because its import sets the log levels

    for logger in (pl.__name__, "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    began = time.monotonic()
    only = [part for part in given.only.split(";") if part]
    table(given.what, given.seeds, only, real, given.out / f"{given.what}.jsonl")
    print(f"\n{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
