"""The GPT: its configuration, its layers, its loss, and its directory on disk."""
