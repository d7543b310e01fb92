"""Studies of pictures whose network is of transformers or timm, started from a file as they are published."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from medfed.errors import StudyError
from medfed.evaluation.rows import read_cases
from medfed.pipeline import train as run
from medfed.pipeline.drafting import draft_study, write_draft
from medfed.study import validation
from medfed.study.reading import read_study

torch.set_num_threads(1)

ARGUMENTS = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two hospitals with six red and six blue pictures each."""
    for seed, site in enumerate(("north", "south")):
        generator = np.random.default_rng(seed)
        (tmp_path / site).mkdir()
        rows = ["case,patient,image,target"]
        for number in range(12):
            rgb = generator.integers(60, 120, (32, 40, 3)).astype(np.uint8)
            rgb[..., 2 * (number % 2)] += 90
            Image.fromarray(rgb).save(tmp_path / site / f"x{number}.png")
            rows.append(f"c{number},P{number},x{number}.png,{number % 2}")
        (tmp_path / site / "cases.csv").write_text("\n".join(rows) + "\n")
    write_draft(
        tmp_path / "draft.yaml", draft_study("p", {site: tmp_path / site for site in ("north", "south")}, {})
    )
    text = msgspec.yaml.decode((tmp_path / "draft.yaml").read_bytes())
    text["network"] = {"kind": "hugging_face", "name": "resnet", "arguments": ARGUMENTS}
    text["train"] |= {"rounds": 1, "epochs": 1}
    text["evaluation"] = {
        **text.get("evaluation", {}),
        "draws": 20,
        "local_models": False,
        "pooled_model": False,
        "smallest_group": 1,
    }
    (tmp_path / "p.yaml").write_bytes(msgspec.yaml.encode(text))
    return tmp_path / "p.yaml"


def test_it_trains_from_a_published_file(study: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs medfed[huggingface]")
    torch.manual_seed(0)
    # Of 1000 classes, as most are published: the last layer is new.
    config = transformers.ResNetConfig(num_labels=1000, **ARGUMENTS)
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    start = (f"start.path={tmp_path / 'model.safetensors'}", "start.anew=[head]")
    done = run.train(study, out=tmp_path / "run", overrides=start)
    assert {case.site for case in read_cases(done.cases)} == {"north", "south"}
    told = (tmp_path / "run" / "start.csv").read_text()
    assert "new,model.classifier.1.weight,2x16," in told
    assert "loaded,model.resnet.embedder.embedder.convolution.weight," in told


def test_without_the_package_the_study_is_refused_with_what_to_install(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "find_spec", lambda package: None)
    with pytest.raises(
        StudyError,
        match=r"network\.kind: 'hugging_face' needs the package transformers, .*pip install \"medfed\[hugg",
    ):
        read_study(study)


def test_it_takes_no_volumes(study: Path) -> None:
    text = msgspec.yaml.decode(study.read_bytes())
    text["data"] |= {"spatial_dims": 3, "patch": [32, 32, 32]}
    study.write_bytes(msgspec.yaml.encode(text))
    with pytest.raises(StudyError, match=r"network\.spatial_dims: found 2, and data\.spatial_dims is 3"):
        read_study(study)


def test_a_model_of_timm_trains_from_a_published_file(study: Path, tmp_path: Path) -> None:
    try:
        import timm
    except (ImportError, RuntimeError):
        pytest.skip("needs medfed[timm] and a torchvision that is built for the installed torch")
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), tmp_path / "model.safetensors")
    overrides = (
        "network={kind: timm, name: test_resnet}",
        f"start.path={tmp_path / 'model.safetensors'}",
        "start.anew=[head]",
    )
    done = run.train(study, out=tmp_path / "run", overrides=overrides)
    assert {case.site for case in read_cases(done.cases)} == {"north", "south"}
    report = (tmp_path / "run" / "start.csv").read_text()
    assert "new,model.fc.weight,2x" in report
    assert "loaded,model.conv1.0.weight," in report
