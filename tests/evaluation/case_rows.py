"""Case rows with given values, for tests of comparisons and subgroups."""

from __future__ import annotations

from medfed.evaluation.rows import CaseRow


def case(
    model,
    patient,
    value,
    *,
    site="north",
    structure="lesion",
    metric="dice",
    target=None,
    note=None,
    **attributes,
):
    return CaseRow(
        model=model,
        site=site,
        split="test",
        case=patient,
        patient=patient,
        metric=metric,
        value=value,
        structure=structure,
        target=target,
        note=note or ("missing" if value is None else None),
        attributes=attributes,
    )


def survivors(model, risks, times, events, *, curve=None, groups=None):
    result = []
    for i, (risk, time, event) in enumerate(zip(risks, times, events, strict=True)):
        about = {
            "model": model,
            "site": "north",
            "split": "test",
            "case": str(i),
            "patient": str(i),
            "target": float(time),
            "event": bool(event),
            "attributes": {"sex": groups[i]} if groups else {},
        }
        result.append(CaseRow(metric="risk", value=float(risk), **about))
        for at, chance in (curve or {}).items():
            result.append(CaseRow(metric=f"survival@{at:g}", value=float(chance[i]), **about))
    return result


def image_row(patient, value, metric="dice", *, site="north", image=0, note=None, split="test", **more):
    return CaseRow(
        **{
            "model": "federated",
            "site": site,
            "split": split,
            "case": f"{patient}-{image}",
            "patient": patient,
            "metric": metric,
            "value": value,
            "structure": "lesion",
            "note": note,
            **more,
        }
    )


def class_rows(patient, p, target, *, site="north", split="test", image=0):
    return [
        image_row(
            patient,
            value,
            "probability",
            site=site,
            split=split,
            image=image,
            structure=name,
            target=float(hit),
        )
        for name, value, hit in (("healthy", 1 - p, not target), ("disease", p, target))
    ]
