"""What goes wrong while a command checks and times."""


class WrongResult(Exception):
    """torch_ws itself failed its check."""


def reason_of(error: Exception) -> str:
    """One line, for the report."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
