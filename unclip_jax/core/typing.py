"""Types of ours, and the legend of the names of dimensions in annotations.

    b  rows of a batch      n  rows of a request, tokens      h, w, c  height, width, channels of an image; H, W larger
    d  width                q, s  queries, and the keys they look at     k  heads, candidates of a row
    t  rows of a process    s  steps of a sampler             dims  all but the first

A name that stands alone is written with a leading space, `Float[Array, " b"]`. The annotations cost nothing in
production; the tests check them with beartype.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

Params = dict[str, Any]
"""A network's parameters: nested dicts of float arrays, as `init` makes them."""

if TYPE_CHECKING:
    Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
else:
    # beartype cannot follow a type into itself.
    Json: TypeAlias = dict | list | str | int | float | bool | None
JsonDict: TypeAlias = dict[str, Json]


@runtime_checkable
class HasShape(Protocol):
    """What `np.asarray` reads: an array of any library, or one that is still in a file. The shape of one, as well."""

    @property
    def shape(self) -> tuple[int, ...]: ...


@runtime_checkable
class DataclassInstance(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
