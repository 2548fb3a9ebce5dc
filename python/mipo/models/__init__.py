"""Models: a model's name, config, tokenizer and weights."""
