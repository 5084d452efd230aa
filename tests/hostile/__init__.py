"""Files made to do harm, by format: each is answered with a result or with a `UserError`, soon and in little memory.

What a format's own words can ask for, a size, a count, a depth, a length, is asked for here without measure.
"""

HUGE = 10**15
BOMB = 40_000_000
"""Bytes that a small file expands to."""
