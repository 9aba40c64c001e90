"""The tables of several finished runs as one: the mean of their scores, and how sure it is."""
