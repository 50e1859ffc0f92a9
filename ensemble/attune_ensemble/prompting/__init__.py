"""From an emotion to the music that answers it: the knowledge base, retrieval, and the writers of prompts."""
