"""What the desk can do: two look-ups, the policy search, and the actions it may take."""

from __future__ import annotations

from bot.store import POLICIES, Store

SYSTEM = "support desk"
ACTIONS = {
    "refund": "Pay the price back.",
    "replace": "Send the same item again by priority.",
    "swap": "Collect the wrong item and send the right one.",
    "reship": "Send the missing item by mail.",
    "courier": "Send the missing item by courier.",
    "claim": "Open a claim with the carrier.",
    "track": "Send the tracking link.",
    "cancel": "Cancel the order.",
    "recall": "Call the parcel back.",
    "reverse": "Reverse the second payment.",
    "credit": "Give store credit.",
    "readdress": "Change the address in the warehouse.",
    "redirect": "Have the carrier redirect the parcel.",
    "label": "Send a return label.",
    "escalate": "Hand over to a person.",
}


def run_tool(store: Store, conversation: str, name: str, argument: str) -> str:
    """Run one tool for the customer of a conversation."""
    account = store.account(conversation)
    if name == "find_order":
        return store.order(account, argument)
    if name == "find_payment":
        return store.payment(account, argument)
    if name == "search_policy":
        return POLICIES.get(argument, "nothing found")
    if name in ACTIONS:
        return store.act(account, argument, name)
    return "no such tool"
