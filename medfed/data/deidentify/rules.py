"""Attributes of a DICOM image that may stay, and in which form: an allow-list.

PS3.15 Annex E lists what to remove. Such a list misses what it does not name: a patient's name in an
attribute that is harmless on paper, in a private tag, in a sequence. So these tables name what an image needs
and in which form; everything else is removed, which covers every removal (X), emptying (Z) and replacement
(D, U) of the Basic Profile. tests/data/deidentify checks them against the profile's own list.

To let another attribute stay, add its keyword to the table of its form. Free text has no form: only words of
`WORDS` stay.
"""

from __future__ import annotations

from pydicom.datadict import tag_for_keyword


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"no DICOM attribute '{keyword}'")
    return int(tag)


def _tags(keywords: str) -> frozenset[int]:
    return frozenset(map(_tag, keywords.split()))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Numbers that describe geometry, pixels and acquisition. None of them can hold a word; identifiers that
# happen to be numbers (accession, study and device numbers) are not among them.
NUMBERS = _tags(
    """
    InstanceNumber AcquisitionNumber SeriesNumber NumberOfFrames SamplesPerPixel Rows Columns PixelSpacing
    ImagerPixelSpacing NominalScannedPixelSpacing PixelAspectRatio BitsAllocated BitsStored HighBit
    PixelRepresentation PlanarConfiguration SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue
    PixelPaddingRangeLimit WindowCenter WindowWidth RescaleIntercept RescaleSlope RealWorldValueSlope
    RealWorldValueIntercept RealWorldValueFirstValueMapped RealWorldValueLastValueMapped
    LossyImageCompressionRatio LUTDescriptor LUTData NumberOfTemporalPositions TemporalPositionIndex
    TemporalPositionIdentifier ImagePositionPatient ImageOrientationPatient SliceLocation SliceThickness
    SpacingBetweenSlices ImagesInAcquisition NumberOfSlices NumberOfTimeSlices ImageIndex FrameReferenceTime
    ActualFrameDuration TriggerTime RepetitionTime EchoTime EffectiveEchoTime InversionTime EchoNumbers
    EchoTrainLength FlipAngle NumberOfAverages ImagingFrequency MagneticFieldStrength
    NumberOfPhaseEncodingSteps PercentSampling PercentPhaseFieldOfView PixelBandwidth AcquisitionMatrix SAR
    dBdt DiffusionBValue DiffusionGradientOrientation KVP DataCollectionDiameter ReconstructionDiameter
    DistanceSourceToDetector DistanceSourceToPatient GantryDetectorTilt TableHeight TableSpeed
    TableFeedPerRotation SpiralPitchFactor SingleCollimationWidth TotalCollimationWidth ExposureTime
    XRayTubeCurrent Exposure ExposureInmAs FocalSpots GeneratorPower RevolutionTime CTDIvol IntensifierSize
    EstimatedRadiographicMagnificationFactor PositionerPrimaryAngle PositionerSecondaryAngle BodyPartThickness
    CompressionForce RadionuclideHalfLife RadionuclideTotalDose RadionuclidePositronFraction DecayFactor
    DoseCalibrationFactor ScatterFractionFactor DeadTimeFactor SliceSensitivityFactor FrameTime
    NominalCardiacTriggerDelayTime InStackPositionNumber FrameAcquisitionNumber DimensionIndexValues
    FrameAcquisitionDuration MaximumFractionalValue SegmentNumber ReferencedSegmentNumber
    RecommendedDisplayCIELabValue ReferencedFrameNumber DimensionIndexPointer FunctionalGroupPointer ROINumber
    ReferencedROINumber ObservationNumber ROIDisplayColor ContourNumber NumberOfContourPoints ContourData
    ContourSlabThickness ContourOffsetVector ROIVolume DoseGridScaling GridFrameOffsetVector
    """
)

