"""The writers of prompts: their interface, one file for each, and the registry that names them."""
