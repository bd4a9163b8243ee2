"""What can go wrong through no fault of ours, each told in one sentence: what, which value, where, what to do."""


class CaptuneError(Exception):
    """A problem the user can mend; the command line prints it as it stands and leaves with `exit_code`."""

    exit_code = 2


class RecipeError(CaptuneError):
    """The recipe asks for something that does not exist or does not fit together."""


class DataError(CaptuneError):
    """Pictures, captions or the run folder are not as they must be."""


class ModelError(CaptuneError):
    """A model cannot be found, loaded or used as asked."""


class TrainingError(CaptuneError):
    """Training cannot go on; names the step, the pictures and the last good checkpoint."""

    exit_code = 1
