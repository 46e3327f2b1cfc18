"""The one source for arithmetic: sizes, FLOPs, memory, time, money and disk. Imports neither torch nor anything else that is heavy."""
