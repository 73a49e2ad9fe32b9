"""What follows from all users of a bundle, so that whoever answers need not read them."""

# Shape letters: I = items, S = size of a user's state.

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.errors import DamagedFile
from recray.models.base import UserMoments
from recray.models.history import HistoryModel
from recray.storage import Folder
from recray.storage.tensors import as_bytes, tensors_in

if TYPE_CHECKING:
    from recray.inference.bundle import Bundle

FILE = "facts.safetensors"


@dataclass(frozen=True)
class ServiceFacts:
    """Sums over all users.

    Args:
        popularity: (I,) float32 ratings of each item.
        trained_popularity: (I,) float32 the same of the users that training knows.
        scale: (3,) float64 lowest and highest rating that anybody gave, and the step between
            ratings, 0 where there is none.
        mean: () float32 mean rating, and item_bias: (I,) float32, as BiasOnly has them.
        moments: (2, S) float64 mean and variance of the states of trained users; (2, 0) of models
            whose states follow from histories.
    """

    popularity: Tensor
    trained_popularity: Tensor
    scale: Tensor
    mean: Tensor
    item_bias: Tensor
    moments: Tensor

    @classmethod
    def of(cls, bundle: "Bundle") -> Self:
        """Count them in a bundle whose users are in memory."""
        from recray.inference.scorer import Scorer

        scorer = Scorer.for_service(bundle)
        moments = torch.zeros(2, 0, dtype=torch.float64)
        if not isinstance(bundle.model, HistoryModel):
            moments = torch.stack([*bundle.model.user_moments()])
        return cls(
            scorer.popularity,
            scorer.trained_popularity,
            scale_of(bundle),
            scorer.bias_only.mean,
            scorer.bias_only.item_bias,
            moments,
        )

    @property
    def user_moments(self) -> UserMoments | None:
        """Mean and variance of states; None where they follow from histories."""
        return UserMoments(*self.moments) if self.moments.numel() else None

    def write(self, folder: Folder) -> None:
        """Write them into a bundle."""
        tensors = {field.name: getattr(self, field.name).contiguous() for field in fields(self)}
        folder.write_bytes(FILE, safetensors.torch.save(tensors))

    @classmethod
    def read(cls, folder: Folder, items: int) -> Self:
        """Read those of a bundle.

        Raises:
            DamagedFile: One is missing, of another shape, or has values that are not finite.
        """
        path = f"{folder}/{FILE}"
        try:
            tensors = tensors_in(as_bytes(folder.read_buffer(FILE)))
            found = cls(**{field.name: tensors[field.name] for field in fields(cls)})
            for name in ("popularity", "trained_popularity", "item_bias"):
                if tensors[name].shape != (items,):
                    raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}")
            if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
                raise ValueError("it has values that are not finite numbers")
        except (KeyError, ValueError) as error:
            raise DamagedFile(f"{path} is damaged: {error}") from error
        return found


def scale_of(bundle: "Bundle") -> Tensor:
    """(3,) float64 lowest and highest rating that anybody gave, and the step between them, or 0.

    What a filter kept from training counts: people may still give it.
    """
    given = bundle.interactions.known.rating
    low, high = bundle.rating_range
    ends = min(low, float(given.min(initial=low))), max(high, float(given.max(initial=high)))
    return torch.tensor([*ends, step_of(given) or 0], dtype=torch.float64)


def step_of(ratings: NDArray[np.float32]) -> float | None:
    """The step between the ratings of a scale, such as 0.5; None where there is no common one.

    A scale with one value, or with more than 100, has none.
    """
    levels = np.sort(pc.unique(pa.array(ratings)).to_numpy())
    if not 2 <= len(levels) <= 100:
        return None
    thousandths = (levels.astype(np.float64) - float(levels[0])) * 1000
    whole = thousandths.round().astype(np.int64)
    return float(np.gcd.reduce(whole)) / 1000 if np.abs(thousandths - whole).max() < 0.1 else None
