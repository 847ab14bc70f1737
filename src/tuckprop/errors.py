"""The errors of tuckprop: one root, a few leaves, so that a caller can catch all or one kind."""


class TuckpropError(Exception):
    """Root of every error that tuckprop raises on purpose."""


class ConfigError(TuckpropError, ValueError):
    """An argument or a setting has a value that cannot be used."""


class UnsupportedError(TuckpropError, TypeError):
    """A layer, codec or tensor is of a kind that tuckprop does not handle here."""


class DataError(TuckpropError, OSError):
    """A data set, an image or a weight file is missing, misplaced or does not match."""


class CheckpointError(TuckpropError, OSError):
    """A checkpoint or record is missing, corrupted or belongs to another run."""


class TuckpropWarning(UserWarning):
    """Something works, but saves less or does less than the caller may expect."""
