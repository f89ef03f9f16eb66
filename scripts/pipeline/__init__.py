"""What `run.sh` asks: what a run consists of, which stages are done, and with which commands the others run."""
