"""An index of the items of a large catalogue: lists around centroids, of codes of 8 bits a number.

A list for a user looks into the lists of the index that are nearest alone; what it finds there is
scored again with the rows of the model. Nothing in the files is faiss's own: they are arrays, whose
shapes and ids are compared with the model before faiss sees them. They are mapped, not read.

index.json          IndexFacts
index.safetensors   centroid, reach, end, low, width, lists: see ItemIndex
"""

# Shape letters: I = items, N = lists, D = length of a vector of the index, S = size of a user's
# state, C = candidates, P = lists that are looked into.

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from recray.errors import DamagedFile, RecrayError
from recray.inference.bundle_checks import checked
from recray.inference.stored_users import PartitionFiles
from recray.inference.top_k import NONE, Ids
from recray.models.base import LinearModel, Model
from recray.storage import Folder, ManifestEntry
from recray.storage.tensors import as_bytes, tensors_in

FACTS, FILE = "index.json", "index.safetensors"
INDEXED_ITEMS = 200_000
"""Catalogues above this have an index. What a filter keeps is scored whole up to here."""
ID_BYTES = 8
LANES = 16
"""Numbers that faiss decodes at once: the length of a vector of the index is a multiple."""
LARGEST = 127
"""Of the whole numbers of a query."""
SMALLEST = 1e-30
"""Number to divide by, so that a query of zeros stays one."""
CHECKED_ITEMS = 64
LACKING = (
    "its index is not used, since faiss is not installed: lists are exact and take much longer; "
    "pip install 'recray[ann]'"
)


