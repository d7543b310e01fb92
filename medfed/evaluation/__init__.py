"""Metrics with their uncertainty, comparisons of models, and the report that a hospital can print.

    rows            the two records that all else reads and writes: `Row` (leaves), `CaseRow` (stays)
    metrics/        the registry: one family of metrics per file, with titles, units, directions and ranks
    segmentation    one case's masks -> Dice, surface distances, lesions
    classification  patients' probabilities -> AUROC, average precision, confusion matrix
    calibration     calibration slope and intercept, temperature scaling
    survival        c-index, time-dependent Brier score
    intervals       bootstrap over patients, Holm's correction, suppression of small groups
    inference       one model on one hospital's cases -> case rows
    patients        case rows -> one value per patient
    probabilities   a classifier's case rows: operating points, temperature scaling, histograms
    groups          one model's patients -> every metric
    aggregate       case rows -> rows
    comparisons     one model against others, paired by patient       subgroups   within groups of patients
    robustness      what a model loses on perturbed images and tables
    histograms      ROC and calibration from counts that can be added over hospitals
    row_transport   rows as the scalars in which they leave a hospital
    summarise       a run folder's case rows -> its rows               report/     a run folder -> HTML

To add a metric, add a file to `metrics/`; its docstring says how.
"""
