"""From a checked local file to sampled frames on disk.  The only package that imports qwen_vl_utils."""
