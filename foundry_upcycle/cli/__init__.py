"""The command ``foundry-upcycle``, a file for each group of commands."""
