"""In: scores of training examples. Out: the tables of results; `table.OUTPUTS` lists the outputs that make them."""
