"""Tensors of checkpoints and safetensors files, read without running code."""

from __future__ import annotations

import json
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from medfed.errors import StudyError
from medfed.models.pretrained import tensors
from medfed.models.pretrained.source import find_source
from medfed.models.pretrained.tensors import read_tensors

A, B = {"a.weight": torch.tensor([1.0, 2.0])}, {"a.weight": torch.tensor([3.0, 4.0])}


def read(path, content=None, part=""):
    if content is not None:
        torch.save(content, path)
    return read_tensors(find_source(path), part)


@pytest.mark.parametrize(
    "content",
    [
        A,
        {"state_dict": A, "epoch": 3},
        {"model": A, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
        {"net": {"state_dict": A}},
        {"weights": A},
        {"state_dict": A, "best": torch.tensor(0.5)},
    ],
    ids=["plain", "lightning", "with-optimiser", "nested", "another-name", "beside-a-tensor"],
)
def test_the_state_dict_is_found_wherever_programs_put_it(tmp_path, content):
    assert read(tmp_path / "a.pt", content)["a.weight"].tolist() == [1, 2]


def test_of_a_model_and_its_average_the_study_says_which(tmp_path):
    content = {"state_dict": A, "state_dict_ema": B}
    with pytest.raises(StudyError, match=r"holds several state dicts: state_dict, state_dict_ema; say which"):
        read(tmp_path / "a.pt", content)
    assert read(tmp_path / "a.pt", content, "state_dict_ema")["a.weight"].tolist() == [3, 4]
    with pytest.raises(StudyError, match=r"start.part: a.pt has no state dict 'ema'; there are: state_dict"):
        read(tmp_path / "a.pt", content, "ema")


def test_of_a_teacher_and_a_student_none_is_guessed(tmp_path):
    with pytest.raises(StudyError, match=r"several state dicts: student, teacher"):
        read(tmp_path / "a.pt", {"student": A, "teacher": B})


def test_safetensors_are_read_as_they_were_written(tmp_path):
    written = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1.5], dtype=torch.bfloat16)}
    save_file(written, tmp_path / "a.safetensors")
    result = read(tmp_path / "a.safetensors")
    assert all(torch.equal(result[name], tensor) for name, tensor in written.items())
    with pytest.raises(StudyError, match=r"start.part: a.safetensors is a safetensors file"):
        read(tmp_path / "a.safetensors", part="model")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 16,
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 70)
        + json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode().ljust(70),
    ],
    ids=["empty", "rubbish", "huge-header", "no-object", "cut-short"],
)
def test_a_damaged_safetensors_file_is_named(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(StudyError, match=r"start: a.safetensors cannot be read as safetensors"):
        read(tmp_path / "a.safetensors")


class Runs:
    """Runs code when it is unpickled in the usual way."""

    def __reduce__(self):
        return (print, ("run",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    with pytest.raises(
        StudyError, match=r"start: a.pt holds more than tensors, and reading that could run code"
    ):
        read(tmp_path / "a.pt", {"state_dict": A, "more": Runs()})
    assert "run" not in capsys.readouterr().out


def test_a_zip_that_grows_is_refused_before_torch_reads_it(tmp_path):
    torch.save(A, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for one in plain.namelist():
            bomb.writestr(one, bytes(40 << 20) if one.endswith("data/0") else plain.read(one))
    with pytest.raises(StudyError, match=r"start: a.pt would unpack to more than weights have"):
        read(tmp_path / "a.pt")


def test_the_number_of_tensors_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MAX_TENSORS", 1)
    with pytest.raises(StudyError, match=r"a state dict of 2 entries is no network's"):
        read(tmp_path / "a.pt", {"a": torch.ones(1), "b": torch.ones(1)})
