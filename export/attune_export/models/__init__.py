"""The served models, one file each: settings in each profile, and exported files. registry.py lists them."""
