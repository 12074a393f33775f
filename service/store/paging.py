"""Two ways to page a list, from a cursor that is the last item's id: by row number, and by age."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    return await _page(connection, query, limit, convert)


async def page_by_age(
    connection: AsyncConnection,
    table: sa.Table,
    owner: sa.ColumnElement[bool],
    also: Sequence[sa.ColumnElement[bool]],
    after: str | None,
    limit: int,
    convert: Callable[[sa.RowMapping], T],
) -> Page[T]:
    """As `page`, newest first, for a table whose rows have no number: by `created_at`, then `id`.

    The rows are those of `owner` that meet `also`; ValueError when `after` is no row of `owner`.
    """
    created, row_id = table.c.created_at, table.c.id
    query = sa.select(table).where(owner, *also)
    if after is not None:
        last = (await connection.execute(sa.select(created).where(row_id == after, owner))).scalar()
        if last is None:
            raise ValueError("after")
        query = query.where(sa.or_(created < last, sa.and_(created == last, row_id < after)))
    return await _page(connection, query.order_by(created.desc(), row_id.desc()).limit(limit + 1), limit, convert)


async def _page(connection: AsyncConnection, query: sa.Select[Any], limit: int, convert: Callable[[sa.RowMapping], T]) -> Page[T]:
    rows = (await connection.execute(query)).mappings().all()
    return Page(items=[convert(row) for row in rows[:limit]], has_more=len(rows) > limit)
