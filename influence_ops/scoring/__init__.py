"""In: gradients of training examples and solved test points. Out: influence, top-k tables, groups' sums and an index to search."""
