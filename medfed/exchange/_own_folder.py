"""What a site says whose own folder is not as it left it: a back-up, or changed by a disk."""

from __future__ import annotations

# How the messages begin.
OLDER_FOLDER = "its run folder is older than its update"
DAMAGED_MODEL = "its run folder holds a damaged model"


def older_folder(sent: int, known: int) -> str:
    """Say that a folder knows of round `known` at most, where the site has sent round `sent`."""
    return (
        f"{OLDER_FOLDER} of round {sent}, and knows of round {known} at most: it was restored from a "
        "back-up. It goes on with the hub's newest model; its optimiser and what else is kept here alone are "
        "those of then, so the final weights may be others than without the restoring"
    )


def damaged_model(round: int) -> str:
    """Say that the model from which a killed site would train again is no longer what it received."""
    return (
        f"{DAMAGED_MODEL} of round {round}: it cannot train from it again. It goes on with the hub's newest "
        "model; its optimiser and what else is kept here alone are not those of then, so the final weights "
        "may be others than without the damage. Look after the disk of the run folder"
    )
