"""The one error that this package raises for what a user can mend."""

from __future__ import annotations

from typing import Any


class ModelmeterError(Exception):
    """What went wrong, to what, and what to do; the same fields as the command line's `--json` errors.

    code: for programs, such as `invalid_argument`, `not_found` or `unreachable`.
    field: the argument or field that it is about, if there is one.
    message: for people.
    hint: what to do about it, if that is known.
    """

    def __init__(self, code: str, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        super().__init__(code, message, field, hint)
        self.code = code
        self.field = field
        self.message = message
        self.hint = hint

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> ModelmeterError:
        """The error in `{code, field, message, hint}`."""
        field, hint = document.get("field"), document.get("hint")
        return cls(str(document.get("code", "internal")), str(document.get("message", "")), field=field, hint=hint)

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        hint = f"\nhint: {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.code, self.message, self.field, self.hint)


def _restored(code: str, message: str, field: str | None, hint: str | None) -> ModelmeterError:
    return ModelmeterError(code, message, field=field, hint=hint)


def invalid(field: str, message: str, hint: str | None = None) -> ModelmeterError:
    """An error about an argument, before anything starts."""
    return ModelmeterError("invalid_argument", message, field=field, hint=hint)
