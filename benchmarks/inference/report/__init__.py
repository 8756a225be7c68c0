"""The report of a serving study, from its points alone."""