# Fixed vocabularies of attributes; a word that is not in them is removed.
_CODES = {
    "Modality": "CT MR PT NM CR DX MG PX IO RG XA RF US OT SEG RTSTRUCT RTDOSE",
    "PhotometricInterpretation": "MONOCHROME1 MONOCHROME2",
    "PatientPosition": "HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL SITTING",
    "PatientOrientation": "R L A P H F RA RP LA LP RH RF LH LF AH AF PH PF HR HL FR FL",
    "Laterality ImageLaterality FrameLaterality": "R L U B",
    "BodyPartExamined": (
        "ABDOMEN ADRENAL ANKLE AORTA ARM BLADDER BRAIN BREAST CHEST CSPINE ELBOW EXTREMITY EYE FACE FEMUR "
        "FOOT HAND HEAD HEADNECK HEART HIP IAC JAW KIDNEY KNEE LEG LIVER LSPINE LUNG NECK ORBIT PANCREAS "
        "PELVIS PROSTATE SHOULDER SKULL SPINE SPLEEN TSPINE UTERUS WHOLEBODY WRIST"
    ),
    "ScanningSequence": "SE IR GR EP RM",
    "SequenceVariant": "SK MTC SS TRSS SP MP OSP NONE",
    "MRAcquisitionType": "2D 3D",
    "InPlanePhaseEncodingDirection": "ROW COL",
    "AngioFlag VariableFlipAngleFlag": "Y N",
    "ComplexImageComponent": "MAGNITUDE PHASE REAL IMAGINARY MIXED",
    "AcquisitionContrast": (
        "DIFFUSION FLOW_ENCODED FLUID_ATTENUATED PERFUSION PROTON_DENSITY STIR TAGGING T1 T2 T2_STAR TOF "
        "UNKNOWN MIXED"
    ),
    "DiffusionDirectionality": "DIRECTIONAL BMATRIX ISOTROPIC NONE",
    "PixelPresentation": "MONOCHROME COLOR MIXED TRUE_COLOR",
    "VolumetricProperties": "VOLUME SAMPLED DISTORTED MIXED",
    "VolumeBasedCalculationTechnique": "NONE MAX_IP MIN_IP VOLUME_RENDER SURFACE_RENDER MPR CURVED_MPR MIXED",
    "ContentQualification": "PRODUCT RESEARCH SERVICE",
    "BurnedInAnnotation RecognizableVisualFeatures": "YES NO",
    "LossyImageCompression": "00 01",
    "LossyImageCompressionMethod": "ISO_10918_1 ISO_14495_1 ISO_15444_1",
    "PresentationIntentType": "FOR_PRESENTATION FOR_PROCESSING",
    "PresentationLUTShape": "IDENTITY INVERSE",
    "RescaleType": "HU US OD MGML PCT Z_EFF ED EDW HU_MOD UNSPECIFIED",
    "ModalityLUTType": "HU US OD",
    "RotationDirection": "CW CC",
    "ExposureModulationType": "NONE",
    "Units": (
        "CNTS NONE CM2 PCNT CPS BQML MGMINML UMOLMINML MLMING MLG 1CM UMOLML PROPCNTS PROPCPS MLMINML MLML "
        "GML STDDEV"
    ),
    "CountsSource": "EMISSION TRANSMISSION",
    "DecayCorrection": "NONE START ADMIN",
    "CorrectedImage": "DECY ATTN SCAT DTIM MOTN PMOT CLN RAN RADL DCAL NORM",
    "SeriesType": "STATIC DYNAMIC GATED WHOLE_BODY IMAGE REPROJECTION",
    "SegmentationType": "BINARY FRACTIONAL LABELMAP",
    "SegmentationFractionalType": "PROBABILITY OCCUPANCY",
    "SegmentsOverlap": "YES NO UNDEFINED",
    "SegmentAlgorithmType ROIGenerationAlgorithm": "AUTOMATIC SEMIAUTOMATIC MANUAL",
    "DimensionOrganizationType": "3D 3D_TEMPORAL TILED_FULL TILED_SPARSE",
    "ContourGeometricType": "POINT OPEN_PLANAR OPEN_NONPLANAR CLOSED_PLANAR CLOSEDPLANAR_XOR",
    "RTROIInterpretedType": (
        "EXTERNAL PTV CTV GTV TREATED_VOLUME IRRAD_VOLUME BOLUS AVOIDANCE ORGAN MARKER CONTRAST_AGENT CAVITY "
        "SUPPORT FIXATION CONTROL"
    ),
    "DoseUnits": "GY RELATIVE",
    "DoseType": "PHYSICAL EFFECTIVE ERROR",
    "CardiacSynchronizationTechnique": "NONE REALTIME PROSPECTIVE RETROSPECTIVE PACED",
    "PositionMeasuringDeviceUsed": "RIGID FREEHAND",
    "ViewPosition": "AP PA LL RL RLD LLD RLO LLO",
    "DetectorType": "DIRECT SCINTILLATOR STORAGE FILM",
    "CodingSchemeDesignator": "SCT DCM UCUM SRT UMLS FMA",
}
CODES = {
    tag: _words(words) | {word.replace("_", " ") for word in _words(words)}
    for keywords, words in _CODES.items()
    for tag in _tags(keywords)
}
# Image types of the standard and of manufacturers; any other word becomes a keyed hash, so that different
# types stay different.
IMAGE_TYPES = _words(
    """
    ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER SCOUT MIXED MPR REFORMATTED RESAMPLED PROJECTION_IMAGE
    AVERAGE MIN_IP MAX_IP NONE VOLUME M P R I M_SE M_FFE M_IR SE FFE IR PHASE_MAP ND NORM FM FS DIS2D DIS3D
    MFSPLIT MOSAIC ADC DIFFUSION TRACEW FA T1 T2 T1_MAP T2_MAP WATER FAT IN_PHASE OUT_PHASE SUBTRACT CSA OTHER
    EPI TTEST ASL CBF CBV MTT HELIX CT_SOM5 SPI STATIC DYNAMIC GATED WHOLE BODY EMISSION TRANSMISSION RECON
    TOMO SUM PERFUSION UNSPECIFIED
    """
)
IMAGE_TYPE_TAGS = _tags("ImageType FrameType")

