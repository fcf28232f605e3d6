"""Every error a caller may want to handle, as one tree.

HindcastError
├── InputError               the caller's data or request cannot be used; fix the input
│   ├── PanelError           one or more series of a panel were refused; `.problems` names each
│   └── CalendarError        a frequency or a timestamp does not fit the calendar
├── JobError                 a job file is not valid
├── SourceError              a data source did not deliver; the outside world is at fault
├── LedgerError              the ledger refused or could not do what was asked
│   ├── LedgerUnavailableError     its database did not answer; trying later may help
│   └── QueueFullError             too many retrainings wait; asking later may help
├── ArtifactError            an artefact was refused: damaged, too new, or not what it claims to be
└── RegistryError            the registry refused or could not do what was asked
    ├── ModelNotFoundError   no such model, version or alias
    └── RegistryUnavailableError   the registry did not answer; trying later may help
"""

from collections.abc import Mapping


class HindcastError(Exception):
    """The root of every error Hindcast raises on purpose."""


class InputError(HindcastError, ValueError):
    """The caller's data or request cannot be used as it is."""


class PanelError(InputError):
    """One or more series were refused; `problems` maps each `unique_id` to what is wrong with it."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        self.problems = dict(problems)
        shown = list(self.problems.values())[:10]
        hidden = len(self.problems) - len(shown)
        super().__init__("; ".join(shown) + (f"; and {hidden} more series" if hidden else ""))

    def __reduce__(self) -> tuple[type["PanelError"], tuple[dict[str, str]]]:
        """Go to another process with the problems: the message alone could not be taken apart again."""
        return type(self), (self.problems,)


class CalendarError(InputError):
    """A frequency is unknown, or a timestamp does not lie on its grid."""


class JobError(HindcastError):
    """A job file is not valid; the message names the field."""


class TrainingError(HindcastError):
    """Training gave no usable model: too little data, or an optimisation that diverged."""


class SourceError(HindcastError):
    """A data source did not deliver what the job asks for."""


class LedgerError(HindcastError):
    """The ledger refused, or could not do, what was asked."""


class LedgerUnavailableError(LedgerError):
    """The ledger's database did not answer; the same call may succeed later."""


class QueueFullError(LedgerError):
    """Too many retrainings wait already; the same call may succeed later."""


class ArtifactError(HindcastError):
    """An artefact cannot be trusted or read."""


class RegistryError(HindcastError):
    """The registry refused, or could not do, what was asked."""


class ModelNotFoundError(RegistryError):
    """The registry knows no such model, version or alias."""


class RegistryUnavailableError(RegistryError):
    """The registry did not answer; the same call may succeed later."""
