"""The report of a study: what its results say, in words, tables and figures."""
