"""`medfed fingerprint`, `purge`, `deidentify`: statistics of a folder, its prepared images, a copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from medfed.cli.error_handling import Commands
from medfed.cli.messages import answer, say
from medfed.cli.options import PATH

if TYPE_CHECKING:
    from medfed.data.class_names import Classes
    from medfed.data.layouts import Layout
    from medfed.data.reading import SiteReading
    from medfed.data.settings import Unreadable


@click.group(cls=Commands, short_help="Plan settings from all hospitals' image statistics.")
def fingerprint() -> None:
    """Plan settings from all hospitals' image statistics, which are sums that may be shared."""


@fingerprint.command(short_help="Write one hospital's fingerprint.")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="[FOLDER] OUT")
@click.option("--site", "site_file", type=PATH, help="The site file: read its data as training does.")
@click.option("--secret", "secret_file", type=PATH, help="The file with the site's secret.")
@click.option(
    "--intensity-bins",
    type=click.Choice(["hu", "relative"]),
    default="relative",
    show_default=True,
    help="hu for CT, else relative. The same at every site.",
)
@click.option("--classes", help="Classes, background included: how many, or names (background,liver).")
@click.option(
    "--channels", default="1", show_default=True, help="Image channels: how many, or their names (t1,flair)."
)
@click.option(
    "--min-patients",
    type=int,
    default=10,
    show_default=True,
    help="Withhold counts of fewer patients than this.",
)
@click.option("--pet", type=click.Choice(["stored", "suv"]), default="stored", show_default=True,
              help="Unit of PET, as data.read.pet of the study.")  # fmt: skip
def make(
    paths: tuple[Path, ...],
    site_file: Path | None,
    secret_file: Path | None,
    intensity_bins: Literal["hu", "relative"],
    classes: str | None,
    channels: str,
    min_patients: int,
    pet: Literal["stored", "suv"],
) -> None:
    """Write a hospital's fingerprint to OUT, for its privacy officer to review before it is shared.

    \b
    medfed fingerprint make --site site.yaml ours.json --classes background,liver
    """
    from medfed.data import fingerprint as prints
    from medfed.data.channels import match_channels
    from medfed.data.index import index_folder
    from medfed.data.label_naming import match_classes
    from medfed.data.reading import Reading
    from medfed.data.settings import Images, with_layout

    folder, out = _folder_and_out(paths, site_file)
    site = OwnData.of(site_file, folder, secret_file)
    asked = site.classes(classes)
    settings = Images(channels=_channels(channels), read=site.read.over(Reading(pet=pet)))
    settings = with_layout(settings, site.layout)
    # Which cases are in 'train' depends on the secret where the folder does not say.
    index = index_folder(site.folder, site_secret=site.secret, layout=settings.given_layout)
    index, named = match_classes(index, asked, "segment", site.secret)
    index = match_channels(index, settings)
    result = prints.fingerprint(
        index,
        grid=intensity_bins,
        classes=named,
        settings=settings,
        min_count=min_patients,
        bears=site.bears,
        tell=click.echo,
    )
    out.write_bytes(prints.to_json(result))
    counts = {"cases": result.cases, "patients": result.patients, "withheld": result.withheld}
    if answer({"fingerprint": out, **counts, "min_patients": min_patients}):
        return
    click.echo(f"{out}: counts and sums over {result.cases} training cases of {result.patients} patients")
    click.echo(f"withheld for fewer than {min_patients} patients: {result.withheld} classes or histograms")
    click.echo("Nothing in it is about a single patient. It is not sent: give the file to the coordinator.")


def _folder_and_out(paths: tuple[Path, ...], site_file: Path | None) -> tuple[Path | None, Path]:
    if len(paths) == 2 and site_file is not None:
        raise click.UsageError("give FOLDER or --site SITE_FILE, which names the folder")
    if len(paths) != (2 if site_file is None else 1):
        raise click.UsageError("expected FOLDER OUT, or --site SITE_FILE OUT")
    return (None if site_file is not None else paths[0]), paths[-1]


