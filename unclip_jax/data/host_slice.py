"""One host's rows of every global batch, as a Grain dataset. Apart, since Grain takes a second and is an extra."""

from grain import MapDataset


class HostSlice(MapDataset):
    """Of each `batch_size` consecutive elements, the contiguous share of one host."""

    def __init__(self, parent: MapDataset, *, batch_size: int, process_index: int, process_count: int):
        super().__init__(parent)
        self._batch_size = batch_size
        self._local_size = batch_size // process_count
        self._first = process_index * self._local_size

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * self._local_size

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        step, row = divmod(index, self._local_size)
        return self._parent[step * self._batch_size + self._first + row]
