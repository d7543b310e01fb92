"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from medfed.errors import MedfedError

if TYPE_CHECKING:
    from medfed.data.layouts import Layout
    from medfed.deployment.live_page.server import PageSettings
    from medfed.pipeline.own_choices import OwnChoices

PATH = click.Path(path_type=Path)

_R = TypeVar("_R", bound=Any)


def _parse_layout(context: click.Context, parameter: click.Parameter, text: str | None) -> Layout | None:
    if text is None:
        return None
    from medfed.data.layouts import parse_layout

    return parse_layout(text)


layout_option = click.option(
    "--layout",
    metavar="NAME",
    callback=_parse_layout,
    help="How the cases lie in the folder, if medfed can't be certain; `medfed kinds layouts` lists them.",
)


_reading_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="How the images are read: a key of data.read, data.resample_labels or data.resample_channels, such "
    "as data.read.uneven=resample; may be repeated.",
)


def folder_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --layout and --set to a command, which receives them as one `FolderOptions`, its `options`."""

    @wraps(command)
    def wrapper(*, layout: Layout | None, overrides: tuple[str, ...], **arguments: Any) -> None:
        from medfed.pipeline import drafting

        command(options=drafting.folder_options(layout, overrides), **arguments)

    decorated: Callable[..., None] = layout_option(_reading_option(wrapper))
    return decorated


site_option = click.option(
    "--site",
    type=PATH,
    help="The hospital's site file, whose folder, layout, headings and words are used.",
)


def own_choices(site: Path | None, folder: Path | None) -> tuple[OwnChoices, Path]:
    """Return what a hospital's site file says of its data, if one is given, and the data's place.

    Raises:
        MedfedError: if neither names the place.
    """
    from medfed.pipeline.own_choices import OwnChoices

    own = OwnChoices()
    if site is not None:
        from medfed.deployment.site_check import choices_of
        from medfed.deployment.site_file import read_site

        settings = read_site(site)
        own, folder = choices_of(settings), folder or Path(settings.data)
    if folder is None:
        command = click.get_current_context().info_name
        raise MedfedError(f"{command}: name the hospital's folder or table, or its site file with --site")
    return own, folder


def _record_options(
    record: type[_R], name: str, options: Sequence[Callable[..., Any]], check: Callable[[_R], object]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds options to a command, which receives them as one record called `name`.

    `check` raises for a record that cannot be used, before the command is called.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapper(**arguments: Any) -> None:
            value = record(**{key: arguments.pop(key) for key in record.__dataclass_fields__})
            check(value)
            command(**{name: value}, **arguments)

        decorated: Callable[..., None] = wrapper
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


@dataclass(frozen=True)
class RunOptions:
    """The options of a run: its folder, changes to the study file, and the run that it continues."""

    out: Path | None
    overrides: tuple[str, ...]
    resume: bool
    without: str | None
    former: Path | None
    quiet: bool


_RUN_OPTIONS = (
    click.option("--out", type=PATH, help="The run folder; default: runs/NAME."),
    click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one key of the study, such as train.epochs=3; may be repeated.",
    ),
    click.option("--resume", is_flag=True, help="Continue the run in the run folder after its last round."),
    click.option(
        "--without", metavar="SITE", help="A hospital that withdrew: retrain from before it joined."
    ),
    click.option(
        "--former", type=PATH, help="The run it withdrew from; default: the newest run of the study."
    ),
    click.option("--quiet", is_flag=True, help="Print only the result."),
)


run_options = _record_options(RunOptions, "options", _RUN_OPTIONS, lambda options: None)


@dataclass(frozen=True)
class ExperimentOptions:
    """The options of `medfed train` that train a study several times; at most one is given."""

    leave_one_out: bool
    compare: str | None
    folds: int | None
    search: bool

    @property
    def given(self) -> list[str]:
        """Those that were given, as they are typed."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return [f"--{name.replace('_', '-')}" for name, value in values.items() if value]


