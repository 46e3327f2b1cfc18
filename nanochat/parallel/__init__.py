"""What is applied to a model from outside: ranks, precision, compilation."""
