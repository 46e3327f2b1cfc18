"""Which settings learn faster: the same small runs with and without a change, over seeds and depths, and what may be said of them."""
