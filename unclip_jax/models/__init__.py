"""Networks: each file holds a spec, a frozen dataclass that goes to JSON and back, and the module it describes."""
