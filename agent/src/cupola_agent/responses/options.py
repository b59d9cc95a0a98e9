"""What the developer of an agent may choose about its responses."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """`default_model` stands in for a model the request does not name. `history_limit` is how many items of history a
    handler gets at most, the newest; -1 for all. `steerable`: a newer turn of a conversation interrupts the one that
    runs. `resilient`: responses in the background outlive a crash, by running the handler again.
    """

    default_model: str = ""
    history_limit: int = -1
    steerable: bool = False
    resilient: bool = False

    def __post_init__(self) -> None:
        if self.history_limit != -1 and self.history_limit < 1:
            raise ValueError(f"history_limit is -1 or a positive number, not {self.history_limit}")
