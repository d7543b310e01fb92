"""What a site file says to `medfed check`, `predict` and `evaluate`, so that they read data as training."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from medfed.deployment.admission import check_member
from medfed.deployment.own_code import plugin_refusals
from medfed.deployment.policy import refusals
from medfed.deployment.site_file import SiteFile, as_read_here, secret_of
from medfed.errors import StudyError
from medfed.pipeline.describing import needs_description, protection_of
from medfed.pipeline.own_choices import OwnChoices
from medfed.study.study import Study


def choices_of(site: SiteFile) -> OwnChoices:
    """Return what a site file says of its data; its secret is created as at the first training.

    Raises:
        StudyError: if the secret cannot be used.
    """
    return OwnChoices(
        name=site.name,
        secret=secret_of(Path(site.secret)),
        layout=site.given_layout,
        data=site.own_data,
        words=site.classes,
        bears=site.policy.unreadable,
        cache=site.cache,
        labelled=tuple(site.labelled),
        smallest_group=site.policy.smallest_group,
        as_read_here=partial(as_read_here, site=site),
        refusals=partial(_refusals, site),
    )


def _refusals(site: SiteFile, study: Study, cases: int) -> list[str]:
    """Return why this hospital would not take part in a study, though its data fit."""
    try:
        check_member(study, site)
        if needs_description(study):
            protection_of(study)
    except StudyError as error:
        return [str(error)]
    return [*plugin_refusals(site, study.plugins), *refusals(site.policy, study.at(site.name), cases)]
