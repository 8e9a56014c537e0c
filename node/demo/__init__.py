"""The demonstration: the main job end to end, on real processes of this machine."""
