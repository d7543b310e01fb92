"""The `data:` section of a study: how every site prepares its own images or tables.

There are two kinds, `images` (the default) and `table`, and those of `datamodules/`. Every site applies the
same settings to its own data; nothing that these settings compute from a site's data leaves that site.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from medfed.data.class_names import words_of
from medfed.data.datamodules import DataModule
from medfed.data.identifiers import is_unmistakable
from medfed.data.image_transforms import Transform
from medfed.data.layouts import Layout, layout_of
from medfed.data.normalise._normalise import Normalise
from medfed.data.normalise.percentile import Percentile
from medfed.data.reading import Reading
from medfed.data.splits import DEFAULT_FRACTIONS, Fold, check_fractions
from medfed.errors import DataError
from medfed.registry import union

if TYPE_CHECKING:
    AnyNormalise = Normalise
    AnyLayout = Layout
    AnyTransform = Transform
    AnyDataModule = DataModule
else:
    AnyNormalise = union("normalise")
    AnyLayout = union("layouts")
    AnyTransform = union("transforms")
    AnyDataModule = union("datamodules")

Millimetres = Annotated[float, Meta(gt=0, le=100)]
Voxels = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=1)]
ChannelNames = Annotated[tuple[Annotated[str, Meta(min_length=1, max_length=40)], ...], Meta(min_length=1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
_Number = TypeVar("_Number")
# One number for each of two or three axes.
PerAxis = Annotated[tuple[_Number, ...], Meta(min_length=2, max_length=3)]

# The patient's axis along which a letter of an orientation points: left-right, front-back, up-down.
PATIENT_AXES = {"L": "x", "R": "x", "P": "y", "A": "y", "I": "z", "S": "z"}

# The axis of the patient, by a letter of an orientation, across which each kind of slice is cut.
_ACROSS = {"axial": "SI", "coronal": "AP", "sagittal": "LR"}


class Augment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The random augmentation of a training image, drawn anew at each visit.

    flip: the probability of mirroring each of the axes in `flip_axes`.  flip_axes: `x` is left-right, `y`
    front-back, `z` up-down, in the study's orientation; an empty list if sides matter.  rotate: the
    probability of a rotation about all axes by up to `rotate_deg`.  scale: the largest relative change of
    size that goes with it, 0.1 for a tenth.  intensity: the probability of changing brightness and contrast
    by up to a tenth of the normalised range.  noise: the probability of Gaussian noise of standard deviation
    `noise_sd`, in normalised units.  blur: the probability of blurring by up to a voxel.
    """

    flip: Probability = 0.5
    flip_axes: tuple[Literal["x", "y", "z"], ...] = ("x", "y", "z")
    rotate: Probability = 0.2
    rotate_deg: Annotated[float, Meta(ge=0, le=180)] = 15.0
    scale: Annotated[float, Meta(ge=0, le=0.5)] = 0.1
    intensity: Probability = 0.3
    noise: Probability = 0.15
    noise_sd: Annotated[float, Meta(ge=0)] = 0.05
    blur: Probability = 0.0


class Unreadable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of its cases a site leaves out because they cannot be used.

    skip: leave such cases out and go on; false refuses the folder at the first.  max_share: the largest share
    of the site's cases that may be left out, rounded up to a whole case: one bad file never costs a hospital.
    """

    skip: bool = True
    max_share: Fraction = 0.05


class PlanSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings that are computed from all training hospitals' fingerprints, before the first round.

    min_patients: counts of fewer patients (or voxels) than this are withheld; a hospital with fewer training
    patients gives no fingerprint.  intensity_bins: the bins of the intensity histograms: `hu` for CT,
    `relative` for all other images.  voxels: the most voxels that a patch may have.  normalise: the proposed
    normalisation: `auto` is the fingerprint's percentiles, mean and standard deviation for CT and `zscore`
    otherwise; `nyul` is the federation's histogram landmarks.
    """

    min_patients: Annotated[int, Meta(ge=1)] = 10
    intensity_bins: Literal["hu", "relative"] = "relative"
    voxels: Annotated[int, Meta(ge=512)] = 96**3
    normalise: Literal["auto", "zscore", "nyul"] = "auto"


