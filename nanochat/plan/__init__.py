"""The one source for arithmetic: sizes, FLOPs and hardware. Imports neither torch nor anything else that is heavy."""
