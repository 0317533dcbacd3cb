"""Refusals: what a caller asked for cannot be done, and the message says why and what to do instead.

A refusal is not a bug, so the launcher prints its message alone. Every other exception is a bug of ours or of a
library, also a ValueError, and is printed with its traceback.
"""


class Refusal(ValueError):
    """An input breaks a rule. The message states the rule, the values seen and the way out."""


class Unsupported(Refusal, NotImplementedError):
    """An input is legal, but what it asks for is not built, or this machine cannot do it."""
