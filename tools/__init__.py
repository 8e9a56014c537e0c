"""Programs for those who develop crdtchain."""
