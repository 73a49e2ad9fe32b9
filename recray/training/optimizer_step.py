"""What a step does with a loss: gradients, their sum over workers, and the optimizer."""

# Shape letters: N = rows touched by this worker's batch, D = vector length.

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from recray.config import TrainSettings
from recray.data.negatives import Negatives
from recray.models.base import Model, is_user_table
from recray.models.batch_embedding import Batch, BatchIds, UniqueIds
from recray.training.collectives import Workers
from recray.training.sparse_allreduce import RowExchange, Summed
from recray.training.sparse_optimizers import ROW_OPTIMIZERS, Slots


class Gradient:
    """A torch optimizer on tables and layers, of which every worker has a copy.

    Only what workers share is summed in a step: items and layers. The rows of a user change where
    the user's ratings are, and nowhere else; they are gathered once an epoch.

    With train.local_sgd_steps above 1 nothing is summed: every worker goes its own way, and what is
    shared is averaged after so many steps and at the end of an epoch.

    Args:
        model: The model, equal on every worker.
        owned: (users,) bool; whose rows this worker changes. Each user has one owner.
        settings: Optimizer, lr and weight decay.
        workers: The group.
    """

    def __init__(
        self, model: Model, owned: Tensor, settings: TrainSettings, workers: Workers
    ) -> None:
        self.model, self.workers, self.owned = model, workers, owned
        self.settings, self.taken = settings, 0
        self.parameters = list[Tensor](model.parameters())
        named = model.embeddings().items()
        self.of_users: list[Tensor] = [t.weight for name, t in named if is_user_table(name)]
        if settings.optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(self.parameters, lr=settings.lr)
            return
        # Vectors decay, layers do not: those of a rare user or item have little else to hold them.
        tables: list[Tensor] = [table.weight for table in model.embeddings().values()]
        rest = [p for p in self.parameters if not any(p is table for table in tables)]
        self.parameters = [*tables, *rest]
        groups: list[dict[str, Any]] = [{"params": tables, "weight_decay": settings.weight_decay}]
        groups += [{"params": rest}] if rest else []
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.0, fused=True)

    @property
    def averages(self) -> bool:
        """Whether workers average now and then, instead of adding up every gradient."""
        return self.workers.size > 1 and self.settings.local_sgd_steps > 1

    @property
    def bytes_a_step(self) -> float:
        """What a worker receives of the others in a step, on average."""
        summed = sum(p.numel() * p.element_size() for p in self._shared())
        passes = 2 * (self.workers.size - 1) / self.workers.size
        if not self.averages:
            return passes * summed
        averaged = sum(s.numel() * s.element_size() for s in self._knowledge())
        return passes * averaged / self.settings.local_sgd_steps

    def begin(self, steps: int) -> None:
        """Forget the losses of the epoch before."""
        self.losses = torch.zeros(steps, dtype=torch.float64, device=self.owned.device)
        self.taken = 0

    def note(self, step: int, loss: Tensor) -> None:
        """Remember this worker's sum of losses of a step, without waiting for the device."""
        self.losses[step] = loss.detach()
        self.taken = step + 1

    def bad_step(self) -> int | None:
        """The first step of the epoch whose loss was not finite, from 1; None if all were."""
        bad = torch.nonzero(~torch.isfinite(self.losses))
        return int(bad[0]) + 1 if len(bad) else None

    def touch(self, batch: Batch) -> Batch:
        """Make `model` ready for a batch, and the batch for the model."""
        return batch

    def step(self, loss: Tensor) -> None:
        """Take one step down a loss that is this worker's part of the whole."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._sum_gradients()
        self.optimizer.step()
        self._average_if_due()

    def gather(self) -> None:
        """Give every worker the rows of all users, and what the optimizer knows of them."""
        if self.workers.size == 1:
            return
        if self.averages:
            self._average()
        for values in self._rows_of_users():
            owned = self.owned.view(-1, *[1] * (values.dim() - 1))
            values.mul_(owned)  # each row is nonzero on its owner alone
            self.workers.sum(values)

    def _rows_of_users(self) -> Iterator[Tensor]:
        """Tables with a row for each user, of the model and of the optimizer."""
        for table in self.of_users:
            # By name: a resumed worker may have read them from the file in another order.
            slots = [slot for _, slot in sorted(self.optimizer.state.get(table, {}).items())]
            rows = [s for s in slots if isinstance(s, Tensor) and s.shape == table.shape]
            yield from [table.data, *rows]

    def _shared(self) -> list[Tensor]:
        """The parameters of which every worker has a copy."""
        return [p for p in self.parameters if not any(p is own for own in self.of_users)]

    def _knowledge(self) -> list[Tensor]:
        """What is averaged: shared parameters, and what the optimizer knows of them."""
        known = list[Tensor]()
        for parameter in self._shared():
            slots = sorted(self.optimizer.state.get(parameter, {}).items())
            known += [parameter.data, *(s for _, s in slots if torch.is_floating_point(s))]
        return known

    def _average_if_due(self) -> None:
        if self.averages and (self.taken + 1) % self.settings.local_sgd_steps == 0:
            self._average()

    def _average(self) -> None:
        for values in self._knowledge():
            self.workers.sum(values).div_(self.workers.size)

    def _sum_gradients(self) -> None:
        """One message for all that workers share."""
        if self.workers.size == 1 or self.averages:
            return
        gradients = [p.grad for p in self._shared() if p.grad is not None]
        if not gradients:
            return
        flat = self.workers.sum(torch.cat([g.reshape(-1) for g in gradients]))
        for gradient, part in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient))

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by parameter and name."""
        return _tensors_of(self.optimizer)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state`."""
        _load_tensors(self.optimizer, state)


class RowGradient(Gradient):
    """An optimizer of rows on the tables, of which it sees those that a batch touches.

    The loss is computed on a small model, whose tables are these rows and whose layers are the
    model's own; so a step costs what its batch has, however large the tables are.

    Rows of items are summed over workers while this worker changes its users and prepares the
    next batch.

    Args:
        model: The model, equal on every worker.
        owned: (users,) bool; whose rows this worker changes. Each user has one owner.
        settings: Optimizer, lr and weight decay.
        workers: The group.
        most: Pairs of one worker in one step.
    """

    def __init__(
        self, model: Model, owned: Tensor, settings: TrainSettings, workers: Workers, most: int
    ) -> None:
        self.whole, self.model = model, _small(model)
        self.workers, self.owned, self.settings = workers, owned, settings
        self.taken = self.steps = 0
        named = {name: table.weight for name, table in model.embeddings().items()}
        every: list[Tensor] = list(model.parameters())
        self.layers = [p for p in every if not any(p is t for t in named.values())]
        self.optimizer = _of_layers(self.layers, settings)
        self.users = {name: t.data for name, t in named.items() if is_user_table(name)}
        self.items = {name: t.data for name, t in named.items() if not is_user_table(name)}
        decay = 0.0 if settings.optimizer == "sgd" else settings.weight_decay
        self.rule = ROW_OPTIMIZERS[settings.optimizer](settings.lr, decay)
        self.slots = {name: self.rule.slots(table.data) for name, table in named.items()}
        columns = sum(table.shape[1] for table in self.items.values())
        self.exchange = RowExchange(model.items, columns, most, workers)
        self._waiting: Summed | None = None

    @property
    def bytes_a_step(self) -> float:
        """What a worker receives of the others in a step, on average."""
        table = next(iter(self.items.values()))
        rows = 0.0 if self.averages else self.exchange.received * table.element_size()
        return super().bytes_a_step + rows

    def touch(self, batch: Batch) -> Batch:
        """Put the rows of a batch into the small model; its ids become places among them."""
        valid, drawn = slice(batch.num_valid), batch.negatives  # padding would count as touched
        chosen = batch.item[valid, None]
        if drawn is not None:
            chosen = torch.cat([chosen, drawn.item[valid]], dim=1)
        self.ids = users, items = BatchIds(UniqueIds.of(batch.user[valid]), UniqueIds.of(chosen))
        self._fill(self.users, users.ids)
        self._finish()
        self._fill(self.items, items.ids)
        for small, whole in zip(_models(self.model), _models(self.whole), strict=True):
            for name in whole.item_buffers:
                setattr(small, name, getattr(whole, name).index_select(0, items.ids))
        if drawn is not None:
            share = drawn.log_share.index_select(0, items.ids)
            drawn = Negatives(items.local[:, 1:], drawn.weight[valid], share)
        rating, weight = batch.rating[valid], batch.weight[valid]
        return Batch(
            users.local, items.local[:, 0], rating, weight, batch.num_valid, drawn, self.ids
        )

    def _fill(self, tables: dict[str, Tensor], ids: Tensor) -> None:
        for name, table in tables.items():
            rows = nn.Parameter(table.index_select(0, ids))
            self.model.get_submodule(name).register_parameter("weight", rows)

    def step(self, loss: Tensor) -> None:
        """Take one step down a loss that is this worker's part of the whole."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.steps += 1
        users, items = self.ids
        gradient = self._gradient(self.items)
        if self.workers.size > 1 and not self.averages:
            self._waiting = self.exchange.begin(items.ids, gradient)
        else:
            self._change(self.items, items.ids, gradient)
        self._change(self.users, users.ids, self._gradient(self.users))
        self._sum_gradients()
        self.optimizer.step()
        self._average_if_due()

    def _gradient(self, tables: dict[str, Tensor]) -> Tensor:
        """(N, C) gradients of the rows of some tables, side by side."""
        rows = [self.model.get_parameter(f"{name}.weight") for name in tables]
        found = [torch.zeros_like(r) if r.grad is None else r.grad for r in rows]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def _change(self, tables: dict[str, Tensor], ids: Tensor, gradient: Tensor) -> None:
        widths = [table.shape[1] for table in tables.values()]
        parts = gradient.split(widths, dim=1)
        for (name, table), part in zip(tables.items(), parts, strict=True):
            self.rule.update(table, self.slots[name], ids, part, self.steps)

    def _finish(self) -> None:
        """Wait for the items of the step before, and change them."""
        if self._waiting is not None:
            ids, gradient = self._waiting()
            self._waiting = None
            self._change(self.items, ids, gradient)

    def gather(self) -> None:
        """Give every worker the rows of all users, and what the optimizer knows of them."""
        self._finish()
        super().gather()

    def _rows_of_users(self) -> Iterator[Tensor]:
        for name, table in self.users.items():
            yield from [table, *_by_name(self.slots[name])]

    def _shared(self) -> list[Tensor]:
        return self.layers

    def _knowledge(self) -> list[Tensor]:
        tables = [s for n, table in self.items.items() for s in (table, *_by_name(self.slots[n]))]
        return [*tables, *super()._knowledge()]

    def state(self) -> dict[str, Tensor]:
        """What is known of rows by table and name, of layers by number and name, and the steps."""
        rows = {f"{n}/{s}": value for n, slots in self.slots.items() for s, value in slots.items()}
        layers = {f"layer/{key}": value for key, value in _tensors_of(self.optimizer).items()}
        return {"steps": torch.tensor(self.steps), **rows, **layers}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state`."""
        self.steps = int(state["steps"])
        for name, slots in self.slots.items():
            for slot, value in slots.items():
                value.copy_(state[f"{name}/{slot}"])
        layers = {k.removeprefix("layer/"): v for k, v in state.items() if k.startswith("layer/")}
        _load_tensors(self.optimizer, layers)


def _by_name(slots: Slots) -> list[Tensor]:
    return [slot for _, slot in sorted(slots.items())]


def _models(model: Model) -> list[Model]:
    """The model and those that it is made of."""
    return [module for module in model.modules() if isinstance(module, Model)]


def _small(model: Model) -> Model:
    """The same model with empty tables; layers and buffers are the model's own."""
    shared: dict[int, Any] = {id(p): p for p in (*model.parameters(), *model.buffers())}
    for table in model.embeddings().values():
        shared[id(table.weight)] = nn.Parameter(table.weight.detach()[:0].clone())
    return copy.deepcopy(model, shared)


def _of_layers(layers: list[Tensor], settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of what is no table, of the same kind as that of the rows."""
    group: list[dict[str, Any]] = [{"params": layers}]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(group, lr=settings.lr)
    if settings.optimizer == "adagrad":
        return torch.optim.Adagrad(group, lr=settings.lr)
    return torch.optim.AdamW(group, lr=settings.lr, weight_decay=0.0, fused=True)


def _tensors_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer knows, by number of the parameter and name."""
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if value is not None
    }


def _load_tensors(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        index, name = key.split(".")
        slots.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
