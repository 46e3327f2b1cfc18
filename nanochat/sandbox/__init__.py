"""What models write is never trusted: a calculator that only calculates, and a cage for programs."""
