"""From an emotion to a music prompt: the knowledge base, retrieval, and the prompt writers."""
