"""What a tokenizer does: chats become text by its template, texts become ids. Knows nothing of prompts or pairs."""
