"""What the store can do on this machine, each thing next to its floor. ``make bench`` runs it; README.md says how."""
