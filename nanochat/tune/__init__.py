"""Finding out what is right and what is fastest on the machine at hand."""
