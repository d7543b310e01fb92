"""Makes the sample hospitals again, byte for byte: `python sample_data/make.py [OTHER_FOLDER]`.

Nothing here was ever a patient. A body is a few ellipsoids in millimetres, a hospital is a scanner (grid,
orientation, noise, gain), a tissue table and a kind of lesion; each patient draws from a generator seeded by
hospital and number. The README beside this file says what each hospital is meant to teach.

To add a hospital, add an entry to `HOSPITALS`, run this file, and list the hospital in README.md.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

SEED = 20240229

# The edge over which one tissue becomes the next, in mm: about half a voxel, the partial volume of a real
# scanner.
EDGE_MM = 1.2

# The crop is a box of the upper abdomen around the liver; all positions are RAS mm from its centre.
CROP_MM = (112.0, 112.0, 104.0)


@dataclass(frozen=True)
class Tissues:
    """Mean intensities of one contrast; HU for CT, the scanner's own units for MR."""

    fat: float
    muscle: float
    liver: float
    bone: float
    vessel: float
    kidney: float
    gallbladder: float
    lesion: float  # added to the liver's


# Lesions are brighter than the liver everywhere. What else is bright differs: bone; bone and kidneys; kidneys
# alone; or bone, with fat about as bright as a pale lesion. A model of one hospital takes the others' bright
# things for lesions.
CT_ARTERIAL = Tissues(
    fat=-100, muscle=35, liver=62, bone=260, vessel=72, kidney=70, gallbladder=25, lesion=90
)
CT_PORTAL = Tissues(
    fat=-100, muscle=50, liver=95, bone=250, vessel=108, kidney=235, gallbladder=15, lesion=75
)
MR_T2 = Tissues(fat=390, muscle=170, liver=250, bone=650, vessel=205, kidney=410, gallbladder=440, lesion=320)
MR_T1 = Tissues(fat=130, muscle=250, liver=360, bone=210, vessel=400, kidney=850, gallbladder=170, lesion=240)


@dataclass(frozen=True)
class Contrast:
    """One way a hospital images: modality, tissues, noise and shading."""

    modality: str  # CT or MR
    scanner: str
    tissues: Tissues
    noise: float  # standard deviation, in the image's units
    bias: float  # largest departure of the shading from 1; 0 for CT


@dataclass(frozen=True)
class Hospital:
    """One hospital: its grid, its contrasts, its patients and its lesions."""

    name: str
    form: str  # "dicom" or "nifti"
    label: str  # "seg" or "nifti"
    axes: str  # where i, j and k grow to, such as "LPS"
    spacing_mm: tuple[float, float, float]
    oblique_deg: float
    contrasts: tuple[Contrast, ...]
    radius_mm: tuple[float, float]
    diseased: int  # patients with lesions
    healthy: int
    held_out: bool = False


HOSPITALS = (
    Hospital(
        "north",
        "dicom",
        "seg",
        "LPS",
        (2.75, 2.75, 4.0),
        0.0,
        (Contrast("CT", "Synthetic CT 64", CT_ARTERIAL, 14.0, 0.0),),
        (11.5, 15.0),
        11,
        5,
    ),
    Hospital(
        "east",
        "dicom",
        "nifti",
        "PIR",
        (2.5, 2.5, 3.5),
        0.0,
        (Contrast("MR", "Synthetic MR 1.5T", MR_T2, 22.0, 0.22),),
        (13.0, 18.0),
        9,
        7,
    ),
    Hospital(
        "south",
        "nifti",
        "nifti",
        "RAS",
        (3.0, 3.0, 3.0),
        0.0,
        (Contrast("CT", "Synthetic CT 16", CT_PORTAL, 14.0, 0.0),),
        (13.0, 18.0),
        8,
        8,
    ),
    Hospital(
        "west",
        "nifti",
        "nifti",
        "ASL",
        (2.5, 3.25, 3.0),
        6.0,
        (Contrast("MR", "Synthetic MR 3T", MR_T1, 28.0, 0.22),),
        (11.5, 15.0),
        12,
        4,
    ),
    Hospital(
        "university",
        "nifti",
        "nifti",
        "LAS",
        (2.5, 2.5, 3.0),
        -4.0,
        (
            Contrast("CT", "Synthetic CT 128", CT_PORTAL, 15.0, 0.0),
            Contrast("MR", "Synthetic MR 3T research", MR_T2, 24.0, 0.2),
            Contrast("CT", "Synthetic CT 128", CT_ARTERIAL, 16.0, 0.0),
            Contrast("MR", "Synthetic MR 3T research", MR_T1, 28.0, 0.2),
        ),
        (11.5, 18.0),
        12,
        4,
        held_out=True,
    ),
)


