"""A stand-in for SGLang's CPU kernels, which no package index has: the one function that its scheduler needs
on a CPU without AMX. Everything else that SGLang computes there it computes with PyTorch."""


def assign_req_to_token_pool_cpu(rows, table, starts, ends, locations, _width):
    """table[rows[i], starts[i]:ends[i]] = the next ends[i] - starts[i] of locations."""
    at = 0
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist()):
        table[row, start:end] = locations[at:at + end - start].to(table.dtype)
        at += end - start


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args, **_options):
        raise NotImplementedError(f"sgl_kernel.{name}: this stand-in for tests does not have it")

    return missing