# Sequences whose items are cleaned by the same tables.
SEQUENCES = _tags(
    """
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence PlanePositionSequence
    PlaneOrientationSequence PixelMeasuresSequence FrameContentSequence PixelValueTransformationSequence
    FrameVOILUTSequence MREchoSequence MRTimingAndRelatedParametersSequence MRDiffusionSequence
    DiffusionGradientDirectionSequence MRImageFrameTypeSequence CTImageFrameTypeSequence PETFrameTypeSequence
    TemporalPositionSequence CardiacSynchronizationSequence DimensionOrganizationSequence
    DimensionIndexSequence SegmentSequence SegmentIdentificationSequence SegmentedPropertyCategoryCodeSequence
    SegmentedPropertyTypeCodeSequence AnatomicRegionSequence FrameAnatomySequence DerivationImageSequence
    SourceImageSequence DerivationCodeSequence PurposeOfReferenceCodeSequence ReferencedImageSequence
    ReferencedSeriesSequence ReferencedInstanceSequence ReferencedFrameOfReferenceSequence
    RTReferencedStudySequence RTReferencedSeriesSequence ContourImageSequence StructureSetROISequence
    ROIContourSequence ContourSequence RTROIObservationsSequence ModalityLUTSequence
    RealWorldValueMappingSequence MeasurementUnitsCodeSequence RadiopharmaceuticalInformationSequence
    RadionuclideCodeSequence EnergyWindowInformationSequence CTReconstructionSequence
    """
)
CODE_SEQUENCES = _tags(
    """
    SegmentedPropertyCategoryCodeSequence SegmentedPropertyTypeCodeSequence AnatomicRegionSequence
    DerivationCodeSequence PurposeOfReferenceCodeSequence MeasurementUnitsCodeSequence
    RadionuclideCodeSequence
    """
)
# Every UID is replaced by one derived from the secret, unless it is defined by the standard.
UIDS = _tags(
    """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID ReferencedSOPClassUID
    ReferencedSOPInstanceUID ReferencedFrameOfReferenceUID DimensionOrganizationUID ConcatenationUID
    SynchronizationFrameOfReferenceUID TrackingUID
    """
)
# Labels that distinguish segments and structures, which a task may need; see labels.py.
LABELS = _tags("SegmentLabel ROIName ROIObservationLabel")
DESCRIPTORS = _tags("StudyDescription SeriesDescription ProtocolName ContrastBolusAgent SequenceName StackID")
# These words of descriptions and labels stay, and numbers of up to three digits; in lower case.
WORDS = _words(
    """
    abdomen abdominal adc adrenal air and angio ankle aorta apparent arm art arterial artery axial ax
    background biliary bladder blood body bone bowel brain brainstem breast bronchus calcification cardiac
    carotid caudate cavity cervical chest coil colon contrast cor coronal cord ct ctv cyst delayed diffusion
    disc dixon dual duct duodenum dwi dynamic echo edema effusion enhancing epi esophagus external eye fat fdg
    femur fibula fiesta first flair flash fluid foot fracture fs gall gallbladder ganglion gland gradient gray
    gre grey gtv hand haste head heart hepatic hemorrhage hip hippocampus horn humerus ii iii in infarct
    inferior ir iv kidney knee lad late lateral left lens lesion liver lobe localizer long low lower lumbar
    lung lymph magnitude mandible mass matter medial mediastinum meniscus metastasis mip mpr mprage mr mri
    muscle myocardium native neck necrosis nerve node nodule non of opacity optic oral orbit organ out ovary
    pancreas parotid pd pelvis perfusion pet phase pituitary plain plaque pleura pneumothorax portal post
    posterior pre prostate ptv pulmonary radius rectum recon reg rib right roi sacrum sag sagittal scan
    scapula scout second segment seminal shoulder skin skull soft space spinal spine spleen stent sternum stir
    stomach subtraction superior suv swi t1 t1w t2 t2w target te thigh third thoracic thorax thyroid tibia
    tissue tof tongue tr trachea tra transverse trigger tse tumor tumour ulna ultrasound uncorrected
    unenhanced upper ureter urethra uterus vein vena cava venous ventricle vertebra vessel vibe volume wall
    water weighted white whole with without wrist zone anterior c1 c2 c3 c4 c5 c6 c7 t3 t4 t5 t6 t7 t8 t9 t10
    t11 t12 l1 l2 l3 l4 l5 s1
    """
)
# Dates with the times that belong to them; both are shifted together.
DATES = {_tag(f"{of}Date"): _tag(f"{of}Time") for of in ("Study", "Series", "Acquisition", "Content")}
DATETIMES = _tags("AcquisitionDateTime FrameAcquisitionDateTime FrameReferenceDateTime")
# Attributes that the option 'retain device identity' keeps unchanged.
DEVICE = _tags(
    """
    ManufacturerModelName SoftwareVersions DeviceSerialNumber StationName GantryID DetectorID PlateID
    ConvolutionKernel TransmitCoilName ReceiveCoilName
    """
)
# Free text that distinguishes reconstructions of one series: it becomes a keyed hash, which still does.
PSEUDONYMISED = _tags("ConvolutionKernel")
# Attributes that must be present, even if empty (Type 2 of every image).
EMPTIED = _tags(
    "StudyDate StudyTime AccessionNumber ReferringPhysicianName PatientBirthDate PatientSex StudyID "
    "SeriesNumber"
)
# Modalities that are written; reports, documents, presentation states and raw data are left out.
MODALITIES = frozenset(_CODES["Modality"].split())
# Modalities that often show the patient's name in the picture: left out unless BurnedInAnnotation is NO.
OFTEN_BURNED_IN = frozenset(("US", "OT", "XA", "RF"))
