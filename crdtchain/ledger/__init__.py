"""The derived state: accounts, jobs, rules, outcomes."""
