"""Tasks: what a chat model is taught and asked. Each is a training set and an evaluation."""
