"""The shop's database: accounts, their orders and payments, and what the desk did about them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

SCHEMA = """
create table if not exists accounts (conversation text primary key, account text not null);
create table if not exists orders (
    account text not null, number text not null, item text not null,
    status text not null, tier text not null, stock text not null, age text not null,
    primary key (account, number)
);
create table if not exists payments (account text not null, number text not null, paid text not null, primary key (account, number));
create table if not exists actions (
    id integer primary key, account text not null, number text not null, action text not null
);
create index if not exists actions_of on actions (account);
"""

POLICIES = {"returns": "new: label, old: escalate"}


class Store:
    """One connection to the shop's database."""

    def __init__(self, path: str | Path) -> None:
        self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute("pragma synchronous = off")
        self._db.executescript(SCHEMA)

    def account(self, conversation: str) -> str | None:
        """The account of the customer who is writing."""
        row = self._db.execute("select account from accounts where conversation = ?", (conversation,)).fetchone()
        return row[0] if row else None

    def order(self, account: str | None, number: str) -> str:
        """An order of the account in a few words."""
        row = self._db.execute(
            "select item, status, tier, stock, age from orders where account = ? and number = ?", (account, number)
        ).fetchone()
        return "{} status:{} tier:{} stock:{} age:{}".format(*row) if row else "no such order"

    def payment(self, account: str | None, number: str) -> str:
        """How an order of the account was paid."""
        row = self._db.execute(
            "select paid from payments where account = ? and number = ?", (account, number)
        ).fetchone()
        return f"paid:{row[0]}" if row else "no such order"

    def act(self, account: str | None, number: str, action: str) -> str:
        """Do something about an order of the account."""
        known = self._db.execute("select 1 from orders where account = ? and number = ?", (account, number)).fetchone()
        if known is None:
            return "no such order"
        self._db.execute("insert into actions (account, number, action) values (?, ?, ?)", (account, number, action))
        return "ok"

    def actions(self, account: str) -> list[tuple[str, str]]:
        """What was done for an account: (order number, action), in order."""
        return self._db.execute(
            "select number, action from actions where account = ? order by id", (account,)
        ).fetchall()

    def open_account(self, conversation: str, account: str, order: dict[str, str]) -> None:
        """Enter a customer with one order."""
        self._db.execute("insert or replace into accounts values (?, ?)", (conversation, account))
        self._db.execute(
            "insert or replace into orders values (?, ?, ?, ?, ?, ?, ?)",
            (account, *(order[name] for name in ("number", "item", "status", "tier", "stock", "age"))),
        )
        self._db.execute("insert or replace into payments values (?, ?, ?)", (account, order["number"], order["paid"]))
