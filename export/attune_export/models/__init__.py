"""Every served model, one file each: its settings in each profile, and what is exported for it. registry.py has all."""
