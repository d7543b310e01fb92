"""Names of structures: sides stay, unknown words become a code, and different names stay different."""

from __future__ import annotations

from medfed.data.deidentify.labels import clean_label
from medfed.data.deidentify.secret import SiteSecret

SECRET = SiteSecret(b"0123456789abcdef")


def clean(name: str, secret: SiteSecret = SECRET) -> str:
    return clean_label(name, lambda words: secret.code("label", words))


def test_sides_targets_and_doses_stay() -> None:
    names = {
        "Lung_L": "lung l",
        "Lung_R": "lung r",
        "Kidney_Left": "kidney left",
        "Kidney R": "kidney r",
        "Parotid-L": "parotid l",
        "GTVp": "gtvp",
        "GTVn1": "gtvn 1",
        "PTV_70": "ptv 70",
        "CTV 60Gy": "ctv 60gy",
        "SpinalCord": "spinal cord",
        "Bowel_Bag": "bowel bag",
        "Ring_2": "ring 2",
        "Bone_Mandible": "bone mandible",
        "OpticNrv_L": "optic nrv l",
        "Nodule 1": "nodule 1",
    }
    assert {name: clean(name) for name in names} == names


def test_two_different_names_never_become_one_and_no_unknown_word_stays() -> None:
    names = [
        "Tumor",
        "Tumor Meier",
        "Tumor Schmidt",
        "Tumor c45k_Calc",
        "Meier",
        "Schmidt",
        "肝臓",
        "脾臓",
        "GTV-x",
    ]
    cleaned = [clean(name) for name in names]
    assert len(set(cleaned)) == len(names)
    text = " ".join(cleaned)
    assert not any(word in text for word in ("meier", "schmidt", "c45k", "calc", "肝臓"))
    assert cleaned[1].startswith("tumor ")
    assert cleaned[4].startswith("roi ")


def test_a_name_is_the_same_in_every_file_and_its_code_another_at_another_site() -> None:
    assert clean("Lung_L") == clean("lung l") == clean("LUNG-L")
    assert clean("Tumor Meier") == clean("TUMOR_MEIER")
    assert clean("Tumor Meier") != clean("Tumor Meier", SiteSecret(b"another site's secret"))
    assert clean("") == clean(" - ") == ""
