"""What the modules of every family are called: by diffusers, by the original code, by kohya's tools."""
