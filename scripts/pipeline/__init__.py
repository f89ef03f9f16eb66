"""What `run.sh` asks: what a run consists of, what is done, which commands are left."""
