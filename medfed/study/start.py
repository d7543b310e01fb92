"""The network that a study takes from the MONAI Bundle that it starts from."""

from __future__ import annotations

import msgspec

from medfed.errors import StudyError
from medfed.models.networks._monai_catalogue import as_arguments, axes_of, entry_of
from medfed.models.networks._monai_network import OF_BUNDLE, MonaiNetwork
from medfed.models.pretrained.bundle import network_definition
from medfed.models.pretrained.source import find_source
from medfed.study.study import Study


def with_bundle_network(study: Study) -> Study:
    """Return the study with its bundle's network written out where it says `name: bundle`.

    The study file that hospitals approve then says the network itself, and its digest covers it.

    Raises:
        StudyError: if there is no bundle, or its network is none that medfed builds.
    """
    network, start = study.network, study.given_start
    if not isinstance(network, MonaiNetwork) or network.name != OF_BUNDLE:
        return study
    if start is None:
        raise StudyError(
            "network.name: 'bundle' takes the network of the bundle that `start` names; give one"
        )
    if network.arguments:
        raise StudyError("network.arguments: with `name: bundle` they are the bundle's; leave them out")
    definition = network_definition(find_source(start.path))
    entry = entry_of(network.catalogue, definition.name)
    arguments = as_arguments(definition.name, entry, definition.arguments)
    axes = axes_of(definition.arguments)
    dims = getattr(study.data, "spatial_dims", 3)
    if axes not in (None, dims):
        raise StudyError(
            f"network.name: the bundle's {definition.name} is for images of {axes} axes, and "
            f"data.spatial_dims is {dims}; set it to {axes}, or name another network"
        )
    named = msgspec.structs.replace(network, name=definition.name, arguments=arguments)
    return msgspec.structs.replace(study, network=named)
