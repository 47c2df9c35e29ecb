"""The family of exceptions. Whoever catches RedoubtError catches all that we raise on purpose."""


class RedoubtError(Exception):
    """Something that Redoubt says itself; the message tells what to do."""


class WrongInput(RedoubtError, ValueError):
    """The user's mistake: a name, a number, a file. Nothing was lost and nothing was trained."""


class UnknownPart(WrongInput):
    """A dataset, model, attack, defence, suite or recipe that is not in the table and cannot be imported."""


class PartRefused(WrongInput):
    """A function that a store names, and nobody here has vouched for. It was not imported."""


class DataMissing(WrongInput):
    """A file or folder that is absent, unreadable or cut short."""


class DataRejected(WrongInput):
    """The data broke its contract; nothing downstream may run."""


class ModelRejected(WrongInput):
    """The model does not fit the data: wrong input, wrong width, not a module."""


class StoreUnreachable(RedoubtError):
    """MLflow or the folder that holds results cannot be reached or written."""


class Forbidden(StoreUnreachable):
    """MLflow's server knows who asks, and that one may not."""


class EvidenceBroken(RedoubtError):
    """What was stored is not what its digest says."""
