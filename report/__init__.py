"""In: a finished run's tables, its sources and its model. Out: one page that shows what was found, and how far to trust it."""