class FindingWords(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column that names the findings of an image in words, for several findings per image.

    column: the column of the site's table of cases.  separator: what stands between two findings of a cell.
    none: the word that says that nothing was found; an empty cell says that the image was not labelled.
    ignored: other findings that the column may name and that the study does not predict; any further word is
    refused.
    """

    column: str
    separator: Annotated[str, Meta(min_length=1)] = "|"
    none: str = "no finding"
    ignored: tuple[str, ...] = ()


class Images(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="images"
):
    """Images from a hospital's folder.

    spatial_dims: 3 for volumes; 2 for radiographs, photographs and other single planes, and for the slices
    of volumes. In 2D `spacing_mm` and `patch` have two numbers and are given.
    slices: in 2D, the slices of volumes that a segmentation is trained on: `axial`, `coronal` or `sagittal`.
    Their distance stays as it is; volumes are predicted slice by slice and measured whole. null takes images
    of one plane only, along the columns and rows in which they are stored.
    spacing_mm: the voxel size that every image is resampled to, along x, y, z; `native` keeps each image's
    own. In 2D, the pixel size of a plane along x, y; `fit` scales each plane into the patch, its proportions
    kept. Pictures without a size in mm (PNG, JPEG) take `native` or `fit`.
    orientation: the directions in which x, y and z grow: `RAS` is the patient's right, front and head. In 2D
    those of the slices of volumes.
    patch: the voxels along x, y, z (in 2D, the pixels along x, y) that training sees at once. Segmentation
    crops patches, classification crops or pads the whole image to it. null trains on whole images: then all
    must have one size, or `train.batch` must be 1.
    samples: the patches that each visit takes from a volume (segmentation).
    foreground: the share of patches whose centre is in a labelled voxel, if there is one (segmentation).
    balance: which labelled voxel: `voxels` takes each as often, so that large structures are seen most;
    `classes` first draws one of the image's structures, each as often.
    normalise: how intensities are normalised, after resampling; see `medfed kinds normalise`.
    channels: the channels of every image, by name in the study's order, such as `[t1c, t2f]`: a site whose
    folder names its channels gives these, in this order, or is refused. A number takes images whose channels
    nothing names; then only the order of the files says which is which.
    findings: for several findings per image, the column that names them in words; without it each finding has
    a column of its own, of 1, 0, or nothing where it was not labelled.
    augment: the random augmentation in training; `none` for no augmentation.
    transforms: further changes of images, in this order: after their normalisation, or at random after the
    augmentation in training; see `medfed kinds transforms`.
    cache: where prepared volumes are kept: `memory`, `disk` (in `.medfed` inside the site's data folder,
    unless its site file or MEDFED_CACHE names another), or `none`. On several GPUs each process reads and
    keeps every training volume in its own memory; `disk` reads each once, and all processes share it.
    workers: the number of processes that prepare batches, 0 for none.
    fractions: the share of patients in train, val and test, if the folder gives no splits.
    fold: one fold of a cross-validation, such as {number: 1, of: 5}: a fifth of each hospital's patients is
    tested, the others train and validate as `fractions` share them, and patients whose given split is test
    are set aside. `medfed train --folds 5` trains all five.
    unreadable: how many cases a site of a simulation leaves out because they cannot be used; across
    hospitals each site's own policy decides.
    layout: how the cases lie in every site's folder, by name or with settings, such as `class_folders`; null
    takes the only layout for which a folder speaks. A site file's `layout` goes before it.
    read: how images are read where several results are correct, such as `read: {uneven: resample}`. A site
    file's `read` may be stricter.
    resample_labels: move a label that is on another grid onto its image's, each voxel from the nearest one;
    false refuses such a case.
    resample_channels: interpolate channels that are on another grid onto the first one's; false refuses such
    a case. Both are told.
    table: columns of a table beside the images, such as age and sex, that a classifier learns from, too.
    plan: compute spacing_mm, patch and normalise from all hospitals' merged fingerprint; `given` uses the
    values given here.
    """

    spatial_dims: Literal[2, 3] = 3
    slices: Literal["axial", "coronal", "sagittal"] | None = None
    spacing_mm: PerAxis[Millimetres] | Literal["native", "fit"] = (1.0, 1.0, 1.0)
    orientation: Annotated[str, Meta(pattern="^[LRAPSI]{3}$")] = "RAS"
    patch: PerAxis[Voxels] | None = (96, 96, 96)
    samples: Count = 1
    foreground: Probability = 0.67
    balance: Literal["voxels", "classes"] = "voxels"
    normalise: AnyNormalise = Percentile()
    channels: Count | ChannelNames = 1
    findings: FindingWords | None = None
    augment: Augment | Literal["none"] = Augment()
    transforms: tuple[AnyTransform, ...] = ()
    cache: Literal["memory", "disk", "none"] = "memory"
    workers: Annotated[int, Meta(ge=0)] = 0
    fractions: tuple[Fraction, Fraction, Fraction] = DEFAULT_FRACTIONS
    fold: Fold | None = None
    unreadable: Unreadable = Unreadable()
    layout: AnyLayout | str | None = None
    read: Reading = Reading()
    resample_labels: bool = False
    resample_channels: bool = False
    table: CaseTable | None = None
    plan: PlanSettings | Literal["given"] = "given"

    def __post_init__(self) -> None:
        if self.layout is not None:
            msgspec.structs.force_setattr(self, "layout", layout_of(self.layout))
        if sorted({"L": "R", "P": "A", "I": "S"}.get(x, x) for x in self.orientation) != ["A", "R", "S"]:
            raise DataError(
                f"orientation is '{self.orientation}'; expected one each of L or R, P or A, I or S, such "
                "as RAS"
            )
        check_fractions(self.fractions)
        if len(set(map(words_of, self.channel_names))) < len(self.channel_names):
            raise DataError(
                "data.channels: two names have the same words (case, spaces, underscores and hyphens do not "
                "count); name each channel once"
            )
        if self.spatial_dims == 2:
            self._check_2d()
        else:
            self._check_3d()

    def _check_2d(self) -> None:
        for name, value, example in (
            ("patch", self.patch, "[256, 256]"),
            ("spacing_mm", self.spacing_mm, "[0.5, 0.5], native or fit"),
        ):
            if isinstance(value, tuple) and len(value) != 2:
                raise DataError(
                    f"data: {name} has {len(value)} numbers (the default is for volumes) and spatial_dims is "
                    f"2; give two, such as {name}: {example}"
                )
        if self.plan != "given":
            raise DataError(
                "data: plan computes the patches of volumes, and spatial_dims is 2; give spacing_mm, patch "
                "and normalise (`medfed new` proposes them), and leave plan out"
            )
        if self.spacing_mm == "fit" and (self.patch is None or self.slices is not None):
            raise DataError(
                "data: spacing_mm: fit scales images of one plane into the patch; give patch and leave "
                "slices out, or give spacing_mm in mm"
            )

    def _check_3d(self) -> None:
        for name, value in (("patch", self.patch), ("spacing_mm", self.spacing_mm)):
            if isinstance(value, tuple) and len(value) != 3:
                raise DataError(
                    f"data: {name} has {len(value)} numbers and spatial_dims is 3; give three, or set "
                    "spatial_dims: 2"
                )
        if self.slices is not None or self.spacing_mm == "fit":
            key = "slices" if self.slices is not None else "spacing_mm: fit"
            raise DataError(f"data: {key} is for planes, and spatial_dims is 3; set spatial_dims: 2")

    @property
    def inputs(self) -> int:
        """The number of channels of every image, which are a network's inputs."""
        return self.channels if isinstance(self.channels, int) else len(self.channels)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The names of the channels in the study's order; empty if it only counts them."""
        return () if isinstance(self.channels, int) else self.channels

    @property
    def axes(self) -> str | None:
        """The directions of a prepared image's X, Y and Z; None for planes that keep their columns and rows.

        In 2D the axis across the slices is the last: the coronal slices of RAS lie along R, S and A.
        """
        if self.spatial_dims == 3:
            return self.orientation
        if self.slices is None:
            return None
        across = _ACROSS[self.slices]
        return "".join(sorted(self.orientation, key=lambda letter: letter in across))

    @property
    def image_letters(self) -> str:
        """The directions in which the axes of an image grow that training sees, such as RAS."""
        # A plane that keeps its columns and rows is flipped along them as x and y.
        return (self.axes or "RA")[: self.spatial_dims]

    @property
    def patient_axes(self) -> tuple[str, ...]:
        """The patient's axis, x, y or z, of each axis of an image that training sees.

        >>> Images(orientation="PIR").patient_axes
        ('y', 'z', 'x')
        >>> Images(spatial_dims=2, spacing_mm="fit", patch=(64, 64)).patient_axes
        ('x', 'y')
        """
        return tuple(PATIENT_AXES[letter] for letter in self.image_letters)

    @property
    def given_layout(self) -> Layout | None:
        """The layout that the study gives, or None."""
        return None if self.layout is None else layout_of(self.layout)


def with_layout(settings: Images, layout: Layout | str | Mapping[str, Any] | None) -> Images:
    """Return settings with a hospital's own layout, if it has one."""
    return settings if layout is None else msgspec.structs.replace(settings, layout=layout_of(layout))


class Table(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="table"
):
    """Rows of a CSV file, one per patient.

    features: the columns to learn from, in this order. Sites must agree, so they are listed and never
    guessed.
    target: the column with the class, 0, 1, ... (classification).
    time, event: the columns with the time to an event or to the last contact, and whether it happened
    (survival).
    categorical: for each feature column of words, its words; each word becomes an input of 0 or 1. A word
    that isn't listed is an error, so that no site's inputs mean something else.
    missing: the treatment of an empty cell of a number: `median` uses that of the site's training rows;
    `drop` omits the row; `keep` leaves it empty, for networks that learn from that (boosted_trees). An empty
    categorical cell has 0 for each of its words.
    indicate: add an input of 0 or 1 for each number feature that says whether its cell was empty.
    standardise: `site` subtracts the mean of the site's own training rows and divides by their standard
    deviation; `fixed` uses `centre` and `scale` instead, the same at every site; `combat` removes the
    differences between hospitals, shrunk over the features (ComBat; it removes every difference in means,
    that between their patients, too); `none` leaves numbers as they are.
    centre, scale: for `fixed` and `combat`, the mean of each number feature over all hospitals, and its
    standard deviation (for `combat` within hospitals).
    patient: the column with the patient's id, which keeps a patient's rows in one split. If the file has no
    column `patient`, medfed recognises the usual headings, such as mrn or subject_id, and says so; another
    heading that is given here must be in the file.
    split: the column with the split; it may be absent from the file.
    ignore: columns that are neither learned from nor used otherwise.
    missing_values: for a feature column, the cells that stand for 'not measured' beside empty ones and the
    usual words, such as {cholesterol: [0], bmi: [-1, 999]}.
    workers: the number of processes that prepare batches, 0 for none.
    fractions: the share of patients in train, val and test, if the file gives no splits.
    fold: one fold of a cross-validation, as of images.
    plan: compute centre and scale from the sums of all hospitals; `given` uses the values given here.
    """

    features: tuple[str, ...]
    target: str | None = None
    time: str | None = None
    event: str | None = None
    categorical: dict[str, tuple[str, ...]] = {}
    missing: Literal["median", "drop", "keep"] = "median"
    indicate: bool = False
    standardise: Literal["site", "fixed", "combat", "none"] = "site"
    centre: dict[str, float] = {}
    scale: dict[str, Annotated[float, Meta(gt=0)]] = {}
    patient: str = "patient"
    split: str = "split"
    ignore: tuple[str, ...] = ()
    missing_values: dict[str, tuple[float | str, ...]] = {}
    workers: Annotated[int, Meta(ge=0)] = 0
    fractions: tuple[Fraction, Fraction, Fraction] = DEFAULT_FRACTIONS
    fold: Fold | None = None
    plan: PlanSettings | Literal["given"] = "given"

    def __post_init__(self) -> None:
        if not self.features:
            raise DataError("data: features is empty; list the columns to learn from")
        if len(set(self.features)) < len(self.features):
            raise DataError("data: features lists a column twice")
        for name in self.categorical:
            if name not in self.features:
                raise DataError(f"data: categorical names '{name}', which is not in features")
        self._check_columns()
        answers = {self.target, self.time, self.event} & set(self.features)
        if answers:
            raise DataError(
                f"data: '{answers.pop()}' is both a feature and the column to predict; a model would only "
                "copy it"
            )
        if (self.time is None) != (self.event is None):
            raise DataError("data: time and event go together; name both columns, or neither")
        if self.standardise in ("fixed", "combat") and self.plan == "given":
            for name in self.numbers:
                if name not in self.centre or name not in self.scale:
                    raise DataError(
                        f"data: standardise is '{self.standardise}' and '{name}' has no centre or no scale; "
                        "give both"
                    )

    def _check_columns(self) -> None:
        """Refuse features that identify patients, and keys about columns that are no features."""
        ids = {self.patient.lower(), self.split.lower()}
        for name in self.features:
            if name.lower() in ids or is_unmistakable(name):
                raise DataError(
                    f"data: features lists '{name}', which says whose a row is; a model would learn patients "
                    "by heart; remove it from features (if it is a measurement, rename the column)"
                )
        for name in self.ignore:
            if name in (*self.features, self.target, self.time, self.event):
                raise DataError(f"data: ignore names '{name}', which the study uses; list it once")
        for name in self.missing_values:
            if name not in self.features:
                raise DataError(f"data: missing_values names '{name}', which is not in features")

    @property
    def numbers(self) -> tuple[str, ...]:
        """The features that are numbers."""
        return tuple(name for name in self.features if name not in self.categorical)

    @property
    def inputs(self) -> int:
        """The number of network inputs: one per number (two with `indicate`) and one per word."""
        return len(self.numbers) * (2 if self.indicate else 1) + sum(map(len, self.categorical.values()))


class CaseTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Columns of a table beside the images, one row per case or per patient, for a classifier.

    features, categorical, missing, indicate, centre, scale, ignore, missing_values: as in a study of tables.
    `missing: drop` leaves a case with an empty number out.
    standardise: `site`, `fixed` or `none`, as in a study of tables; `site` uses the site's training cases.
    case: the column that names the case: its id, or the name of its image's file. If the table has no such
    column, `patient` names the patient, and the row is that of all of the patient's cases; without it, too,
    medfed recognises the usual headings, such as mrn or participant_id, and says so. A name other than the
    default must be in the table.
    file: the table's name in every site's folder; null takes the only one of clinical.csv, clinical.tsv,
    clinical.xlsx and participants.tsv, or else cases.csv. A site file's `table` goes before it.
    hidden: the widths of the small network over the columns; its output stands beside the image's features.
    plan: compute centre and scale of `standardise: fixed` from the sums of all hospitals' training cases;
    `given` uses the values given here. Of `data.plan`, only min_patients counts.
    """

    features: tuple[str, ...]
    categorical: dict[str, tuple[str, ...]] = {}
    missing: Literal["median", "drop"] = "median"
    indicate: bool = False
    standardise: Literal["site", "fixed", "none"] = "site"
    centre: dict[str, float] = {}
    scale: dict[str, Annotated[float, Meta(gt=0)]] = {}
    ignore: tuple[str, ...] = ()
    missing_values: dict[str, tuple[float | str, ...]] = {}
    case: str = "case"
    patient: str = "patient"
    file: str | None = None
    hidden: tuple[Count, ...] = (16,)
    plan: PlanSettings | Literal["given"] = "given"

    def __post_init__(self) -> None:
        try:
            inputs = self.as_table.inputs
        except DataError as error:
            raise DataError(of_case_table(str(error))) from None
        if self.plan != "given" and self.standardise != "fixed":
            raise DataError(
                f"data.table: plan computes centre and scale for standardise: fixed, and standardise is "
                f"{self.standardise}; set it to fixed, or leave plan out"
            )
        if not inputs:
            raise DataError("data.table: no column has a word to learn from; list its words in categorical")
        if self.case.lower() in map(str.lower, self.features):
            raise DataError("data.table: features lists the column that names the case; remove it")
        if self.file is not None and (not self.file or "/" in self.file or "\\" in self.file):
            raise DataError("data.table: file is not the name of a file in each site's folder; give its name")

    @property
    def as_table(self) -> Table:
        """The settings by which a row is read, those of a study of tables."""
        return Table(
            features=self.features,
            categorical=self.categorical,
            missing=self.missing,
            indicate=self.indicate,
            standardise=self.standardise,
            centre=self.centre,
            scale=self.scale,
            ignore=self.ignore,
            missing_values=self.missing_values,
            patient=self.patient,
            plan=self.plan,
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        """What each number of a case's `tabular` is: the numbers, which of them were empty, then the "
        "words."""
        table = self.as_table
        empty = tuple(f"{name} is empty" for name in table.numbers) if self.indicate else ()
        words = tuple(f"{name} is {word}" for name, known in self.categorical.items() for word in known)
        return (*table.numbers, *empty, *words)


def of_case_table(message: str) -> str:
    """Return a message about a table with its keys as those of `data.table`.

    >>> of_case_table("list its word in data.categorical"), of_case_table("data: features is empty")
    ('list its word in data.table.categorical', 'data.table: features is empty')
    """
    return re.sub(
        r"\bdata(?=: |\.(features|categorical|missing|missing_values|patient)\b)", "data.table", message
    )


AnyData = Images | Table | AnyDataModule
