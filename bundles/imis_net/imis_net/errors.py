"""The errors that callers of this package can meet.

``PromptError`` and ``ImageError`` are the caller's fault; each front end translates them once (the app to an HTTP
4xx, scripts to exit code 2). Every message says what was wrong, what was given and what is accepted.
"""


class ImisError(Exception):
    """Base of every error that this package raises on purpose."""


class PromptError(ImisError, ValueError):
    """A click, box, text or mask prompt that cannot be used."""


class ImageError(ImisError, ValueError):
    """An image that cannot be read, or a slice that it does not have."""


class CheckpointError(ImisError, ValueError):
    """Weights that do not fit the network: missing, unexpected or wrongly shaped entries."""


class DatasetError(ImisError, ValueError):
    """A training or evaluation record that cannot be used."""


class ServingError(ImisError, RuntimeError):
    """A model server that does not start, does not answer in time, or answers what cannot be right."""


class UnknownHandleError(ServingError):
    """An image handle whose embedding the server does not hold (any more): send the image."""


class ExportError(ImisError, ValueError):
    """A graph that differs from the network it came from, or that cannot be written or built."""
