"""The tokenizer: trained by rustbpe, encoding by tiktoken, saved so that transformers opens it as well."""
