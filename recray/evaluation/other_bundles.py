"""Bundles that are measured beside the model, on the very same targets."""

from collections.abc import Sequence

from recray.errors import RecrayError
from recray.evaluation.protocol import OtherBundle
from recray.inference.bundle import Bundle

VERSION_DIGITS = 6
"""Digits of a version that tell bundles of one preset apart in reports."""


def other_bundles(bundle: Bundle, paths: Sequence[str]) -> tuple[OtherBundle, ...]:
    """Name other bundles, which must have the same targets.

    Args:
        bundle: The bundle that they are compared with.
        paths: Their folders.

    Raises:
        RecrayError: One of them comes from another data set, split or fit, or is named twice.
    """
    found: list[OtherBundle] = []
    versions = {bundle.version}
    for path in paths:
        other = Bundle.open(path)
        check_same_targets(bundle, other, path)
        if other.version in versions:
            raise RecrayError(f"--against {path}: version {other.version} is compared already")
        versions.add(other.version)
        name = f"{other.settings.preset} {other.version[:VERSION_DIGITS]}"
        found.append(OtherBundle(path, other.version, name))
    return tuple(found)


def check_same_targets(bundle: Bundle, other: Bundle, path: str) -> None:
    """Refuse a bundle that was measured on other rows, or learned from other splits.

    Raises:
        RecrayError: It was; which of the two, and of what.
    """
    own, its = bundle.measured, other.measured
    if own.config["fingerprints"] != its.config["fingerprints"]:
        raise RecrayError(
            f"--against {path} comes from {its.config['dataset']}, split "
            f"{its.config['split']['kind']}, and not from the very data set of "
            f"{bundle.folder.path} ({own.config['dataset']}, split {own.config['split']['kind']}): "
            "their targets differ; train both on one prepared data set"
        )
    fits = [fit.settings.train.fit_on for fit in (own, its)]
    if fits[0] != fits[1]:
        raise RecrayError(
            f"--against {path} was measured as the fit on {fits[1]}, {bundle.folder.path} as the "
            f"fit on {fits[0]}; export both in the same way"
        )
