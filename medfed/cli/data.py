"""`medfed fingerprint` and `medfed purge`: what a hospital's data are like, and what is kept
of them beside them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from medfed.cli.error_handling import told

_PATH = click.Path(path_type=Path)


@click.group(short_help="What all hospitals' images are like.")
def fingerprint() -> None:
    """What all hospitals' images are like: sums that may be shared, and the settings that follow."""


@fingerprint.command(short_help="Write one hospital's fingerprint.")
@click.argument("folder", type=_PATH)
@click.argument("out", type=_PATH)
@click.option(
    "--secret", "secret_file", type=_PATH, help="The file with the site's secret, as for `medfed check`."
)
@click.option("--grid", type=click.Choice(["hu", "relative"]), default="relative", show_default=True,
              help="Of the intensities: hu for CT. The same at every site.")  # fmt: skip
@click.option("--classes", type=int, help="How many classes the task has, the background included.")
@click.option("--channels", type=int, default=1, show_default=True)
@click.option("--fewest", type=int, default=10, show_default=True, help="Withhold counts of fewer patients.")
@told
def make(
    folder: Path,
    out: Path,
    secret_file: Path | None,
    grid: Literal["hu", "relative"],
    classes: int | None,
    channels: int,
    fewest: int,
) -> None:
    """Write a hospital's own fingerprint to OUT, for its privacy officer to read before it is given away."""
    import os

    from medfed.data import fingerprint as prints
    from medfed.data.index import index_folder
    from medfed.pipeline.secret_file import read_secret

    # Which cases are in 'train' depends on the secret where the folder does not say.
    index = index_folder(folder, site_secret=read_secret(secret_file) or os.urandom(32))
    found = prints.fingerprint(index, grid=grid, classes=classes, channels=channels, min_count=fewest)
    out.write_bytes(prints.to_json(found))
    click.echo(f"{out}: counts and sums over {found.cases} training cases of {found.patients} patients")
    click.echo(
        f"withheld, as fewer than {fewest} patients stand behind them: {found.withheld} classes or histograms"
    )
    click.echo("Nothing in it is of one patient. It is not sent: give the file to the coordinator.")


@fingerprint.command(short_help="Print the settings for all hospitals.")
@click.argument("files", nargs=-1, required=True, type=_PATH)
@click.option("--voxels", type=int, default=96**3, show_default=True, help="The most that a patch may have.")
@click.option("--normalise", type=click.Choice(["auto", "zscore", "nyul"]), default="auto", show_default=True)
@told
def merge(files: tuple[Path, ...], voxels: int, normalise: Literal["auto", "zscore", "nyul"]) -> None:
    """Print the `data` section of a study that the hospitals' fingerprints give."""
    import yaml

    from medfed.data import fingerprint as prints
    from medfed.errors import DataError

    parts = []
    for path in files:
        try:
            parts.append(prints.from_json(path.read_bytes()))
        except OSError:
            raise DataError(f"{path}: can't be read; give the files that the hospitals gave") from None
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
    merged = prints.merge(parts)
    click.echo(f"# from {merged.sites} hospitals, {merged.patients} patients, {merged.cases} cases")
    section = prints.proposal(merged, voxels=voxels, normalise=normalise)
    click.echo(yaml.safe_dump({"data": section}, sort_keys=False, default_flow_style=None), nl=False)


@click.command(short_help="Delete prepared images that are kept on disk.")
@click.argument("folder", required=False, type=_PATH)
@click.option(
    "--site", "site_file", type=_PATH, help="A site file: all that this site keeps, wherever it does."
)
@told
def purge(folder: Path | None, site_file: Path | None) -> None:
    """Delete what `cache: disk` keeps of patients' images.

    FOLDER is a site's data folder, inside which they are kept, or a cache folder. Without it, or a site file,
    what this account keeps outside data folders is deleted. Nothing but prepared images is touched.
    """
    from medfed.data.cache import purge as purged
    from medfed.data.cache_location import data_cache_folder, remove_if_empty, shared_caches, site_folder

    if site_file is not None:
        from medfed.deployment.site_file import read_site, secret_of

        site = read_site(site_file)
        own = site_folder(secret_of(Path(site.secret)))
        chosen = [] if site.cache is None else [Path(site.cache)]
        data, places = [Path(site.data)], [place / own for place in (*chosen, *shared_caches())]
    elif folder is not None:
        data, places = [folder], [folder]
    else:
        data, places = [], shared_caches()
    for place in (*map(data_cache_folder, data), *places):
        click.echo(f"{place}: {purged(place)} prepared cases deleted")
    for one in data:
        remove_if_empty(one)
    if not data:
        click.echo("A site's images inside its data folder: medfed purge FOLDER, or --site site.yaml")
