"""Words of which the names of classes consist, by which a folder of a class is told from that of a patient.

Nothing about the files tells the two apart for certain: a patient may have hundreds of images with names of
their own, and a data set that was split image by image has each patient's folder in train and in test. So a
folder's name becomes a class unasked only if it says a finding, and all folders' names do. No word that could
stand alone is a usual name of people.
"""

from __future__ import annotations

import re

_STATES = """
normal abnormal healthy ill sick diseased disease benign malignant malign suspicious negative
positive neg pos control controls present absent finding findings nofinding unremarkable
indeterminate unknown background responder nonresponder recurrence recurrent primary metastatic
metastasis metastases metastasic acute chronic mild moderate severe gesund krank unauffaellig
auffaellig pathologisch gutartig boesartig befund ohne mit sain malade benin malin
"""
# Words of scales, which alone have numbers beside them: BI-RADS 4, grade 2.
_SCALES = """
grade stage class type group category level score birads pirads lirads tirads rads isup covid sars
cov
"""
_FINDINGS = """
tumor tumour tumors tumours cancer carcinoma neoplasm neoplasia adenoma adenocarcinoma sarcoma
lymphoma leukemia leukaemia melanoma melanocytic nevus nevi naevus naevi glioma glioblastoma
astrocytoma oligodendroglioma ependymoma meningioma pituitary schwannoma medulloblastoma
craniopharyngioma hemangioma haemangioma hepatocellular cholangiocarcinoma renal squamous basal cell
keratosis keratoses seborrheic actinic dermatofibroma vascular lesion lesions lentigo pneumonia
pneumothorax covid covid19 sars tuberculosis viral bacterial fungal infection infected uninfected
parasitized opacity opacities effusion edema oedema atelectasis consolidation infiltration
infiltrate emphysema fibrosis fibrotic cardiomegaly nodule nodules pleural thickening hernia
fracture fractured fractures dislocation osteoarthritis arthritis osteoporosis osteopenia scoliosis
implant hemorrhage haemorrhage bleeding hemorrhagic haemorrhagic ischemic ischaemic ischemia
ischaemia infarct infarction stroke aneurysm thrombus embolism dementia demented nondemented
alzheimer alzheimers parkinsons mci epilepsy sclerosis retinopathy diabetic glaucoma cataract drusen
cnv dme amd macular degeneration nodr proliferate proliferative myopia polyp polyps ulcer ulcerative
colitis esophagitis oesophagitis gastritis barretts hemorrhoids haemorrhoids cirrhosis steatosis
hepatitis calculus kidney calcification calcifications cyst cystic dcis idc ilc ductal lobular
papillary tubular mucinous phyllodes fibroadenoma adenosis hyperplasia dysplasia dysplastic
metaplasia inflammation inflamed necrosis necrotic stroma mucosa debris adipose lymphocytes
epithelium
"""
# Words that say nothing alone, or are names of people, too.
_SMALL = "no non not without with and or of in the de vs like high low early late other others bi pi li ti"

# Abbreviations of skin lesions in HAM10000 and of stages of dementia; two letters may be initials.
_ABBREVIATIONS = "akiec bcc bkl vasc scc emci lmci"

SCALES = frozenset(_SCALES.split())
CLASS_WORDS = frozenset(f"{_STATES} {_SCALES} {_FINDINGS} {_SMALL} {_ABBREVIATIONS}".split())
_ONLY_SMALL = frozenset(_SMALL.split())

_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PARTS = re.compile(r"[^\W\d_]+|\d+")


def is_class_name(name: str) -> bool:
    """Whether a folder is named by words for findings and states alone, or by a scale and a small number.

    >>> [is_class_name(name) for name in ("NoTumor", "Covid-19", "grade_2", "Meier", "P001", "12")]
    [True, True, True, False, False, False]
    """
    parts = [part.lower() for part in _PARTS.findall(_CAMEL.sub(" ", name))]
    words = [part for part in parts if not part.isdecimal()]
    numbers = [part for part in parts if part.isdecimal()]
    if numbers and (len(numbers) > 1 or len(numbers[0]) > 2 or SCALES.isdisjoint(words)):
        return False
    return any(word not in _ONLY_SMALL for word in words) and all(word in CLASS_WORDS for word in words)
