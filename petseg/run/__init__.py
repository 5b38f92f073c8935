"""What a run consists of: its parts, built once and then only used, and its progress, the rest that changes."""
