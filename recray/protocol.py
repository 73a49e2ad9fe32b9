"""How an evaluation is done, beside its cut-offs: what stands beside the model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Args:
        baselines: Names of what stands beside the model; None: see baselines.choose.
    """

    baselines: tuple[str, ...] | None = None


HONEST = Protocol()
