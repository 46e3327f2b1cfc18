"""The trainer, its checkpoints and metrics, and the stages that use it."""