class IndexFacts(BaseModel):
    """Content of index.json.

    Args:
        faiss: The version that made it.
        probes: Lists that are looked into for a list of ten.
        wanted: Items that were looked for when that was found: ten and those that a user has seen.
        columns: Which numbers of an item's row, the offset behind it, its vector has.
    """

    model_config = ConfigDict(strict=True, extra="forbid")
    faiss: str
    probes: Annotated[int, Field(ge=1)]
    wanted: Annotated[int, Field(ge=1)]
    columns: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    @property
    def dim(self) -> int:
        """The length of a vector: that of the columns, filled up with zeros."""
        return -(-len(self.columns) // LANES) * LANES


def open_index(folder: Folder, files: list[ManifestEntry], model: Model) -> "ItemIndex | None":
    """The index of a bundle; None where faiss is not installed.

    Args:
        folder: Of the bundle.
        files: Its files.
        model: What answers.

    Raises:
        RecrayError: It is damaged, or not what this version of faiss reads.
    """
    if not is_usable():
        return None
    if not isinstance(model, LinearModel):
        raise DamagedFile(f"{folder} has an index, but its scores are no products")
    facts = checked(IndexFacts, folder.read_json(FACTS), folder.at(FACTS))
    with PartitionFiles(folder, files).file(FILE) as path:
        return ItemIndex(facts, path, model)


def is_usable() -> bool:
    """Whether faiss is installed here."""
    return find_spec("faiss") is not None


def index_vectors(model: LinearModel, items: Tensor | slice, facts: IndexFacts) -> Tensor:
    """(C, D) vectors of items: the columns that differ from item to item of row and offset."""
    whole = torch.cat([model.item_rows(items), model.item_offset(items)[:, None]], dim=1)
    chosen = whole.detach()[:, facts.columns].float()
    return torch.nn.functional.pad(chosen, (0, facts.dim - len(facts.columns)))


class ItemIndex:
    """Finds the items that may be the best of a user, by an inner product of vectors.

    Args:
        facts: index.json.
        path: index.safetensors on this machine's disk; it stays open.
        model: Whose items they are.

    The tensors of the file: centroid (N, D) float32 mean of the items of a list; reach (N,) float32
    how far above it, for a query of length 1, the best of them may be expected; end (N,) int64
    where each list ends among all items; low (D,) float32 least value and width (D,) float32 range
    of each number; and lists, uint8, of each list first the (n, D) codes, then the (n,) int64
    items.

    Raises:
        DamagedFile: The file is not an index of these items.
        RecrayError: This version of faiss reads the codes differently.
    """

    def __init__(self, facts: IndexFacts, path: Path, model: LinearModel) -> None:
        self.facts, self.items = facts, model.items
        with pa.memory_map(str(path)) as mapped:
            held = as_bytes(mapped.read_buffer())
        try:
            tensors = tensors_in(held)
            _check(tensors, facts, model)
        except (KeyError, ValueError) as error:
            raise DamagedFile(f"{path} is damaged: {error}") from error
        self.centroid, self.reach = tensors["centroid"], tensors["reach"]
        lists = tensors["lists"]
        begin = lists.data_ptr() - held.data_ptr()
        if begin % ID_BYTES:
            raise DamagedFile(f"{path} is damaged: lists begin at byte {begin}")
        sizes = np.diff(tensors["end"].numpy(), prepend=0)
        self._check_items(lists.numpy(), sizes, str(path))
        self._scan = _Scan(facts.dim, tensors, sizes, path, begin)
        self._compare_codes(model, lists.numpy(), int(sizes[0]), str(path))

    @property
    def lists(self) -> int:
        """Number of lists."""
        return len(self.centroid)

    def _check_items(self, lists: NDArray[np.uint8], sizes: Ids, path: str) -> None:
        """Each item stands in one list.

        Raises:
            DamagedFile: One does not, or there are others.
        """
        found, dim = np.zeros(self.items, bool), self.facts.dim
        begin = 0
        for size in sizes.tolist():
            codes, begin = begin + size * dim, begin + size * (dim + ID_BYTES)
            item = lists[codes:begin].view(np.int64)
            if size and (int(item.min()) < 0 or int(item.max()) >= self.items):
                raise DamagedFile(f"{path} is damaged: it has an item outside 0..{self.items - 1}")
            found[item] = True
        if not found.all():  # as many places as items, so another one stands there twice
            raise DamagedFile(f"{path} is damaged: an item is in no list")

    def _compare_codes(
        self, model: LinearModel, lists: NDArray[np.uint8], size: int, path: str
    ) -> None:
        """What faiss makes of some codes is what the model has.

        Raises:
            RecrayError: It is not.
        """
        dim, some = self.facts.dim, min(size, CHECKED_ITEMS)
        code = lists[: some * dim].reshape(some, dim)
        item = lists[size * dim : size * dim + some * ID_BYTES].view(np.int64).copy()
        right = index_vectors(model, torch.from_numpy(item), self.facts).numpy()
        off = np.abs(self._scan.decode(code) - right)
        if (off > self._scan.width / 255 + 1e-6).any():
            raise RecrayError(
                f"{path}: codes made with faiss {self.facts.faiss} are not these items' in faiss "
                f"{self._scan.version}: export the bundle again with this version"
            )

    def query_of(self, state: Tensor) -> Tensor:
        """The (D,) vector that is multiplied with those of items, of an (S,) state."""
        whole = torch.cat([state.float(), state.new_ones(1)])[self.facts.columns]
        return torch.nn.functional.pad(whole, (0, self.facts.dim - len(self.facts.columns)))

    def list_scores(self, query: Tensor) -> Tensor:
        """(N,) how good the items of each list may be for a (D,) query."""
        return torch.addmv(self.reach, self.centroid, query, beta=float(query.norm()))

    def find(self, state: Tensor, count: int, probes: int, selector: Any = None) -> Ids:
        """The (C,) items, ascending, that are best by their codes, `count` of them or fewer.

        Args:
            state: (S,) of a user.
            count: How many.
            probes: Lists that are looked into.
            selector: What `selector` gave, if some items alone are allowed.
        """
        query = self.query_of(state)
        near = torch.topk(self.list_scores(query), min(probes, self.lists), sorted=False)[1]
        # Lists that lie together are read together.
        item = self._scan.best(query.numpy(), np.sort(near.numpy()), count, selector)
        return np.sort(item[item != NONE])

    def selector(self, allowed: NDArray[np.bool_]) -> Any:
        """What `find` takes to look at (I,) allowed items alone."""
        import faiss

        return faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


class _Scan:
    """The lists as faiss reads them: mapped, so the system holds what is looked at."""

    def __init__(
        self, dim: int, tensors: Mapping[str, Tensor], sizes: Ids, path: Path, begin: int
    ) -> None:
        import faiss

        self.version, self.width = faiss.__version__, tensors["width"].numpy()
        self._faiss, lists, self._low = faiss, len(sizes), tensors["low"].numpy()
        self._quantizer = faiss.IndexFlatIP(dim)  # stays empty: ItemIndex chooses the lists
        # Codes are taken as they are, less 128: a query has the widths in it, and what the low ends
        # add is the same for all items. The numbers of a query are taken as whole ones, up to 127,
        # so nothing but whole numbers is multiplied.
        kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
        inner = faiss.METRIC_INNER_PRODUCT
        self._index = faiss.IndexIVFScalarQuantizer(self._quantizer, dim, lists, kind, inner, False)
        self._mapped = _mapped(dim, sizes, path, begin)
        self._index.replace_invlists(self._mapped, False)
        self._index.is_trained, self._index.ntotal = True, int(sizes.sum())

    def decode(self, code: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(C, D) codes to (C, D) numbers."""
        whole: NDArray[np.float32] = self._index.sq.decode(np.ascontiguousarray(code))
        found: NDArray[np.float32] = self._low + (whole + 128.5) * self.width / 255
        return found

    def best(self, query: NDArray[np.float32], near: Ids, count: int, selector: Any) -> Ids:
        """The `count` best items of (P,) lists, best first; NONE where there are fewer."""
        to, scaled = self._faiss.swig_ptr, query * self.width
        scaled *= LARGEST / max(float(np.abs(scaled).max()), SMALLEST)
        score, item = np.empty(count, np.float32), np.empty(count, np.int64)
        unused = np.zeros(len(near), np.float32)
        how = self._faiss.SearchParametersIVF(nprobe=len(near), sel=selector)
        given = to(scaled), count, to(near), to(unused), to(score), to(item)
        self._index.search_preassigned_c(1, *given, False, how, None)
        return item


def _mapped(dim: int, sizes: Ids, path: Path, begin: int) -> Any:
    """The lists in the file, which faiss maps."""
    import faiss

    found = faiss.OnDiskInvertedLists()
    found.nlist, found.code_size, found.filename = len(sizes), dim, str(path)
    found.read_only, found.prefetch_nthread = True, 0
    found.totsize = path.stat().st_size
    places = begin + (np.cumsum(sizes) - sizes) * (dim + ID_BYTES)
    found.lists.clear()
    for size, place in zip(sizes.tolist(), places.tolist(), strict=True):
        one = faiss.OnDiskOneList()
        one.size = one.capacity = size
        one.offset = place
        found.lists.push_back(one)
    found.do_mmap()
    return found


def _check(tensors: Mapping[str, Tensor], facts: IndexFacts, model: LinearModel) -> None:
    """Compare shapes and values with each other and with the model.

    Raises:
        KeyError: A tensor is missing.
        ValueError: One is not as it must be.
    """
    first = torch.arange(1)
    row = model.item_rows(first).shape[1]
    if max(facts.columns) > row:
        raise ValueError(f"column {max(facts.columns)} of rows of {row} numbers and an offset")
    dim, end = facts.dim, tensors["end"]
    lists = len(end)
    shapes = {
        "centroid": (torch.float32, (lists, dim)),
        "reach": (torch.float32, (lists,)),
        "end": (torch.int64, (lists,)),
        "low": (torch.float32, (dim,)),
        "width": (torch.float32, (dim,)),
        "lists": (torch.uint8, (model.items * (dim + ID_BYTES),)),
    }
    for name, (kind, shape) in shapes.items():
        found = tensors[name]
        if (found.dtype, tuple(found.shape)) != (kind, shape):
            raise ValueError(f"{name} is {found.dtype} of shape {tuple(found.shape)}, not {shape}")
        if kind == torch.float32 and not bool(torch.isfinite(found).all()):
            raise ValueError(f"{name} has values that are not finite numbers")
    if not lists or int(end[0]) < 0 or bool((end.diff() < 0).any()) or int(end[-1]) != model.items:
        raise ValueError("its lists do not end where the items do")
