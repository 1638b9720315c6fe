"""The states of recurrent layers (Mamba, gated delta nets, ...) as parts that ranks of different
tensor-parallel sizes can give each other. Pure.

A block holds a layer's states behind each other: the convolution's last inputs, then the recurrent
state. The recurrent state is cut by heads, its outermost dimension. The convolution's columns are
several projections side by side, each of them cut by ranks on its own.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

from ..pd import Part

__all__ = ["Sharing", "parts_of"]

Shape = Sequence[int]


class Sharing(NamedTuple):
    """How ranks share the states."""

    rank: int
    size: int
    #: The convolution's columns are the outer dimension, not the inner one.
    columns_first: bool = True
    #: Groups that B and C of Mamba2 have in the model; 0: not known. With fewer of them than ranks,
    #: ranks hold copies.
    n_groups: int = 0


def parts_of(kind: str, shapes: Sequence[Shape], item_bytes: Sequence[int],
             sharing: Sharing) -> List[Tuple[Part, int]]:
    """(part, its offset in a block in bytes) of each piece.

    Args:
        kind: name of vLLM's mamba type; of one that is not known the states only go as a whole, to
            ranks of the same place among as many.
        shapes, item_bytes: of the rank's states, one each.
    """
    columns = _columns(kind, shapes, sharing)
    out: List[Tuple[Part, int]] = []
    offset = 0
    for index, (shape, item) in enumerate(zip(shapes, item_bytes)):
        nbytes = _count(shape) * item
        if columns is None and kind != "LINEAR":
            whole = Part(f"state{index}", nbytes, 1, sharing.rank, sharing.size, "")
            out.append((whole, offset))
        elif index == 0 and columns is not None:
            out += _convolution(columns, shape, item, sharing)
        else:
            out.append((_sharded(f"state{index}", nbytes // shape[0], shape[0], sharing.size,
                                 sharing), offset))
        offset += nbytes
    return out


class _Column(NamedTuple):
    name: str
    n: int  #: of this rank
    shards: int  #: different ones among the ranks


def _columns(kind: str, shapes: Sequence[Shape], sharing: Sharing) -> Optional[List[_Column]]:
    """The projections in the convolution's columns; None: not known."""
    size = sharing.size
    if len(shapes[0]) != 2:
        return None
    n = shapes[0][0 if sharing.columns_first else 1]
    if kind in ("MAMBA1", "SHORT_CONV"):
        return [_Column("x", n, size)]
    if kind not in ("MAMBA2", "GDN_ATTN") or len(shapes) < 2 or len(shapes[1]) != 3:
        return None
    values = shapes[1][0] * shapes[1][1]
    half, odd = divmod(n - values, 2)
    if half <= 0 or odd:
        return None
    if kind == "GDN_ATTN":
        return [_Column("q", half, size), _Column("k", half, size), _Column("v", values, size)]
    groups = sharing.n_groups
    if groups and groups < size and size % groups:
        return None
    shards = min(size, groups) if groups else size
    return [_Column("x", values, size), _Column("b", half, shards), _Column("c", half, shards)]


def _convolution(columns: Sequence[_Column], shape: Shape, item: int,
                 sharing: Sharing) -> List[Tuple[Part, int]]:
    out: List[Tuple[Part, int]] = []
    offset = 0
    if sharing.columns_first:
        for column in columns:
            unit = shape[1] * item
            out.append((_sharded(f"state0.{column.name}", unit, column.n, column.shards, sharing),
                        offset))
            offset += unit * column.n
        return out
    for row in range(shape[0]):
        for column in columns:
            out.append((_sharded(f"state0.{column.name}.{row}", item, column.n, column.shards,
                                 sharing), offset))
            offset += item * column.n
    return out


def _sharded(kind: str, unit_bytes: int, units: int, shards: int, sharing: Sharing) -> Part:
    first = sharing.rank * shards // sharing.size * units
    return Part(kind, unit_bytes, units, first, units * shards, "HND")


def _count(shape: Shape) -> int:
    n = 1
    for dim in shape:
        n *= dim
    return n
