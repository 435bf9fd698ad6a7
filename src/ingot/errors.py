"""Every error a user can meet.

    IngotError
      ModelError        the model breaks its own rules
      InputError        a call's inputs do not fit the engine (name, dtype, shape)
      UnsupportedError  the model is sound; Ingot cannot serve it here
      EngineError       an engine file is damaged, foreign, or of another version
      VerifyError       the engine's numbers differ from the original's beyond the tolerance
      CandidateError    one kernel candidate cannot be built or launched (the tuner tries the next)
      ServeError        a request to a server cannot be answered; `kind` says in which way
      InternalError     Ingot broke its own rules: please report it
"""


class IngotError(Exception):
    """An error that says what is wrong, where it happened, why, and what would mend it."""

    def __init__(self, what: str, *, where: str = "", why: tuple[str, ...] = (), mend: str = "") -> None:
        self.what, self.where, self.why, self.mend = what, where, why, mend
        lines = [what]
        lines += [f"  where: {where}"] if where else []
        lines += [f"  why:   {reason}" for reason in why]
        lines += [f"  mend:  {mend}"] if mend else []
        super().__init__("\n".join(lines))


def in_one_line(error: Exception) -> str:
    """What an error says, and why, for a line of a report."""
    return "; ".join((error.what, *error.why)) if isinstance(error, IngotError) else str(error)


class ModelError(IngotError):
    """The model breaks its own rules."""


class InputError(IngotError):
    """A call's inputs do not fit the engine."""


class UnsupportedError(IngotError):
    """The model is sound, but Ingot cannot serve it here."""


class EngineError(IngotError):
    """An engine file is damaged, foreign, or of another version."""


class VerifyError(IngotError):
    """The engine's numbers differ from the original's beyond the tolerance."""


class CandidateError(IngotError):
    """One kernel candidate cannot be built or launched; the tuner tries the next."""


class ServeError(IngotError):
    """A request to a server cannot be answered. `kind` is one of the keys of `ingot.serve.status.CODES`."""

    def __init__(self, what: str, *, kind: str = "invalid", where: str = "", why: tuple[str, ...] = (),
                 mend: str = "") -> None:
        self.kind = kind
        super().__init__(what, where=where, why=why, mend=mend)


class InternalError(IngotError):
    """Ingot broke its own rules: please report it."""