_EXPERIMENT_OPTIONS = (
    click.option(
        "--leave-one-out", is_flag=True, help="Also train without each hospital in turn, and test on it."
    ),
    click.option(
        "--compare", metavar="A,B,...", help="Train once per method, such as fedavg,fedprox, and compare."
    ),
    click.option(
        "--folds",
        type=click.IntRange(2, 100),
        metavar="K",
        help="Cross-validate: train once per fold, and report on every patient held out.",
    ),
    click.option(
        "--search",
        is_flag=True,
        help="Choose settings first, by validation patients, as the study's `search` says.",
    ),
)


def _check_one(experiments: ExperimentOptions) -> None:
    if len(experiments.given) > 1:
        raise MedfedError(f"{' and '.join(experiments.given)}: give one of them at a time")


experiment_options = _record_options(ExperimentOptions, "experiments", _EXPERIMENT_OPTIONS, check=_check_one)


@dataclass(frozen=True)
class PageOptions:
    """The options of the live page: its address, and what protects it where others can reach it."""

    page: str | None
    certificate: Path | None
    key: Path | None
    token: Path | None

    def settings(self, default: str = "") -> PageSettings | None:
        """Return where the page is served; None if it is not asked for and there is no default.

        Raises:
            MedfedError: if the options cannot be used.
        """
        from medfed.deployment.live_page.server import PageSettings, check_settings, parse_address

        address = self.page or default
        if not address:
            if self.certificate or self.key or self.token:
                raise MedfedError(
                    "--page-certificate, --page-key and --page-token go with --page: give it, too"
                )
            return None
        settings = PageSettings(*parse_address(address), self.certificate, self.key, self.token)
        check_settings(settings)
        return settings


DEFAULT_PAGE = "8443"
_PAGE_OPTIONS = (
    click.option(
        "--page",
        is_flag=False,
        flag_value=DEFAULT_PAGE,
        metavar="[HOST:]PORT",
        help=f"Serve a live page and metrics; default: port {DEFAULT_PAGE} of this machine alone.",
    ),
    click.option(
        "--page-certificate", "certificate", type=PATH, help="TLS for --page: the certificate (PEM)."
    ),
    click.option("--page-key", "key", type=PATH, help="TLS for --page: the certificate's key (PEM)."),
    click.option(
        "--page-token",
        "token",
        type=PATH,
        help="The file with the token by which a browser sees --page; made if it is missing.",
    ),
)


# What cannot be used is refused before anything else.
page_options = _record_options(PageOptions, "page", _PAGE_OPTIONS, PageOptions.settings)


@dataclass(frozen=True)
class DossierOptions:
    """The options of `medfed export --dossier`: what is collected beside the run folder, and who signs."""

    dossier: bool
    sites: tuple[Path, ...]
    site_logs: tuple[Path, ...]
    statements: Path | None
    exported: Path | None
    credentials: Path | None

    @property
    def given(self) -> bool:
        """Whether any of them but `dossier` was given."""
        return bool(self.sites or self.site_logs or self.statements or self.exported or self.credentials)


_DOSSIER_OPTIONS = (
    click.option(
        "--dossier",
        is_flag=True,
        help="Write what an ethics board asks before weights may leave, not a model; --out may be a .zip.",
    ),
    click.option(
        "--site",
        "sites",
        type=PATH,
        multiple=True,
        help="For --dossier: a hospital's site file, whose approval and policy are given by digest.",
    ),
    click.option(
        "--site-log",
        "site_logs",
        type=PATH,
        multiple=True,
        help="For --dossier: a hospital's own log, with which the hub's is compared.",
    ),
    click.option(
        "--statements",
        type=PATH,
        help="For --dossier: a YAML file of what a person says: intended_use, licence, contact, ...",
    ),
    click.option(
        "--exported",
        type=PATH,
        help="For --dossier: the folder of an earlier export, whose files are listed by digest.",
    ),
    click.option(
        "--credentials",
        type=PATH,
        help="For --dossier: the folder of credentials that signs it; the logs must be of its federation.",
    ),
)


dossier_options = _record_options(DossierOptions, "asked", _DOSSIER_OPTIONS, lambda asked: None)
