"""The goodput policy: how many tokens to speculate. Floats only: no torch, no clock, no I/O."""
