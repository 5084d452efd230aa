"""Networks: each file holds a spec (a frozen dataclass that goes to JSON and back) and the Linen module it describes."""
