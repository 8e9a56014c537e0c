"""The worker: takes jobs, trains in sandboxes, bids, reveals, verifies."""
