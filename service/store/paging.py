"""One way to page a list: by row number, from a cursor that is the last item's id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from service.records import Page

T = TypeVar("T")


async def page(
    connection: AsyncConnection,
    query: sa.Select[Any],
    number: sa.ColumnElement[int],
    cursor: sa.Select[tuple[int]] | None,
    limit: int,
    convert: Callable[[sa.RowMapping], T],
    *,
    ascending: bool = False,
) -> Page[T]:
    """The rows of `query` beyond the cursor, newest first unless `ascending`.

    `cursor` selects the number of the last row the client has; ValueError when it finds none.
    """
    if cursor is not None:
        last = (await connection.execute(cursor)).scalar()
        if last is None:
            raise ValueError("after")
        query = query.where(number > last if ascending else number < last)
    query = query.order_by(number.asc() if ascending else number.desc()).limit(limit + 1)
    rows = (await connection.execute(query)).mappings().all()
    return Page(items=[convert(row) for row in rows[:limit]], has_more=len(rows) > limit)
