"""The errors a user can meet. Each carries one line that names the thing at fault."""


class MinibertError(Exception):
    """Base of all the errors below: `except MinibertError` catches what a user can put right."""


class PretrainedError(MinibertError):
    """A model folder or hub id that cannot be used: its configuration, weights or vocabulary."""


class DataError(MinibertError):
    """A data file or data set that is missing, unreadable or contradicts itself."""


class InputError(MinibertError, ValueError):
    """An argument out of range, or a question or context that nothing can be done with."""
