"""Metrics with their uncertainty, comparisons of models, and the report that a hospital can print.

    rows            the two records that all else reads and writes: `Row` (leaves), `CaseRow` (stays)
    segmentation    one case's masks -> Dice, surface Dice, HD95, lesions found
    classification  patients' probabilities -> AUROC, calibration, decision curve
    survival        c-index, time-dependent Brier score
    intervals       bootstrap over patients, DeLong, Holm, suppression of small groups
    histograms      ROC and calibration from counts that can be added over hospitals
    aggregate       case rows -> rows
    comparisons     federated against local, pooled and personal models, paired by patient; subgroups
    robustness      what a model loses on images changed in a stated way
    report          a run folder -> one self-contained HTML file; report_sections, the tables only some runs have
    several_runs    runs side by side       local_pages  pictures of cases, which stay inside

To add a metric, add a function to the file of its task, name it in that file's table of metrics (label,
unit, which direction is better), and give it a test against an independent implementation.
"""