@dataclass(frozen=True, repr=False)
class OwnData:
    """A hospital's folder, and how its site file says to read it; without one, by the defaults."""

    folder: Path
    secret: bytes
    words: Mapping[str, str]
    read: SiteReading
    layout: Layout | None
    bears: Unreadable

    @classmethod
    def of(cls, site_file: Path | None, folder: Path | None, secret_file: Path | None) -> OwnData:
        """Return what a site file says, or a folder with the defaults."""
        from medfed.data.class_names import in_words
        from medfed.data.reading import SiteReading
        from medfed.data.settings import Unreadable
        from medfed.data.splits import folder_secret
        from medfed.deployment.site_file import read_site, secret_of
        from medfed.pipeline.secret_file import read_secret

        if site_file is None:
            secret = read_secret(secret_file) or folder_secret(folder or Path())
            return cls(folder or Path(), secret, {}, SiteReading(), None, Unreadable())
        site = read_site(site_file)
        secret = secret_of(Path(site.secret))
        layout, bears = site.given_layout, site.policy.unreadable
        return cls(Path(site.data), secret, in_words(site.classes), site.read, layout, bears)

    def classes(self, text: str | None) -> Classes:
        """Return the classes that a command line names or counts, with the hospital's own words for them."""
        from medfed.data.class_names import ClassNames

        names = tuple(part.strip() for part in (text or "").split(",") if part.strip())
        if not names:
            return None
        if len(names) > 1:
            return ClassNames(names, self.words)
        if not names[0].isdecimal() or int(names[0]) < 2:
            raise click.BadParameter(
                "expected how many classes labels have, or their names as in task.classes, such as "
                "background,liver",
                param_hint="--classes",
            )
        return int(names[0])


def _channels(text: str) -> int | tuple[str, ...]:
    """Return `data.channels` as a command line says it: a number, or names between commas."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if len(names) == 1 and names[0].isdecimal() and int(names[0]):
        return int(names[0])
    if not names or any(name.isdecimal() for name in names):
        raise click.BadParameter(
            "expected how many channels images have, or their names as in data.channels, such as t1,flair",
            param_hint="--channels",
        )
    return names


@fingerprint.command(short_help="Print the settings for all hospitals.")
@click.argument("files", nargs=-1, required=True, type=PATH)
@click.option("--voxels", type=int, default=96**3, show_default=True, help="The largest patch, in voxels.")
@click.option("--normalise", type=click.Choice(["auto", "zscore", "nyul"]), default="auto", show_default=True,
              help="How intensities are normalised; auto chooses by the kind of bins.")  # fmt: skip
def merge(files: tuple[Path, ...], voxels: int, normalise: Literal["auto", "zscore", "nyul"]) -> None:
    """Print the `data` section of a study, planned from the hospitals' fingerprints."""
    import yaml

    from medfed.data import fingerprint as prints
    from medfed.data.proposal import propose_settings
    from medfed.errors import DataError

    parts = []
    for path in files:
        try:
            parts.append(prints.from_json(path.read_bytes()))
        except OSError:
            raise DataError(f"{path}: cannot be read; give the fingerprint files of the hospitals") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    merged = prints.merge(parts)
    counts = {"sites": merged.sites, "patients": merged.patients, "cases": merged.cases}
    say(f"# from {merged.sites} hospitals, {merged.patients} patients, {merged.cases} cases")
    section = propose_settings(merged, voxels=voxels, normalise=normalise)
    answer({**counts, "data": section})
    say(yaml.safe_dump({"data": section}, sort_keys=False, default_flow_style=None), nl=False)


