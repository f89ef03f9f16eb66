"""What kill_resume.py does to a pipeline: start, kill and resume it, and compare how it ends."""
