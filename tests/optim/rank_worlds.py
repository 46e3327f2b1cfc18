"""Jobs of several ranks on the CPU that step the optimizers: `python -m tests.optim.rank_worlds FOLDER` prints what each rank saw.

One process imports torch and builds the references, and forks the ranks of each job in turn.
"""

import json
import math
import multiprocessing
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from nanochat.optim import muon
from nanochat.optim.build import Optimizers
from nanochat.optim.muon import Muon
from nanochat.optim.rounds import deal
from nanochat.optim.settings import OptimizerSettings
from tests.optim.reference import MuonReference, Reference, gradient, relative_error, small_model

MESHES = [(1,), (2,), (3,), (4,), (2, 2)]
DEPTHS = [1, 2, 3]
STEPS = 3
SETTINGS = OptimizerSettings(weight_decay=0.1, warmdown_ratio=0.4, muon_beta2=0.9)
HELD = replace(SETTINGS, muon_hold_norm=True)
SHAPES = [(2, 16)] * 3 + [(7, 5)] * 7 + [(16, 2)] * 5 + [(5, 16)] * 2 + [(1, 8)] * 3  # fewer rows than ranks, rows that do not divide
BATCH_ELEMENTS = 64  # a rank's batch: one matrix (5, 16), two (2, 16): so there are several rounds of a shape


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank."""
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def spread(tensor: Tensor, like: DTensor) -> Tensor:
    """This rank's part of a tensor that every rank has whole; nothing is sent."""
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def reference_of_model(depth: int, settings: OptimizerSettings = SETTINGS) -> Reference:
    """What a model should have become."""
    reference = Reference(small_model(depth), settings)
    for step in range(STEPS):
        reference.step(step, 5)
    return reference


def references_of_shapes() -> list[MuonReference]:
    """What the matrices of awkward shapes should have become."""
    references = [MuonReference(torch.zeros(shape)) for shape in SHAPES]
    for step in range(STEPS):
        for number, reference in enumerate(references):
            reference.step(gradient(str(number), reference.weight, step), 0.02, 0.9)
    return references


def count_orthogonalized() -> list[list[int]]:
    """From now on, shapes (matrices, rows, columns) of the batches that this process orthogonalises."""
    batches: list[list[int]] = []

    def counted(matrices: Tensor, dtype: torch.dtype, *how: str) -> Tensor:
        batches.append(list(matrices.shape))
        return orthogonalize(matrices, dtype, *how)

    orthogonalize, muon.orthogonalize = muon.orthogonalize, counted
    return batches


def step_model(depth: int, mesh: DeviceMesh, reference: Reference, state_first: bool) -> dict[str, Any]:
    """A sharded model after a few steps, with its state made beforehand or by the first step."""
    model = small_model(depth)
    for module in (*model.model.layers, model.model.embed_tokens, model.lm_head, model):
        fully_shard(module, mesh=mesh)
    optimizers = Optimizers(model, reference.settings, torch.float32)
    if state_first:
        optimizers.init_state()
    parameters = dict(model.named_parameters())
    for step in range(STEPS):
        for name, p in parameters.items():
            p.grad = spread(gradient(name, p, step), p)
        optimizers.step(step, 5)
    state = {name: s for name, p in parameters.items() for optimizer in optimizers.all if (s := optimizer.state.get(p))}
    unlike = [
        f"{name} {key}"
        for name, each in state.items()
        for key, value in each.items()
        if key not in ("step", "steps", "norm") and not (isinstance(value, DTensor) and value.placements == parameters[name].placements)
    ]
    return {
        "error": max(reference.errors({name: whole(p) for name, p in parameters.items()}).values()),
        "state": sorted({key for each in state.values() for key in each}),
        "state_unlike_its_parameter": unlike,
        "weights_sum": [float(whole(p).double().sum()) for p in parameters.values()],
    }


def step_shapes(mesh: DeviceMesh, references: list[MuonReference]) -> dict[str, Any]:
    """Matrices of awkward shapes, in batches so small that they take many rounds."""
    placements = (Shard(0),) if mesh.ndim == 1 else (Replicate(), Shard(0))
    parameters = [nn.Parameter(distribute_tensor(torch.zeros(shape), mesh, placements, src_data_rank=None)) for shape in SHAPES]
    optimizer = Muon(parameters, 0.02, 0.9, torch.float32)
    muon.deal = partial(deal, max_batch_elements=BATCH_ELEMENTS)
    for step in range(STEPS):
        for number, p in enumerate(parameters):
            p.grad = spread(gradient(str(number), p, step), p.data)
        optimizer.step()
    muon.deal = deal
    return {
        "error": max(relative_error(whole(p).double(), r.weight) for p, r in zip(parameters, references, strict=True)),
        "empty_shards": sum(p.to_local().numel() == 0 for p in parameters),
    }


def be_rank(
    rank: int, shape: tuple[int, ...], folder: Path, models: dict[int, Reference], held: Reference, shapes: list[MuonReference]
) -> None:
    """One rank of a job; what it saw goes to a file of its own."""
    name = "x".join(map(str, shape))
    dist.init_process_group("gloo", init_method=f"file://{folder / name}", rank=rank, world_size=math.prod(shape))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("shard",) if len(shape) == 1 else ("replicate", "shard"))
    orthogonalized = count_orthogonalized()
    saw: dict[str, Any] = {}
    for depth in DEPTHS:
        orthogonalized.clear()
        saw[f"depth {depth}"] = step_model(depth, mesh, models[depth], False) | {"orthogonalized": list(orthogonalized)}
    saw["state made first"] = step_model(DEPTHS[0], mesh, models[DEPTHS[0]], True)
    saw["norms held"] = step_model(DEPTHS[0], mesh, held, True)
    orthogonalized.clear()
    saw["awkward"] = step_shapes(mesh, shapes) | {"orthogonalized": orthogonalized}
    (folder / f"{name}-{rank}.json").write_text(json.dumps(saw))
    dist.destroy_process_group()


def main(folder: Path) -> None:
    """Every job, one after the other."""
    models = {depth: reference_of_model(depth) for depth in DEPTHS}
    held, shapes = reference_of_model(DEPTHS[0], HELD), references_of_shapes()
    fork = multiprocessing.get_context("fork")
    found = {}
    for mesh in MESHES:
        ranks = [fork.Process(target=be_rank, args=(rank, mesh, folder, models, held, shapes)) for rank in range(math.prod(mesh))]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        name = "x".join(map(str, mesh))
        files = [folder / f"{name}-{rank}.json" for rank in range(len(ranks))]
        found[name] = [json.loads(file.read_text()) if file.exists() else None for file in files]
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
