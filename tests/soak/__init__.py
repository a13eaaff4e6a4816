"""A long load with faults: ``make soak``."""
