"""How `reap` finds what nobody owns any more. Reading order: sweep, found, clock, verdict, ending, by_hand, vanished, stuck, siblings, memory."""
