"""What every tokenizer of this project shares: the special tokens, the split pattern and the limits."""

SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
"""In nanochat's order and spelling, so that models interchange; their ids follow the ranks."""

SPLIT_PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
"""GPT-4's, with numbers in groups of one or two digits instead of three: a small vocabulary has better uses for its entries."""

MIN_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
"""Every byte and the special tokens."""

MAX_VOCAB_SIZE = 65_536
"""Token shards hold ids as uint16: the largest id is 65,535."""
