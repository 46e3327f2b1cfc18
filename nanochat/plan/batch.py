"""How the tokens of a step are split into micro-batches, and how many steps a run takes."""

from nanochat.common.errors import UserError
from nanochat.plan import sizes


def micro_batches(total_batch_size: int, seq_len: int, world_size: int, device_batch_size: int) -> tuple[int, int]:
    """Sequences in a micro-batch, and micro-batches that a rank takes in a step.

    The micro-batch is the largest that is at most `device_batch_size` and divides a rank's sequences evenly.
    Raises UserError when the tokens of a step do not split evenly into sequences over the ranks.
    """
    tokens = seq_len * world_size
    if total_batch_size % tokens or total_batch_size < tokens:
        below, above = total_batch_size // tokens * tokens, (total_batch_size // tokens + 1) * tokens
        nearest = f"{below} and {above}" if below else f"{above} and {2 * above}"
        raise UserError(
            f"--total_batch_size={total_batch_size}: does not divide by sequences of {seq_len} tokens × {world_size} ranks; "
            f"the nearest that do are {nearest}"
        )
    sequences = total_batch_size // tokens
    micro_batch_size = next(size for size in range(min(device_batch_size, sequences), 0, -1) if sequences % size == 0)
    return micro_batch_size, sequences // micro_batch_size


def num_iterations(
    depth: int,
    vocab_size: int,
    seq_len: int,
    total_batch_size: int,
    num_iterations: int,
    target_flops: float,
    target_param_data_ratio: float,
) -> int:
    """Steps of a base run: as asked for, else by FLOPs to spend, else by tokens per parameter; each is off when not positive.

    Raises UserError when all three are off.
    """
    if num_iterations > 0:
        return num_iterations
    if target_flops > 0:
        tokens = target_flops / sizes.flops_per_token(depth, vocab_size, seq_len)
    elif target_param_data_ratio > 0:
        tokens = target_param_data_ratio * sizes.parameters(depth, vocab_size)
    else:
        raise UserError("how long to train is not said: give --num_iterations, --target_flops or --target_param_data_ratio")
    return max(1, round(tokens / total_batch_size))