def generator(*words: object) -> np.random.Generator:
    """Return the generator that belongs to these words, so that a hospital never changes with another."""
    digest = hashlib.sha256("|".join(map(str, (SEED, *words))).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def uid(*words: object) -> str:
    """Return a UID under 2.25 that always belongs to these words."""
    digest = hashlib.sha256("|".join(map(str, ("uid", SEED, *words))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


# --- anatomy ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ellipsoid:
    """Centre and semi-axes in RAS mm, turned about the z axis."""

    centre: tuple[float, float, float]
    axes: tuple[float, float, float]
    turn_deg: float = 0.0

    def depth_mm(self, points: np.ndarray) -> np.ndarray:
        """Return about how far inside each point lies; points are (..., 3) RAS mm, outside is negative."""
        turned = (points - self.centre) @ Rotation.from_euler("z", self.turn_deg, degrees=True).as_matrix()
        scaled = turned / self.axes
        radius = np.sqrt((scaled**2).sum(-1))
        return (1 - radius) * min(self.axes)


@dataclass(frozen=True)
class Body:
    """One patient's anatomy."""

    liver: Ellipsoid
    muscle: Ellipsoid
    spine: Ellipsoid
    kidneys: tuple[Ellipsoid, ...]
    gallbladder: Ellipsoid
    vessels: tuple[tuple[np.ndarray, np.ndarray, float], ...]  # start, end, radius, in mm
    lesions: tuple[Ellipsoid, ...]


def draw_body(rng: np.random.Generator, radius_mm: tuple[float, float], diseased: bool) -> Body:
    """Return an anatomy: organs vary a few mm in place and a tenth in size."""

    def about(centre: tuple, axes: tuple, place: float = 3.0, turn: float = 10.0) -> Ellipsoid:
        moved = np.asarray(centre) + rng.normal(0, place, 3).clip(-2 * place, 2 * place)
        sized = np.asarray(axes) * rng.uniform(0.92, 1.08, 3)
        return Ellipsoid(tuple(moved), tuple(sized), float(rng.uniform(-turn, turn)))

    liver = about((10, 10, 2), (42, 37, 38))
    muscle = about((0, 0, 0), (66, 62, 90), turn=0)
    spine = about((-22, -46, 0), (12, 11, 80), place=2)
    kidneys = (about((28, -44, -24), (13, 11, 20)), about((-44, -30, -26), (10, 11, 18)))
    gallbladder = about((14, 44, -36), (8, 9, 12))
    centre, axes = np.asarray(liver.centre), np.asarray(liver.axes)
    vessels = []
    for _ in range(3):
        start = centre + rng.normal(0, 0.15, 3) * axes
        direction = rng.normal(0, 1, 3)
        end = start + direction / np.linalg.norm(direction) * axes * 0.9
        vessels.append((start, end, float(rng.uniform(1.8, 3.2))))
    lesions: list[Ellipsoid] = []
    wanted = int(rng.integers(1, 4)) if diseased else 0
    while len(lesions) < wanted:
        radius = float(rng.uniform(*radius_mm))
        direction = rng.normal(0, 1, 3)
        # Wholly inside the liver, and clear of the lesions before it.
        reach = rng.uniform(0, 1) ** (1 / 3) * (axes - radius * 1.15)
        place = centre + direction / np.linalg.norm(direction) * reach
        semi = radius * rng.uniform(0.85, 1.15, 3)
        if all(np.linalg.norm(place - other.centre) > radius + max(other.axes) + 4 for other in lesions):
            lesions.append(Ellipsoid(tuple(place), tuple(semi), float(rng.uniform(0, 180))))
        elif rng.uniform() < 0.05:  # crowded: fewer lesions are fine, one is enough
            wanted = len(lesions)
    return Body(liver, muscle, spine, kidneys, gallbladder, tuple(vessels), tuple(lesions))


def inside(depth_mm: np.ndarray) -> np.ndarray:
    """Return the share of a voxel that lies inside, from 0 to 1."""
    return 1 / (1 + np.exp(-np.clip(depth_mm / EDGE_MM * 2.5, -30, 30)))


def tube_depth_mm(points: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float) -> np.ndarray:
    """Return how far inside a tube each point lies, in mm."""
    along = end - start
    place = np.clip(((points - start) @ along) / (along @ along), 0, 1)
    return radius - np.linalg.norm(points - (start + place[..., None] * along), axis=-1)


def image(body: Body, points: np.ndarray, contrast: Contrast, rng: np.random.Generator) -> np.ndarray:
    """Return the intensities at points (X, Y, Z, 3) of RAS mm, with texture, shading and noise."""
    t = contrast.tissues
    # Patients differ a little in how much contrast agent or signal an organ shows.
    vary = {name: float(rng.normal(0, 0.05)) for name in ("liver", "kidney", "muscle", "lesion")}
    liver = t.liver * (1 + vary["liver"])
    volume = np.full(points.shape[:-1], t.fat, np.float64)
    parts = [
        (inside(body.muscle.depth_mm(points)), t.muscle * (1 + vary["muscle"])),
        (inside(body.spine.depth_mm(points)), t.bone),
        *((inside(kidney.depth_mm(points)), t.kidney * (1 + vary["kidney"])) for kidney in body.kidneys),
        (inside(body.gallbladder.depth_mm(points)), t.gallbladder),
        (inside(body.liver.depth_mm(points)), liver),
        *((inside(tube_depth_mm(points, *vessel)), t.vessel) for vessel in body.vessels),
        *((inside(x.depth_mm(points)), liver + t.lesion * (1 + 2 * vary["lesion"])) for x in body.lesions),
    ]
    for share, value in parts:
        volume += share * (value - volume)
    shape = volume.shape
    texture = gaussian_filter(rng.normal(0, 1, shape), 1.5)
    volume += texture / texture.std() * contrast.noise * 0.5
    if contrast.bias:
        scaled = points / (np.asarray(CROP_MM) / 2)
        slope, bend = rng.normal(0, 1, 3), rng.normal(0, 1, 3)
        field = scaled @ slope + (scaled**2) @ bend
        field -= field.mean()
        volume *= 1 + contrast.bias * field / np.abs(field).max()
    noise = rng.normal(0, contrast.noise, (2, *shape))
    if contrast.modality == "MR":  # the magnitude of a complex signal: Rician, never negative
        volume = np.hypot(np.maximum(volume, 0) + noise[0], noise[1])
        return volume * rng.uniform(0.6, 1.8)  # the receiver's gain differs from scan to scan
    return volume + noise[0]


def mask(body: Body, points: np.ndarray) -> np.ndarray:
    """Return 1 where a point lies in a lesion."""
    found = np.zeros(points.shape[:-1], bool)
    for lesion in body.lesions:
        found |= lesion.depth_mm(points) > 0
    return found.astype(np.uint8)


# --- grids --------------------------------------------------------------------------------------------------


def grid(hospital: Hospital, rng: np.random.Generator) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return shape and RAS affine: the hospital's axes and spacing around a crop that lies somewhere in the
    scanner.
    """
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    turn = Rotation.from_euler("z", hospital.oblique_deg, degrees=True).as_matrix()
    affine = np.eye(4)
    shape = []
    for axis, (letter, step) in enumerate(zip(hospital.axes, hospital.spacing_mm, strict=True)):
        world, sign = letters[letter]
        affine[:3, axis] = turn[:, world] * sign * step
        shape.append(round(CROP_MM[world] / step))
    scanner = np.round(rng.uniform(-60, 60, 3), 2)
    affine[:3, 3] = scanner - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return (shape[0], shape[1], shape[2]), affine


def points_of(shape: tuple[int, int, int], affine: np.ndarray) -> np.ndarray:
    """Return every voxel's position relative to the crop's centre, (X, Y, Z, 3) RAS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return (index - (np.asarray(shape) - 1) / 2) @ affine[:3, :3].T


# --- files --------------------------------------------------------------------------------------------------


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a .nii.gz whose bytes hold no time and no name."""
    found = nib.Nifti1Image(array, affine)
    found.header.set_xyzt_units("mm")
    found.set_sform(affine, code=1)
    found.set_qform(affine, code=1)
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=9, mtime=0) as file,
    ):
        file.write(found.to_bytes())


@dataclass(frozen=True)
class Visit:
    """One imaging visit: what a row of cases.csv says."""

    case: str
    patient: str
    number: int
    visit: int
    diseased: bool
    split: str
    sex: str
    age: int
    contrast: Contrast


def write_dicom(
    folder: Path, hospital: Hospital, visit: Visit, stored: np.ndarray, affine: np.ndarray
) -> list:
    """Write one series, one file per slice, and return its datasets in the order of k.

    `stored` is (I, J, K) as stored; i runs along a row of pixels, j down the rows, k from slice to slice.
    Files are numbered against the order of positions, as scanners do when they please.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

    ras_to_lps = np.diag([-1.0, -1.0, 1.0, 1.0])
    lps = ras_to_lps @ affine
    step = np.linalg.norm(lps[:3, :3], axis=0)
    row, column = lps[:3, 0] / step[0], lps[:3, 1] / step[1]
    ct = visit.contrast.modality == "CT"
    day = f"2023{1 + visit.number % 12:02d}{1 + visit.number * 7 % 28 + visit.visit:02d}"
    study, series = uid(visit.case, "study"), uid(visit.case, "series")
    folder.mkdir(parents=True)
    slices = []
    for k in range(stored.shape[2]):
        number = stored.shape[2] - k
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"] if ct else ["ORIGINAL", "PRIMARY", "OTHER"]
        ds.SOPClassUID = CTImageStorage if ct else MRImageStorage
        ds.SOPInstanceUID = uid(visit.case, "slice", k)
        ds.StudyDate = ds.SeriesDate = ds.AcquisitionDate = ds.ContentDate = day
        ds.StudyTime = ds.SeriesTime = ds.AcquisitionTime = ds.ContentTime = "080000"
        ds.AccessionNumber = ""
        ds.Modality = visit.contrast.modality
        ds.Manufacturer = "medfed sample data"
        ds.ManufacturerModelName = visit.contrast.scanner
        ds.InstitutionName = f"Synthetic hospital {hospital.name}"
        ds.ReferringPhysicianName = ""
        ds.StudyDescription = "synthetic upper abdomen"
        ds.SeriesDescription = f"synthetic {visit.contrast.modality}"
        ds.PatientName = f"Synthetic^{visit.patient}"
        ds.PatientID = visit.patient
        ds.PatientBirthDate = ""
        ds.PatientSex = visit.sex
        ds.PatientAge = f"{visit.age:03d}Y"
        ds.BodyPartExamined = "ABDOMEN"
        ds.SliceThickness = f"{step[2]:g}"
        if ct:
            ds.KVP = "120"
        else:
            ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions = "SE", "SK", ""
            ds.MRAcquisitionType = "2D"
            ds.RepetitionTime, ds.EchoTime, ds.EchoTrainLength = "4000", "90", "16"
            ds.MagneticFieldStrength = "1.5"
        ds.SoftwareVersions = "1"
        ds.PatientPosition = "HFS"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = study, series
        ds.StudyID, ds.SeriesNumber, ds.AcquisitionNumber, ds.InstanceNumber = "1", "1", "1", str(number)
        ds.ImagePositionPatient = [f"{x:.6g}" for x in (lps @ [0, 0, k, 1])[:3]]
        ds.ImageOrientationPatient = [f"{x:g}" for x in (*(row + 0.0), *(column + 0.0))]
        ds.FrameOfReferenceUID = uid(visit.case, "frame of reference")
        ds.PositionReferenceIndicator = ""
        ds.SamplesPerPixel = 1
        ds.PhotometricInterpretation = "MONOCHROME2"
        ds.Rows, ds.Columns = stored.shape[1], stored.shape[0]
        ds.PixelSpacing = [f"{step[1]:g}", f"{step[0]:g}"]
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
        if ct:
            ds.WindowCenter, ds.WindowWidth = "60", "400"
            ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1024", "0.5", "HU"
        ds.PixelData = stored[:, :, k].T.astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.file_meta.ImplementationClassUID = uid("implementation")
        ds.file_meta.ImplementationVersionName = "MEDFED_SAMPLE"
        ds.save_as(folder / f"IM{number:04d}.dcm", enforce_file_format=True)
        slices.append(ds)
    return slices


def write_seg(path: Path, visit: Visit, slices: list, label: np.ndarray) -> None:
    """Write the lesion mask (I, J, K) as a DICOM SEG that references the series.

    A healthy patient's SEG has every frame, all zero: there it says "looked at and nothing found".
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    segment = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="lesion",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=codes.SCT.Lesion,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.MANUAL,
        tracking_uid=uid(visit.case, "lesion"),
        tracking_id="lesion",
    )
    found = hd.seg.Segmentation(
        source_images=slices,
        pixel_array=np.ascontiguousarray(label.transpose(2, 1, 0)),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        series_instance_uid=uid(visit.case, "seg series"),
        series_number=2,
        sop_instance_uid=uid(visit.case, "seg"),
        instance_number=1,
        manufacturer="medfed sample data",
        manufacturer_model_name="make.py",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=bool(label.any()),
    )
    # highdicom draws this one UID and asks the clock for these times; ours must be the same every time.
    organisation = uid(visit.case, "dimensions")
    found.DimensionOrganizationSequence[0].DimensionOrganizationUID = organisation
    for item in found.DimensionIndexSequence:
        item.DimensionOrganizationUID = organisation
    for name in ("SeriesDate", "ContentDate", "InstanceCreationDate", "StructureSetDate"):
        if name in found:
            setattr(found, name, slices[0].StudyDate)
    for name in ("SeriesTime", "ContentTime", "InstanceCreationTime", "StructureSetTime"):
        if name in found:
            setattr(found, name, "090000")
    for item in found.get("ContributingEquipmentSequence", []):
        item.ContributionDateTime = slices[0].StudyDate + "090000"
    found.file_meta.ImplementationClassUID = uid("implementation")
    found.file_meta.ImplementationVersionName = "MEDFED_SAMPLE"
    found.save_as(path, enforce_file_format=True)


def visits_of(hospital: Hospital) -> list[Visit]:
    """Return the hospital's visits: one per patient, and a second one for two patients."""
    rng = generator(hospital.name, "patients")
    total = hospital.diseased + hospital.healthy
    diseased = np.zeros(total, bool)
    diseased[rng.permutation(total)[: hospital.diseased]] = True
    split = ["train"] * total
    if hospital.held_out:
        split = ["test"] * total
    else:
        sick, well = rng.permutation(np.flatnonzero(diseased)), rng.permutation(np.flatnonzero(~diseased))
        for name, members in (("val", (*sick[:2], well[0])), ("test", (*sick[2:4], well[1]))):
            for member in members:
                split[member] = name
    repeated = set(
        rng.permutation([i for i in range(total) if split[i] in ("train",) or hospital.held_out])[:2].tolist()
    )
    found = []
    for number in range(total):
        sex, age = ("F" if rng.uniform() < 0.5 else "M"), int(rng.integers(28, 86))
        for visit in range(2 if number in repeated else 1):
            contrast = hospital.contrasts[number % len(hospital.contrasts)]
            patient = f"{hospital.name[0].upper()}{number + 1:02d}"
            case = f"{hospital.name}-{number + 1:02d}" + ("" if visit == 0 else "b")
            found.append(
                Visit(case, patient, number, visit, bool(diseased[number]), split[number], sex, age, contrast)
            )
    return found


def make_hospital(hospital: Hospital, folder: Path) -> None:
    """Write one hospital's images, labels and cases.csv below `folder`."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    rows = []
    for visit in visits_of(hospital):
        rng = generator(visit.case)
        body = draw_body(rng, hospital.radius_mm, visit.diseased)
        shape, affine = grid(hospital, rng)
        points = points_of(shape, affine)
        values, label = image(body, points, visit.contrast, rng), mask(body, points)
        if hospital.form == "dicom":
            ct = visit.contrast.modality == "CT"
            stored = np.clip(np.rint((values + 1024) / 0.5) if ct else np.rint(values), 0, 4095)
            slices = write_dicom(folder / "images" / visit.case, hospital, visit, stored, affine)
            image_path = f"images/{visit.case}"
        else:
            image_path = f"images/{visit.case}.nii.gz"
            write_nifti(folder / image_path, np.rint(values).astype(np.int16), affine)
        label_path = f"labels/{visit.case}" + (".dcm" if hospital.label == "seg" else ".nii.gz")
        if hospital.label == "seg":
            write_seg(folder / label_path, visit, slices, label)
        else:
            write_nifti(folder / label_path, label, affine)
        rows.append(
            (
                visit.case,
                visit.patient,
                image_path,
                label_path,
                int(visit.diseased),
                visit.split,
                visit.sex,
                visit.age,
                visit.contrast.scanner,
            )
        )
    columns = ("case", "patient", "image", "label", "target", "split", "sex", "age", "scanner")
    write_csv(folder / "cases.csv", columns, rows)


def write_csv(path: Path, columns: tuple[str, ...], rows: list[tuple]) -> None:
    """Write a CSV with Unix line ends."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


# --- tables -------------------------------------------------------------------------------------------------

# A hospital: patients, mean age, share of men, the intercept of its disease, what it seldom measures, held
# out.
TABLES = (
    ("north", 220, 54.0, 0.68, -0.2, {"cholesterol": 0.02}, False),
    ("east", 140, 47.0, 0.72, -1.0, {"vessels": 0.6, "thal": 0.5}, False),
    ("south", 90, 55.0, 0.9, 1.2, {"cholesterol": 0.7}, False),
    ("west", 170, 60.0, 0.95, 0.6, {"slope": 0.4, "vessels": 0.5}, False),
    ("university", 160, 53.0, 0.65, 0.1, {"thal": 0.2, "vessels": 0.2}, True),
)

PAIN = ("typical", "atypical", "nonanginal", "none")
SLOPE = ("up", "flat", "down")
THAL = ("normal", "fixed", "reversible")
TABLE_COLUMNS = (
    "patient",
    "age",
    "sex",
    "chest_pain",
    "blood_pressure",
    "cholesterol",
    "heart_rate",
    "angina",
    "st_depression",
    "slope",
    "vessels",
    "thal",
    "disease",
    "split",
)


def make_table(
    path: Path,
    name: str,
    count: int,
    mean_age: float,
    men: float,
    intercept: float,
    missing: dict,
    held_out: bool,
) -> None:
    """Write one hospital's table: features, categories, missing cells and a target."""
    rng = generator("table", name)
    rows = []
    order = rng.permutation(count)
    for number in range(count):
        age = float(np.clip(rng.normal(mean_age, 9), 28, 80))
        man = int(rng.uniform() < men)
        ill = rng.normal()  # what the features and the disease share
        pain = PAIN[int(np.clip(np.rint(1.4 + 0.9 * ill + rng.normal(0, 0.8)), 0, 3))]
        pressure = rng.normal(126 + 0.3 * (age - 50) + 3 * ill, 14)
        cholesterol = rng.normal(235 + 0.6 * (age - 50) + 6 * ill, 40)
        rate = rng.normal(158 - 0.9 * (age - 50) - 9 * ill, 15)
        angina = int(rng.uniform() < 1 / (1 + math.exp(0.8 - 1.1 * ill)))
        depression = max(0.0, rng.normal(0.8 + 0.7 * ill, 0.7))
        slope = SLOPE[int(np.clip(np.rint(0.7 + 0.5 * ill + rng.normal(0, 0.5)), 0, 2))]
        vessels = int(np.clip(np.floor(rng.normal(0.5 + 0.6 * ill + 0.03 * (age - 50), 0.8)), 0, 3))
        thal = THAL[int(np.clip(np.rint(0.8 + 0.7 * ill + 0.3 * man + rng.normal(0, 0.6)), 0, 2))]
        logit = intercept - 0.6 + 1.9 * ill + 0.05 * (age - 53) + 0.8 * man
        disease = int(rng.uniform() < 1 / (1 + math.exp(-logit)))
        share = order[number] / count
        split = "test" if held_out else "train" if share < 0.7 else "val" if share < 0.85 else "test"
        cells = {
            "patient": f"{name[0].upper()}T{number + 1:03d}",
            "age": f"{age:.0f}",
            "sex": "M" if man else "F",
            "chest_pain": pain,
            "blood_pressure": f"{pressure:.0f}",
            "cholesterol": f"{cholesterol:.0f}",
            "heart_rate": f"{rate:.0f}",
            "angina": angina,
            "st_depression": f"{depression:.1f}",
            "slope": slope,
            "vessels": vessels,
            "thal": thal,
            "disease": disease,
            "split": split,
        }
        for column in TABLE_COLUMNS[1:-2]:
            if rng.uniform() < missing.get(column, 0.01):
                cells[column] = ""
        rows.append(tuple(cells[column] for column in TABLE_COLUMNS))
    write_csv(path, TABLE_COLUMNS, rows)


# A hospital: patients, mean age, mean stage of 0 to 3, months its patients are followed at most, held out.
SURVIVAL = (
    ("north", 120, 62.0, 1.2, 84.0, False),
    ("east", 80, 57.0, 0.7, 60.0, False),
    ("south", 90, 66.0, 1.7, 48.0, False),
    ("west", 100, 64.0, 1.3, 72.0, False),
    ("university", 160, 61.0, 1.4, 72.0, True),
)

STAGE = ("I", "II", "III", "IV")
GRADE = ("low", "intermediate", "high")
SURVIVAL_COLUMNS = (
    "patient",
    "age",
    "sex",
    "stage",
    "grade",
    "diameter_mm",
    "nodes",
    "haemoglobin",
    "albumin",
    "performance",
    "months",
    "died",
    "split",
)
# Deaths per month of a patient of 62 with a small tumour of stage I, and how their hazard grows
# over the years.
HAZARD, SHAPE = 0.0025, 1.15


def make_survival(
    path: Path, name: str, count: int, mean_age: float, mean_stage: float, followed: float, held_out: bool
) -> None:
    """Write one hospital's table of times from diagnosis to death, or, if alive, to the last visit."""
    rng = generator("survival", name)
    rows = []
    order = rng.permutation(count)
    for number in range(count):
        age = float(np.clip(rng.normal(mean_age, 10), 30, 90))
        man = int(rng.uniform() < 0.55)
        stage = int(np.clip(np.rint(rng.normal(mean_stage, 1.0)), 0, 3))
        grade = int(np.clip(np.rint(0.5 + 0.35 * stage + rng.normal(0, 0.6)), 0, 2))
        diameter = float(np.clip(rng.normal(20 + 9 * stage, 8), 5, 95))
        nodes = int(rng.poisson(0.2 + 1.1 * stage))
        haemoglobin = float(np.clip(rng.normal(13.6 + 0.6 * man - 0.4 * stage, 1.3), 7, 18))
        albumin = float(np.clip(rng.normal(41 - 1.2 * stage, 3.5), 22, 52))
        performance = int(np.clip(np.rint(rng.normal(0.5 + 0.3 * stage, 0.7)), 0, 3))
        risk = 0.035 * (age - 62) + 0.45 * stage + 0.25 * grade + 0.012 * (diameter - 30) + 0.06 * nodes
        risk += 0.15 * man - 0.12 * (haemoglobin - 13.6) - 0.05 * (albumin - 40) + 0.35 * performance
        # Weibull's times: hazards stay in proportion, as Cox's model has them.
        death = (-math.log(1 - rng.uniform()) / (HAZARD * math.exp(risk))) ** (1 / SHAPE)
        last = min(followed, rng.exponential(1.2 * followed))
        share = order[number] / count
        cells = {
            "patient": f"{name[0].upper()}S{number + 1:03d}",
            "age": f"{age:.0f}",
            "sex": "M" if man else "F",
            "stage": STAGE[stage],
            "grade": GRADE[grade],
            "diameter_mm": f"{diameter:.0f}",
            "nodes": nodes,
            "haemoglobin": f"{haemoglobin:.1f}",
            "albumin": f"{albumin:.0f}",
            "performance": performance,
            "months": f"{max(min(death, last), 0.1):.1f}",
            "died": int(death <= last),
            "split": "test" if held_out else "train" if share < 0.6 else "val" if share < 0.7 else "test",
        }
        for column in ("grade", "haemoglobin", "albumin"):
            if rng.uniform() < 0.04:
                cells[column] = ""
        rows.append(tuple(cells[column] for column in SURVIVAL_COLUMNS))
    write_csv(path, SURVIVAL_COLUMNS, rows)


def make(folder: Path) -> None:
    """Write every hospital below `folder`, replacing those that are there."""
    for hospital in HOSPITALS:
        shutil.rmtree(folder / hospital.name, ignore_errors=True)
        make_hospital(hospital, folder / hospital.name)
    for tables, write, below in ((TABLES, make_table, "tabular"), (SURVIVAL, make_survival, "survival")):
        shutil.rmtree(folder / below, ignore_errors=True)
        (folder / below).mkdir(parents=True)
        for table in tables:
            write(folder / below / f"{table[0]}.csv", *table)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
