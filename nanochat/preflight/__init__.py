"""Looking a machine over before a run: what would stop it, slow it or lose it is named while it costs nothing yet."""
