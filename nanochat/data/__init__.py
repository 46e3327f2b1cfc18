"""From raw text to token samples: sources of text, text shards, token shards, the loader."""
