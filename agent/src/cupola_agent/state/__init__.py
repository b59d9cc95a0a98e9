"""Durable values for agent code, on the platform or in a local file (contract section 4.15)."""

from cupola_agent.state.base import Item, ItemKey, KeyPage, StoreInfo
from cupola_agent.state.store import StateStore
from cupola_agent.stores.base import (
    AlreadyExistsError,
    NotFoundError,
    PreconditionFailedError,
    RefusedError,
    StoreError,
    UnavailableError,
)

__all__ = [
    "AlreadyExistsError",
    "Item",
    "ItemKey",
    "KeyPage",
    "NotFoundError",
    "PreconditionFailedError",
    "RefusedError",
    "StateStore",
    "StoreError",
    "StoreInfo",
    "UnavailableError",
]