@click.command(short_help="Delete prepared images on disk.")
@click.argument("folder", required=False, type=PATH)
@click.option(
    "--site",
    "site_file",
    type=PATH,
    help="A site file: delete everything that this site keeps, in every cache.",
)
def purge(folder: Path | None, site_file: Path | None) -> None:
    """Delete the prepared images that `cache: disk` keeps.

    FOLDER is a site's data folder, which holds them, or a cache folder. Without FOLDER or --site, this
    account's caches outside data folders are deleted. Nothing but prepared images is touched.
    """
    from medfed.data.cache import purge as purged
    from medfed.data.cache_location import data_cache_folder, remove_if_empty, shared_caches, site_folder
    from medfed.errors import DataError

    if site_file is not None:
        from medfed.deployment.site_file import read_site, secret_of

        site = read_site(site_file)
        own = site_folder(secret_of(Path(site.secret)))
        chosen = [] if site.cache is None else [Path(site.cache)]
        data, places = [Path(site.data)], [place / own for place in (*chosen, *shared_caches())]
    elif folder is not None:
        if not folder.is_dir():
            raise DataError(f"purge: '{folder}' is not a folder; name a data folder or a cache folder")
        data, places = [folder], [folder]
    else:
        data, places = [], shared_caches()
    deleted = []
    for place in (*map(data_cache_folder, data), *places):
        deleted.append({"folder": place, "cases": purged(place)})
        say(f"{place}: {deleted[-1]['cases']} prepared cases deleted")
    answer({"deleted": deleted})
    for one in data:
        remove_if_empty(one)
    if not data:
        say("A site's images inside its data folder: medfed purge FOLDER, or --site site.yaml")


@click.command(short_help="Copy DICOM images without the patient.")
@click.argument("source", metavar="IN", type=PATH)
@click.argument("target", metavar="OUT", type=PATH)
@click.option(
    "--secret",
    type=PATH,
    help="The file with the site's secret, so that later exports use the same pseudonyms.",
)
@click.option(
    "--dates",
    type=click.Choice(["shift", "remove"]),
    default="shift",
    show_default=True,
    help="How to treat dates: shift all of a patient's by the same interval, or remove.",
)
@click.option(
    "--descriptors",
    type=click.Choice(["clean", "remove"]),
    default="clean",
    show_default=True,
    help="How to treat descriptions: keep only words of an imaging vocabulary (clean), or remove.",
)
@click.option(
    "--device",
    type=click.Choice(["remove", "keep"]),
    default="remove",
    show_default=True,
    help="Whether the device's identity is kept.",
)
def deidentify(
    source: Path, target: Path, secret: Path | None, dates: str, descriptors: str, device: str
) -> None:
    """Write the DICOM images in IN to OUT without identifying attributes (PS3.15 Basic Profile).

    \b
    medfed deidentify /archive/export /data/our-hospital --secret /etc/medfed/secret
    """
    import secrets

    import msgspec

    from medfed.data import deidentify as deidentification
    from medfed.pipeline.progress_bar import ProgressBar
    from medfed.pipeline.secret_file import read_secret

    given = read_secret(secret)
    choices = {"dates": dates, "descriptors": descriptors, "device": device}
    with ProgressBar() as bar:
        export = deidentification.deidentify(
            source,
            target,
            site_secret=given or secrets.token_bytes(32),
            options=msgspec.convert(choices, deidentification.Options),
            on_progress=bar.update,
        )
    counts = {"files": export.files, "series": export.series, "patients": export.patients}
    left_out = [{"reason": reason, "count": count} for reason, count in export.left_out]
    if answer({**counts, "left_out": left_out, "same_pseudonyms_later": given is not None}):
        return
    click.echo(f"{export.files} files of {export.series} series and {export.patients} patients written")
    for reason, count in export.left_out:
        click.echo(f"left out: {count} x {reason}")
    if given is None:
        click.echo("no --secret was given: a later export will give the same patients other identifiers")
    click.echo("not checked: the pixels themselves. Heads can show a face; `medfed check` flags them")
