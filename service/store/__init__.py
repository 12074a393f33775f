"""Every SQL statement of Tunesmith. SQLite and PostgreSQL through one set of statements.

`Store.begin()` opens a transaction and yields its statements (`Transaction`); what is done in one
`async with` becomes visible together or not at all. Knows rows and values, no rules: those are in
jobs.py and app.py.
"""

from service.store.engine import Conflict, Stale, Store, StoreDamaged, StoreUnavailable, Transaction

__all__ = ["Conflict", "Stale", "Store", "StoreDamaged", "StoreUnavailable", "Transaction"]
