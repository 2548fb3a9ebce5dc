"""What is known of a model, and its tokenizer and weights."""
