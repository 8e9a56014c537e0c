"""crdtchain: an offline-first, replicated ledger on which people and machines train models for each other."""
