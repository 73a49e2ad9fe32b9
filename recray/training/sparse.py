"""A step on the rows that a batch touches, so that its cost does not grow with the tables."""

# Shape letters: N = rows touched, D = vector length, R = rows of the table, C = columns of several
# tables side by side.

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from recray.config import TrainSettings
from recray.data.negatives import Negatives
from recray.models.base import Model
from recray.models.batches import Batch, BatchIds, UniqueIds
from recray.training.collectives import PendingSum, SparseAllReduce
from recray.training.optimizers import OptimizerStep
from recray.training.shard import Workers

OptimizerState = dict[str, Tensor]
BETAS = (0.9, 0.999)
EPSILON = 1e-8


class SparseOptimizer(ABC):
    """Changes the rows of a table that a batch touches; all others keep their values and state.

    Args:
        lr: Learning rate.
        decay: Weight decay of a touched row in a step, to be multiplied by lr.
    """

    def __init__(self, lr: float, decay: float) -> None:
        self.lr, self.decay = lr, decay

    @abstractmethod
    def init_state(self, table: Tensor) -> OptimizerState:
        """Create what the optimizer keeps for an (R, D) table: tensors whose first axis is R."""

    @abstractmethod
    def delta(self, state: OptimizerState, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Update the state; return what is added to the rows, in the gradient's own memory.

        Args:
            state: What init_state returned for the table.
            ids: (N,) rows, each once.
            gradient: (N, D), which is overwritten.
            step: Number of the step, from 1.
        """

    @torch.no_grad()
    def update(
        self, table: Tensor, state: OptimizerState, ids: Tensor, gradient: Tensor, step: int
    ) -> None:
        """Take one step with the (N, D) gradient of the (N,) rows, each of which occurs once."""
        delta = self.delta(state, ids, gradient, step)
        if self.decay:
            delta.add_(table.index_select(0, ids), alpha=-self.lr * self.decay)
        table.index_add_(0, ids, delta)


class SparseSGD(SparseOptimizer):
    """Plain gradient descent: equal to the dense one, where a row without a gradient stays."""

    def init_state(self, table: Tensor) -> OptimizerState:
        """Keep nothing."""
        return {}

    def delta(self, state: OptimizerState, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return -lr times the gradient."""
        return gradient.mul_(-self.lr)


class RowwiseAdagrad(SparseOptimizer):
    """Adagrad with one number a row: the sum over steps of the row's mean squared gradient.

    Source: Duchi, Hazan and Singer (2011), JMLR 12; by rows as in Naumov et al. (2019),
        "Deep learning recommendation model", arXiv:1906.00091.
    """

    def init_state(self, table: Tensor) -> OptimizerState:
        """Create the (R,) sums."""
        return {"sum": table.new_zeros(len(table))}

    def delta(self, state: OptimizerState, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return -lr times the gradient, over the root of the row's sum."""
        norm = torch.linalg.vector_norm(gradient, dim=-1)
        total = state["sum"].index_select(0, ids)
        total.addcmul_(norm, norm, value=1 / gradient.shape[1])
        state["sum"].index_copy_(0, ids, total)
        return gradient.mul_((-self.lr / total.sqrt_().add_(EPSILON))[:, None])


class LazyAdam(SparseOptimizer):
    """Adam whose moments of a row change only when a batch touches it, as in torch's SparseAdam.

    Source: Kingma and Ba (2015), ICLR; the bias correction counts all steps, as torch's does.
    """

    def init_state(self, table: Tensor) -> OptimizerState:
        """Create the two (R, D) moments."""
        return {name: torch.zeros_like(table) for name in ("exp_avg", "exp_avg_sq")}

    def delta(self, state: OptimizerState, ids: Tensor, gradient: Tensor, step: int) -> Tensor:
        """Return -lr times the corrected first moment, over the root of the second."""
        first, second = (
            state[name].index_select(0, ids).mul_(beta)
            for name, beta in zip(("exp_avg", "exp_avg_sq"), BETAS, strict=True)
        )
        first.add_(gradient, alpha=1 - BETAS[0])
        second.addcmul_(gradient, gradient, value=1 - BETAS[1])
        state["exp_avg"].index_copy_(0, ids, first)
        state["exp_avg_sq"].index_copy_(0, ids, second)
        root = second.sqrt_().mul_((1 - BETAS[1] ** step) ** -0.5).add_(EPSILON)
        scale = -self.lr / (1 - BETAS[0] ** step)
        return torch.div(first, root, out=gradient).mul_(scale)


SPARSE_OPTIMIZERS: dict[str, type[SparseOptimizer]] = {
    "sgd": SparseSGD,
    "adagrad": RowwiseAdagrad,
    "lazy-adam": LazyAdam,
}


class SparseStep(OptimizerStep):
    """A step of a sparse optimizer on the rows of the tables that a batch touches.

    The loss is computed on a small copy of the model: its tables hold the touched rows alone, and
    its layers are the model's own. While the item rows are being summed over workers, this worker
    changes its users and prepares the next batch.

    Args:
        model: The model; all but the rows of users is equal on every worker.
        settings: Optimizer, lr and weight decay.
        workers: The group.
        max_pairs: Most pairs of one worker in one step.
    """

    def __init__(
        self, model: Model, settings: TrainSettings, workers: Workers, max_pairs: int
    ) -> None:
        super().__init__(model, _with_empty_tables(model), settings, workers)
        self.optimizer = _optimizer_of(self.layers, settings)
        decay = 0.0 if settings.optimizer == "sgd" else settings.weight_decay
        self.sparse = SPARSE_OPTIMIZERS[settings.optimizer](settings.lr, decay)
        tables = {name: table.weight.data for name, table in model.embeddings().items()}
        self.states = {name: self.sparse.init_state(table) for name, table in tables.items()}
        self.user_tables = {name: table.data for name, table in self.user_tables.items()}
        self.item_tables = {name: table.data for name, table in self.item_tables.items()}
        columns = sum(table.shape[1] for table in self.item_tables.values())
        self.all_reduce = (
            SparseAllReduce(model.items, columns, max_pairs, workers) if workers.size > 1 else None
        )
        self.steps = 0
        self._pending: PendingSum | None = None
        modules = zip(_models_in(self.batch_model), _models_in(model), strict=True)
        self._buffers = [(s, m, name) for s, m in modules for name in m.item_buffers]

    @property
    def bytes_per_step(self) -> float:
        """What a worker receives from the others in a step, on average."""
        table = next(iter(self.item_tables.values()))
        rows = 0 if self.is_local or self.all_reduce is None else self.all_reduce.received
        return super().bytes_per_step + rows * table.element_size()

    def prepare(self, batch: Batch) -> Batch:
        """Put the rows of a batch into the small model; ids become row numbers of its tables."""
        valid, drawn = slice(batch.num_valid), batch.negatives  # padding would count as touched
        chosen = batch.item[valid, None]
        if drawn is not None:
            chosen = torch.cat([chosen, drawn.item[valid]], dim=1)
        self.ids = users, items = BatchIds(UniqueIds.of(batch.user[valid]), UniqueIds.of(chosen))
        self._load(self.user_tables, users.ids)
        self._finish_items()  # the last moment: the next line reads item rows
        self._load(self.item_tables, items.ids)
        for small, model, name in self._buffers:
            setattr(small, name, getattr(model, name).index_select(0, items.ids))
        if drawn is not None:
            share = drawn.log_share.index_select(0, items.ids)
            drawn = Negatives(items.local[:, 1:], drawn.weight[valid], share, drawn.items)
        rating, weight = batch.rating[valid], batch.weight[valid]
        return Batch(
            users.local, items.local[:, 0], rating, weight, batch.num_valid, drawn, self.ids
        )

    def _load(self, tables: dict[str, Tensor], ids: Tensor) -> None:
        for name, table in tables.items():
            rows = nn.Parameter(table.index_select(0, ids))
            self.batch_model.get_submodule(name).register_parameter("weight", rows)

    def take(self, loss: Tensor, step: int) -> None:
        """Take one step down a loss that is this worker's part of the whole."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.steps += 1
        users, items = self.ids
        gradient = self._gradient(self.item_tables)
        if self.all_reduce is not None and not self.is_local:
            self._pending = self.all_reduce.begin(items.ids, gradient)
        else:
            self._update(self.item_tables, items.ids, gradient)
        self._update(self.user_tables, users.ids, self._gradient(self.user_tables))
        self._sum_gradients()
        self.optimizer.step()
        self._average_if_due(step)

    def _gradient(self, tables: dict[str, Tensor]) -> Tensor:
        """(N, C) gradients of the touched rows of some tables, side by side."""
        rows = [self.batch_model.get_parameter(f"{name}.weight") for name in tables]
        found = [torch.zeros_like(r) if r.grad is None else r.grad for r in rows]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _update(self, tables: dict[str, Tensor], ids: Tensor, gradient: Tensor) -> None:
        widths = [table.shape[1] for table in tables.values()]
        parts = gradient.split(widths, dim=1)
        for (name, table), part in zip(tables.items(), parts, strict=True):
            self.sparse.update(table, self.states[name], ids, part, self.steps)

    def _finish_items(self) -> None:
        """Wait for the sums of the step before, and change the item rows with them."""
        if self._pending is not None:
            ids, gradient = self._pending()
            self._pending = None
            self._update(self.item_tables, ids, gradient)

    def finish_steps(self) -> None:
        """Make what workers share equal on all of them, after the last of some steps."""
        self._finish_items()
        super().finish_steps()

    def _shared(self) -> list[Tensor]:
        return self.layers

    def _averaged(self) -> list[Tensor]:
        return [*self._with_states(self.item_tables), *super()._averaged()]

    def _with_states(self, tables: dict[str, Tensor]) -> Iterator[Tensor]:
        """Yield each table and its optimizer states, in an order that is equal on all workers."""
        for name, table in tables.items():
            yield from [table, *(value for _, value in sorted(self.states[name].items()))]

    def state(self) -> dict[str, Tensor]:
        """States of items by table and name, of layers by number and name, and the steps taken."""
        layers = {f"layer/{key}": value for key, value in super().state().items()}
        return {"steps": torch.tensor(self.steps), **self._rows(self.item_tables), **layers}

    def user_state(self) -> dict[str, Tensor]:
        """States of the users by table and name."""
        return self._rows(self.user_tables)

    def _rows(self, tables: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"{n}/{slot}": value for n in tables for slot, value in self.states[n].items()}

    def load_state(self, shared: dict[str, Tensor], user_rows: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state` and `user_state`."""
        self.steps = int(shared["steps"])
        known = shared | user_rows
        for name, value in self._rows(self.user_tables | self.item_tables).items():
            value.copy_(known[name])
        layers = {k.removeprefix("layer/"): v for k, v in shared.items() if k.startswith("layer/")}
        super().load_state(layers, {})


def _models_in(model: Model) -> list[Model]:
    """The model and the models that it is made of."""
    return [module for module in model.modules() if isinstance(module, Model)]


def _with_empty_tables(model: Model) -> Model:
    """Copy a model with empty tables; layers and buffers are the model's own."""
    # deepcopy takes what its memo holds as copied already: that is how both share the layers.
    shared: dict[int, object] = {id(p): p for p in (*model.parameters(), *model.buffers())}
    for table in model.embeddings().values():
        shared[id(table.weight)] = nn.Parameter(table.weight.detach()[:0].clone())
    return copy.deepcopy(model, shared)


def _optimizer_of(layers: list[Tensor], settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of what is no table, of the same kind as that of the rows."""
    group = [{"params": layers}]  # a plain list may not be empty, a group may
    if settings.optimizer == "sgd":
        return torch.optim.SGD(group, lr=settings.lr)
    if settings.optimizer == "adagrad":
        return torch.optim.Adagrad(group, lr=settings.lr)
    return torch.optim.AdamW(group, lr=settings.lr, weight_decay=0.0, fused=True)
