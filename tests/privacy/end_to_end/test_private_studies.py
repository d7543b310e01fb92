"""Privacy in a study file: what reading refuses, and a whole run with ledgers, facts and report."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
import torch
import yaml
from hospitals import make_hospital

import medfed
from medfed import registry as kinds
from medfed.aggregation.fedavg import FedAvg
from medfed.errors import StudyError
from medfed.pipeline.factory import hospital_of, module_of
from medfed.privacy import Privacy
from medfed.privacy.accounting.accountant import epsilon
from medfed.privacy.accounting.ledger import Ledger, data_set
from medfed.study.reading import read_study
from medfed.study.validation import validate
from medfed.wire.weights import weights_of

CONFIGS = Path(__file__).parents[3] / "configs"


def written(folder: Path, base: str = "quickstart.yaml", **sections) -> Path:
    plain = yaml.safe_load((CONFIGS / base).read_text())
    for key, value in sections.items():
        plain[key] = (
            {**plain[key], **value} if isinstance(plain.get(key), dict) and key != "privacy" else value
        )
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(plain))
    return path


DP_SGD = {"kind": "dp_sgd", "epsilon": 8}
CENTRAL = {"kind": "client_dp", "noise_multiplier": 1.0}
LOCAL = {**CENTRAL, "where": "site"}
OPTIMISER = {"kind": "adamw", "lr": 0.01}


@pytest.mark.parametrize(
    "sections, words",
    [
        (
            {"privacy": DP_SGD, "train": {"precision": "16-mixed"}},
            "train.precision: 16-mixed scales the loss",
        ),
        ({"privacy": DP_SGD, "train": {"accumulate": 2}}, "train.accumulate: 2 with dp_sgd"),
        ({"privacy": DP_SGD, "train": {"steps": 5}}, "train.steps: dp_sgd draws patients by chance"),
        ({"privacy": DP_SGD, "data": {"plan": {}}}, "data.plan sends sums over each hospital's patients"),
        ({"privacy": DP_SGD, "rule": {"kind": "qfedavg"}}, "needs each site's 'train/loss_before'"),
        ({"privacy": {**DP_SGD, "epsilon": 0}}, r"privacy.epsilon: found 0; expected a number > 0"),
        ({"privacy": {**DP_SGD, "delta": 1}}, r"privacy.delta: found 1"),
        ({"privacy": {**DP_SGD, "clipp": 1}}, "did you mean 'clip'"),
        ({"privacy": {"kind": "client_dp"}}, "give noise_multiplier, or epsilon and delta"),
        ({"privacy": CENTRAL, "rule": {"kind": "median"}}, "'median' compares the sites' single updates"),
        ({"privacy": CENTRAL, "rule": {"kind": "cyclic"}}, "'cyclic' merges one site at a time"),
        ({"privacy": LOCAL, "rule": {"kind": "qfedavg"}}, "'qfedavg' weighs sites by 'train/loss_before'"),
        (
            {"privacy": LOCAL, "rule": {"kind": "scaffold"}, "train": {"local": {"kind": "scaffold"}}},
            "the group 'control' would leave beside it",
        ),
    ],
)
def test_what_privacy_cannot_hold_with_is_refused_when_the_study_is_read(tmp_path, sections, words):
    with pytest.raises(StudyError, match=words):
        read_study(written(tmp_path, **sections))


def kept_back() -> list[tuple[str, str]]:
    """Return every rule and privacy mechanism of which the rule needs a number that privacy withholds."""
    pairs = []
    for rule, record in sorted(kinds.kinds("aggregation").items()):
        needed = msgspec.convert({"kind": rule}, record).needs_scalars
        for privacy, mechanism in sorted(kinds.kinds("privacy").items()):
            shown = msgspec.convert({"kind": privacy, **mechanism.example}, mechanism).filter_scalars(
                dict.fromkeys(needed, 1.0)
            )
            pairs += [(rule, privacy)] if set(needed) - set(shown) else []
    return pairs


@pytest.mark.parametrize("rule, privacy", kept_back())
def test_a_rule_and_a_privacy_that_keeps_its_numbers_back_are_refused_together(tmp_path, rule, privacy):
    """Whichever are added: else the first merge would find them missing, after every hospital had trained."""
    settings = {"kind": privacy, **kinds.kinds("privacy")[privacy].example}
    with pytest.raises(StudyError, match=rf"rule.kind: '{rule}'"):
        read_study(written(tmp_path, privacy=settings, rule={"kind": rule}, sampling={"minimum": 4}))


class Mute(Privacy, frozen=True, tag="mute"):
    """The hub sees each update without any scalar, as an installed mechanism may require."""

    def filter_scalars(self, scalars: Mapping[str, float]) -> Mapping[str, float]:
        return {}


def test_a_privacy_that_is_added_needs_no_objection_of_its_own(tmp_path):
    study = read_study(written(tmp_path, rule={"kind": "fednova"}))
    words = (
        "x.yaml: rule.kind: 'fednova' needs each site's 'train/steps', "
        "which privacy 'mute' does not let a site send"
    )
    with pytest.raises(StudyError, match=words):
        validate(msgspec.structs.replace(study, privacy=Mute()), "x.yaml")
    validate(msgspec.structs.replace(study, privacy=Mute(), rule=FedAvg()), "x.yaml")


@pytest.mark.parametrize(
    "rule, number",
    [("fednova", "train/steps"), ("qfedavg", "train/loss_before"), ("fednoro", "train/class_loss")],
)
def test_the_number_that_a_secure_sum_keeps_back_is_named(tmp_path, rule, number):
    words = (
        f"'{rule}' needs each site's '{number}', "
        f"which privacy 'secure_sum' does not let a site send; .*fedavg"
    )
    with pytest.raises(StudyError, match=words):
        read_study(written(tmp_path, privacy={"kind": "secure_sum"}, rule={"kind": rule}))


def test_a_number_without_information_on_patients_is_allowed_with_dp_sgd(tmp_path):
    assert read_study(written(tmp_path, privacy=DP_SGD, rule={"kind": "fednova"})).rule.needs_scalars


def test_robust_rules_go_with_noise_at_the_sites(tmp_path):
    assert read_study(written(tmp_path, privacy=LOCAL, rule={"kind": "median"})).privacy.reveals_each_update


@pytest.mark.parametrize(
    "data, words",
    [
        ({"standardise": "site"}, "data.standardise: site scales each patient by the mean of all"),
        ({"standardise": "none", "missing": "median"}, "data.missing: median fills gaps"),
    ],
)
def test_inputs_scaled_by_other_patients_are_refused(tmp_path, data, words):
    with pytest.raises(StudyError, match=words):
        read_study(written(tmp_path, "tabular.yaml", privacy=DP_SGD, data=data))


def test_survival_is_refused_with_dp_sgd_and_says_why(tmp_path):
    study = written(
        tmp_path,
        "tabular.yaml",
        task={"kind": "survival"},
        data={"time": "days", "event": "died"},
        privacy=DP_SGD,
    )
    plain = yaml.safe_load(study.read_text())
    plain["data"].pop("target")
    plain["task"] = {"kind": "survival"}
    study.write_text(yaml.safe_dump(plain))
    with pytest.raises(StudyError, match="task 'survival' compares patients with each other"):
        read_study(study)


@pytest.mark.parametrize("privacy", [DP_SGD, CENTRAL, LOCAL])
def test_the_network_has_no_batch_norm_at_any_side(tmp_path, privacy):
    study = read_study(written(tmp_path, network={"norm": "batch"}, privacy=privacy))
    names = weights_of(module_of(study))
    assert not any("running" in name for name in names)
    plain = read_study(written(tmp_path, network={"norm": "batch"}))
    assert any("running" in name for name in weights_of(module_of(plain)))


# ---------------------------------------------------------------------------------------------- a whole run

TINY = """\
name: tiny
seed: 1
task: {{kind: segment, classes: [background, lesion]}}
network: {{kind: unet, channels: [4, 8], residual_units: 0, norm: batch}}
data: {{kind: images, spacing_mm: [2, 2, 2], patch: [16, 16, 16], samples: 2}}
train: {{rounds: 2, epochs: 1, batch: 2, optimiser: {{kind: adamw, lr: 0.01}}}}
evaluation: {{draws: 50, smallest_group: 1, local_models: false}}
privacy: {privacy}
sites: {{north: north, south: south}}
"""


class Says:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)

    def opened(self, folder) -> None: ...
    def start(self, *args) -> None: ...
    def training(self, *args) -> None: ...
    def round(self, report) -> None: ...
    def stop(self) -> None: ...


def tiny(folder: Path, privacy: str) -> Path:
    for name in ("north", "south"):
        make_hospital(folder / name)
    path = folder / "tiny.yaml"
    path.write_text(TINY.format(privacy=privacy))
    return path


def patients(study, site: str, where: Path):
    hospital = hospital_of(study, site, str(where))
    return data_set(hospital.data.patients("train"), hospital.secret)


@pytest.mark.slow
def test_a_run_by_dp_sgd_says_aloud_what_it_changed_and_what_was_spent(tmp_path):
    file = tiny(tmp_path, "{kind: dp_sgd, epsilon: 6, accountant: rdp}")
    progress = Says()
    done = medfed.train(file, out=tmp_path / "run", progress=progress)
    logged = "\n".join(progress.lines)
    assert re.search(r"privacy: \d+ batch norms of the network are group norms in this study", logged)
    assert "scores are not covered by epsilon and stay in the hospitals" in logged
    assert "one after another" not in logged
    facts = done.read_facts().privacy
    assert (facts.kind, facts.unit, facts.delta) == ("dp_sgd", "patient", 1e-5)
    study = read_study(file)
    for site in ("north", "south"):
        # Four patients, two a step: a rate of a half, two steps an epoch, two epochs.
        (mechanism,) = facts.sites[site].mechanisms
        assert (mechanism.sample_rate, mechanism.steps) == (0.5, 4)
        assert 5.98 < facts.sites[site].epsilon <= 6
        ledger = Ledger(done.path / "sites" / site)
        assert 0 < ledger.spent(patients(study, site, tmp_path / site)) <= 6
    assert "epsilon spent for each patient, at delta 1e-05" in done.report.read_text()
    for line in done.rounds.read_text().splitlines():
        assert not any(name.startswith("val") or name == "train/loss" for name in json.loads(line)["scalars"])


@pytest.mark.slow
def test_adapters_train_from_a_public_start_with_several_copies_of_a_patient(tmp_path):
    public = medfed.train(
        tiny(tmp_path, "{kind: dp_sgd, epsilon: 6, accountant: rdp}"), out=tmp_path / "public"
    )
    part = [f"start={public.checkpoint('federated')}", "train.lora={rank: 1, also: [norm, head]}"]
    mean = ["train.average={kind: ema, decay: 0.5}"]
    spent = []
    for copies in (1, 3):
        settings = f"privacy={{kind: dp_sgd, epsilon: 4, accountant: rdp, augmentations: {copies}}}"
        study = read_study(tmp_path / "tiny.yaml", [*part, *mean, settings])
        progress = Says()
        done = medfed.train(study, out=tmp_path / f"run-{copies}", progress=progress)
        assert "one after another" not in "\n".join(progress.lines)
        spent.append(done.read_facts().privacy.sites)
        # What is not trained is the public model's; each part of what is trained has moved.
        before, after = (
            torch.load(one.checkpoint("federated"), weights_only=True)["state_dict"] for one in (public, done)
        )
        for name, tensor in after.items():
            source = name.replace("parametrizations.weight.original", "weight")
            if source in before and name.endswith("original"):
                assert torch.equal(tensor, before[source])
        assert any(float(tensor.abs().max()) > 0 for name, tensor in after.items() if name.endswith("0.b"))
    assert spent[0] == spent[1]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["hub", "site"])
def test_a_run_by_client_dp_keeps_its_ledger(tmp_path, where):
    file = tiny(tmp_path, f"{{kind: client_dp, where: {where}, epsilon: 5, accountant: rdp, clip: 0.5}}")
    done = medfed.train(file, out=tmp_path / "run")
    facts = done.read_facts().privacy
    assert facts.unit == "site"
    for site in ("north", "south"):
        assert 4.98 < facts.sites[site].epsilon <= 5
        (account,) = Ledger(done.path / "sites" / site).accounts()
        assert account.closed
        assert sum(charge.steps for charge in account.spent) == 2
        assert epsilon(account.spent, 1e-5, "rdp") == pytest.approx(facts.sites[site].epsilon, abs=1e-4)


@pytest.mark.slow
def test_a_run_resumes_with_client_dp(tmp_path):
    file = tiny(tmp_path, "{kind: client_dp, noise_multiplier: 1.0, adaptive: {quantile: 0.5}}")
    medfed.train(file, out=tmp_path / "run")
    medfed.train(file, out=tmp_path / "run", resume=True)
    (account,) = Ledger(tmp_path / "run" / "sites" / "north").accounts()
    assert sum(charge.steps for charge in account.spent) == 2
